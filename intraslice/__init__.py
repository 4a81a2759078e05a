"""Prune Llama, Phi and similar models by PCA inside each module, with every transform fused into the weights."""

__version__ = "0.3.0"

from intraslice.api import CompressedModel, compress
from intraslice.calibration.driver import calibrate
from intraslice.checkpoints.auto_class import plain_model
from intraslice.checkpoints.format import load, save
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import Evaluation, evaluate, perplexity
from intraslice.loading import LoadedModel, load_model, prepare_model
from intraslice.methods.registry import METHODS, SlicingMethod, plan_by, slice_by
from intraslice.planning.estimators import ESTIMATORS
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.recovery import RECOVERIES, recover
from intraslice.samples import calibration_sequences
from intraslice.slicing.driver import slice_model
from intraslice.token_windows import calibration_tokens, evaluation_tokens

__all__ = [
    "ESTIMATORS",
    "METHODS",
    "RECOVERIES",
    "CalibrationConfig",
    "CompressedModel",
    "Evaluation",
    "EvaluationConfig",
    "LoadedModel",
    "NumericalError",
    "Progress",
    "SliceConfig",
    "SlicePlan",
    "SlicingMethod",
    "UserError",
    "calibrate",
    "calibration_sequences",
    "calibration_tokens",
    "compress",
    "evaluate",
    "evaluation_tokens",
    "generate_text",
    "load",
    "load_model",
    "make_plan",
    "perplexity",
    "plain_model",
    "plan_by",
    "prepare_model",
    "recover",
    "save",
    "slice_by",
    "slice_model",
]
