"""The type checker of all functions of the library while tests run; jaxtyping adds the shapes."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def check_types(function: Callable) -> Callable:
    """Not inside of functions: a check there would be compiled again at every call, half of the tests' time."""
    return function if "<locals>" in function.__qualname__ else check(function)
