"""How a layer is fitted once its sizes are known: the settings in which this project and the paper differ."""

from dataclasses import dataclass

from intraslice.core.checks import check_fields, number


@dataclass(frozen=True)
class FitConfig:
    """Settings of the fit of one layer. The defaults are this project's; `PAPER_FIT` has the paper's (section 3).

    A ridge is added to the second moment of the inputs of the fit, relative to its diagonal.
    """

    # Channels, heads and neurons are scored by energy times the sensitivity of the loss; otherwise by energy, and
    # rotary pairs by the mean product of query and key.
    sensitive_scores: bool = True
    # The axes of a head's values also weigh the output map; otherwise they are those of the second moment alone.
    output_weighted_axes: bool = True
    attention_ridge: float = 0.02  # of the mean of the diagonal
    # The ridge of attention penalises changes of the output map; otherwise the new map itself.
    ridge_on_change: bool = True
    mlp_ridge: float = 0.1  # of each entry of the diagonal, or of its mean
    # The ridge of the MLP is relative to each entry of the diagonal (`damp_by_channel`); otherwise to its mean.
    ridge_by_channel: bool = True
    # Ratio of an MLP above which the iterative variant (`slicing/iterative_mlp.py`) is tried; None: never.
    iterative_from: float | None = None

    def __post_init__(self) -> None:
        hint = "a fraction of the diagonal of the second moment, such as 0.01"
        check_fields(self, number, attention_ridge=(0, 1, hint), mlp_ridge=(0, 1, hint))
        check_fields(self, number, iterative_from=(0, 1, "the ratio of an MLP, such as 0.35"))


# This project's fits, of every method but `paper`.
INTRASLICE_FIT = FitConfig()

PAPER_FIT = FitConfig(
    sensitive_scores=False,
    output_weighted_axes=False,
    attention_ridge=0.01,
    ridge_on_change=False,
    mlp_ridge=0.01,
    ridge_by_channel=False,
    iterative_from=0.35,
)
