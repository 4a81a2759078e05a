"""Values that no setting of the page may have, by field."""

NAN, INFINITY = float("nan"), float("inf")
NO_NUMBERS = [NAN, INFINITY, -INFINITY, -1, 1e300, 10**30, True, None, "7", "", [1], {"a": 1}]
NO_WORDS = [NAN, 7, True, None, [], {"a": 1}, "\0", "\ud800", "x" * 100_000]
REFUSED = {
    **dict.fromkeys(("sequences", "length", "seed", "sparsity", "cap", "samples"), NO_NUMBERS),
    "bias": [value for value in NO_NUMBERS if value is not None],
    **dict.fromkeys(("model", "text", "estimator", "order", "locked", "dtype", "shapes", "recovery"), NO_WORDS),
    "iterative": [None, 1, 0.0, "true", [], NAN],
}
