"""Compares a sliced model with its dense model on held-out tokens: perplexities, their ratio, and KL divergence."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.core.progress import ProgressCallback, progress_callback
from intraslice.evaluation.perplexity import DenseStates, Estimate, Losses, measure_losses


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The losses of both models on the same windows, and the estimates derived from them."""

    dense: Losses
    sliced: Losses
    window: int  # tokens

    @property
    def dense_perplexity(self) -> Estimate:
        """Perplexity of the dense model, with its standard error."""
        return self.dense.perplexity()

    @property
    def perplexity(self) -> Estimate:
        """Perplexity of the sliced model, with its standard error."""
        return self.sliced.perplexity()

    @property
    def perplexity_ratio(self) -> Estimate:
        """Ratio of sliced to dense perplexity, with its paired standard error."""
        return self.sliced.ratio(self.dense)

    @property
    def divergence(self) -> Estimate:
        """Mean KL divergence of the sliced model from the dense one, in nats per token, with its standard error."""
        divergence = self.sliced.divergence()
        assert divergence is not None  # `evaluate` measures it
        return divergence

    def __repr__(self) -> str:
        dense, sliced = _rounded(self.dense_perplexity, 2), _rounded(self.perplexity, 2)
        width = max(len(dense), len(sliced), len("sliced"))
        return "\n".join(
            [
                f"{'':<12}{'dense':>{width}}  {'sliced':>{width}}",
                f"{'perplexity':<12}{dense:>{width}}  {sliced:>{width}}  {_rounded(self.perplexity_ratio, 3)} times",
                f"KL divergence from the dense model: {_rounded(self.divergence, 4)} nats per token",
                f"on {self.sliced.total * self.window:,} tokens in windows of {self.window:,}; ± is one standard error",
            ]
        )


def evaluate(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    tokens: Int[Tensor, "windows window"],
    *,
    progress: ProgressCallback | bool = True,
) -> Evaluation:
    """Measure both models on held-out windows. The first token of a window is not scored.

    Takes one forward pass of each model, and memory for one hidden state per token. Raises UserError as
    `measure_losses` does.
    """
    report, states = progress_callback(progress), DenseStates(dense)
    dense_losses = measure_losses(dense, tokens, "perplexity dense", states, progress=report)
    sliced_losses = measure_losses(sliced, tokens, "perplexity sliced", states, progress=report)
    return Evaluation(dense_losses, sliced_losses, tokens.shape[1])


def _rounded(estimate: Estimate, digits: int) -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.value:.{digits}f}{error}"
