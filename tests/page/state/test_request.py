"""The values of the page's controls as a request: what the library takes, and what results are kept under."""

import pytest

from components.state.precomputed import Precomputed
from components.state.request import DENSE, default_precision, parse
from components.state.settings import CONTROLS, Settings
from intraslice.core.config import BUDGETS, CalibrationConfig, EvaluationConfig, SliceConfig

OTHER = Settings(model="somebody/model", text="wikitext2", sequences=4, length=64, samples=3, seed=7, dtype="bfloat16")
OTHER = OTHER._replace(sparsity=45, estimator="fisher", bias=1, cap=70, order="sequential")
LOCKED = "7 attention 25, 3 mlp neurons 400, 3 attention head 5 keep"
OTHER = OTHER._replace(locked=LOCKED, shapes="runtime", recovery="distill")


def test_a_request_has_what_the_library_takes_and_an_upload_the_texts_place() -> None:
    request = parse(OTHER)
    assert request.calibration == ("somebody/model", "bfloat16", CalibrationConfig("wikitext2", 4, 64, 7, samples=3))
    locked = ((7, "attention", 0.25), (3, "mlp", "neurons", 400), (3, "attention", "head", 5, "keep"))
    others = {"locked": locked, "shapes": "runtime", "recovery": "distill"}
    assert request.slicing == SliceConfig(0.45, "fisher", 1.0, 0.7, "sequential", **others)
    assert request.calibration.evaluation(100) == EvaluationConfig("wikitext2", 100, 64)
    assert request.calibration.evaluation(10).tokens == 64  # a window at least
    recipe = request.recipe(100)
    assert (recipe.model, recipe.dtype, recipe.slicing) == ("somebody/model", "bfloat16", request.slicing)
    assert (recipe.calibration, recipe.evaluation) == (request.calibration.config, request.calibration.evaluation(100))
    request = parse(OTHER._replace(upload="/somewhere/mine.txt"))
    assert request.calibration.config.text == "/somewhere/mine.txt"
    assert request.recipe(100).calibration.text == request.recipe(100).evaluation.text == "mine.txt"


def test_the_budgets_are_calibrations_of_the_page_and_the_default_one_has_no_samples() -> None:
    quick, thorough = CalibrationConfig("default", 32, 512), CalibrationConfig("default", 128, 512, samples=16)
    assert {name: budget() for name, budget in BUDGETS.items()} == {"quick": quick, "thorough": thorough}
    assert thorough.tokens == 144 * 512
    assert CalibrationConfig.thorough(text="wikitext2", samples=8) == CalibrationConfig("wikitext2", 128, samples=8)
    assert parse(Settings()).calibration.config == parse(Settings(*Settings()[:-1])).calibration.config == quick
    assert parse(Settings(sequences=128, samples=16)).calibration.config == thorough
    assert parse(Settings()).calibration == parse(Settings(dtype=default_precision())).calibration  # what a host loads


@pytest.mark.parametrize("field", [name for name in Settings._fields if name not in ("upload", "dtype")])
def test_what_the_page_opens_with_is_known_in_every_precision(field) -> None:
    precomputed = Precomputed()
    assert precomputed.source(parse(Settings()).calibration)
    for dtype in ("float32", "bfloat16"):
        other = parse(Settings(dtype=dtype)).with_settings(**{field: getattr(OTHER, field)})
        assert (precomputed.source(other.calibration) is not None) == (not CONTROLS[field].calibrates)


def test_requests_and_slices_are_told_apart_by_the_settings_that_count_for_them() -> None:
    request, plain, trained = parse(OTHER), parse(Settings()), parse(Settings(recovery="distill"))
    assert request == parse(Settings(*OTHER))
    assert hash(request) == hash(parse(Settings(*OTHER)))
    assert request != request.with_settings(sparsity=46)
    assert request.with_settings(sparsity=46).slice_key("intraslice") != request.slice_key("intraslice")
    (key,) = {request.with_settings(sparsity=percent, estimator="pca").slice_key(DENSE) for percent in (0, 20, 60)}
    assert key.config.sparsity == 0  # the dense model knows no slice
    assert parse(OTHER._replace(seed=8)).slice_key(DENSE) != key
    for method in ("intraslice", "crossmodule", "magnitude"):  # a recovered model is kept beside the one that is not
        assert plain.slice_key(method) != trained.slice_key(method)
    assert plain.slice_key("intraslice+") == trained.slice_key("intraslice+")  # it always recovers
    assert plain.slice_key(DENSE) == trained.slice_key(DENSE)
    settings = ("order", "estimator", "shapes")
    for method, looked_at in {"intraslice": settings, "crossmodule": ("order",), "magnitude": ("shapes",)}.items():
        others = {name: plain.with_settings(**{name: getattr(OTHER, name)}) for name in settings}
        assert looked_at == tuple(s for s in settings if plain.slice_key(method) != others[s].slice_key(method))


def test_only_what_is_fast_follows_the_slider() -> None:
    for changes, is_live in (({}, True), ({"order": "sequential"}, False), ({"recovery": "distill"}, False)):
        assert parse(Settings()).with_settings(**changes).is_live == is_live
