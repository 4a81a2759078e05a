"""IntraSlice as published (arXiv 2602.01975): the settings of the paper, where this project's own differ."""

from dataclasses import replace

from intraslice.core.config import SliceConfig
from intraslice.core.fit_config import PAPER_FIT
from intraslice.methods.intraslice import IntraSlice
from intraslice.methods.registry import METHODS

PAPER_BIAS = 1.0
PAPER_GRADIENT_GROUP = 8  # sequences


class Paper(IntraSlice):
    """IntraSlice with the fits, labels, bias and order of the paper.

    The gradients are those of the text's own next tokens, summed over 8 sequences before they are squared. The recipe
    fixes the bias only where the config names none.
    """

    name = "paper"
    label = "IntraSlice, as published"
    explanation = "the IntraSlice paper's own fits, labels, bias and order (arXiv 2602.01975)"
    fit = PAPER_FIT
    uses_order = False
    supports_offload = False
    targets = "text"
    measures_auto = False

    def configured(self, config: SliceConfig) -> SliceConfig:
        bias = PAPER_BIAS if config.bias is None else config.bias
        return replace(config, order="sequential", bias=bias, gradient_group=PAPER_GRADIENT_GROUP, fit=self.fit)

    @property
    def unused(self) -> list[str]:
        return [*super().unused, "gradient_group"]


class PaperDirect(Paper):
    """IntraSlice as published, without the iterative variant for MLPs with a high ratio (section 3.4)."""

    name = "paper-direct"
    label = "IntraSlice, as published, without §3.4"
    explanation = "method paper without the iterative fit of MLPs with a high ratio (section 3.4)"
    fit = replace(PAPER_FIT, iterative_from=None)


METHODS.register(Paper())
METHODS.register(PaperDirect())
