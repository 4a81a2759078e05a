"""The options that the page offers: registries, texts and precisions of the library, of which `ui/` imports nothing."""

import os
from typing import get_args

from intraslice.calibration.user_estimator import load_estimator
from intraslice.core.config import BUDGETS as BUDGETS
from intraslice.core.config import NO_RECOVERY as NO_RECOVERY
from intraslice.core.config import CalibrationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS as ESTIMATORS
from intraslice.evaluation.facts import LANGUAGES
from intraslice.methods.registry import METHODS as METHODS
from intraslice.pretrained.precision import AUTO as AUTO
from intraslice.pretrained.precision import Precision
from intraslice.recovery import RECOVERIES as RECOVERIES

from .. import limits
from ..i18n.language import LazyString, gettext, lazy_gettext, term

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
TEXTS = ("default", "wikitext2")
FACT_LANGUAGES = LANGUAGES  # of the questions
OWN_ESTIMATORS = "INTRASLICE_ESTIMATOR"  # environment variable: path.py:function, several separated by blanks

SLICING_NAMES = {  # by order and shapes
    ("one-shot", "free"): lazy_gettext("one-shot slicing"),
    ("one-shot", "runtime"): lazy_gettext("one-shot slicing, runtime shapes"),
    ("sequential", "free"): lazy_gettext("sequential slicing"),
    ("sequential", "runtime"): lazy_gettext("sequential slicing, runtime shapes"),
}


def offer_own_estimators() -> None:
    """Register the estimators in the environment's files. Raises UserError where one fails, or the page is hosted."""
    files = os.environ.get(OWN_ESTIMATORS, "").split()
    if files and limits.hosted():
        raise UserError(f"{OWN_ESTIMATORS} names files to run, and a hosted page runs none; unset it")
    for file in files:
        load_estimator(file)


def label_of_recovery(name: str) -> str:
    """A recovery's label, in the current language."""
    return gettext("None") if name == NO_RECOVERY else term(RECOVERIES[name].label)


def describe_samples(config: CalibrationConfig) -> LazyString | str:
    """What a calibration reads besides its text, for a protocol; empty if it has no samples."""
    if not config.samples:
        return ""
    return lazy_gettext(
        ", and {samples} x {length} that the dense model sampled", samples=config.samples, length=config.length
    )


def describe_slicing(config: SliceConfig) -> LazyString:
    """How a model is sliced, for a protocol."""
    name = SLICING_NAMES[config.order, config.shapes]
    if config.recovery == NO_RECOVERY:
        return name
    return lazy_gettext(
        "{slicing}, recovery: {recovery}",
        slicing=name,
        recovery=LazyString(lambda: label_of_recovery(config.recovery)),
    )
