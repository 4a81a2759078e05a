"""What can be chosen on the page: the library's registries, texts and precisions.

For `ui/` and charts, which import no library.
Whatever registers itself there is offered here.
"""

from __future__ import annotations

import os
from typing import get_args

from components.i18n.language import LazyString, lazy_gettext, term
from components.jobs import limits
from intraslice import data
from intraslice.calibration.own_estimator import load_estimator
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import Precision
from intraslice.recovery import RECOVERIES

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "NO_RECOVERY",
    "PRECISIONS",
    "RECOVERIES",
    "TEXTS",
    "describe_text",
    "offer_own_estimators",
]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TEXTS = ("default", "wikitext2")
OWN_ESTIMATORS = "INTRASLICE_ESTIMATOR"  # in the environment: path.py:function, several apart by blanks


def offer_own_estimators() -> None:
    """Run the files that the environment names and offer their estimators; called before the page is built.

    Raises UserError where one cannot be run, and where the page is hosted, whatever is named: nothing is run there.
    """
    named = os.environ.get(OWN_ESTIMATORS, "").split()
    if named and limits.hosted():
        raise UserError(f"{OWN_ESTIMATORS} names files to run, which a hosted page never does; unset it")
    for place in named:
        load_estimator(place)


def describe_text(text: str) -> LazyString:
    """What a text is, where it comes from and its licence, for people."""
    told = data.describe(text)
    name, own, _ = told.partition(", your own file")
    if own:
        return lazy_gettext("{name}, your own file", name=name)
    what, bracket, source = told.partition(" (")
    return LazyString(lambda: term(what) + bracket + source)
