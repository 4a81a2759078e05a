"""Sliced models of several kinds, saved, and opened by transformers' Auto classes: what their tests have in common."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import intraslice
from intraslice.core.fit_config import INTRASLICE_FIT
from intraslice.modeling.families import canonicalise
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.mlp import keep_best, rank_neurons

MADE = {"source": "random weights", "protocol": {}}
KINDS = [("llama-gqa", "intraslice"), ("phi", "intraslice"), ("llama-biased", "crossmodule"), ("phi3", "paper")]


class Opened(NamedTuple):
    """A sliced model, the folder it was saved to, and what transformers opens from there. Shared: do not change it."""

    case: object  # the TinyCase that it is a slice of
    sliced: PreTrainedModel
    folder: Path
    model: PreTrainedModel

    @property
    def is_crossmodule(self) -> bool:
        return hasattr(self.sliced.model.layers[0], "shortcuts")

    @torch.no_grad()
    def agrees(self, model: PreTrainedModel, tolerance: float = 0.0) -> bool:
        """Whether a model's logits are those of the slice that was saved."""
        tokens = self.case.tokens[:2]
        return torch.allclose(model(tokens).logits, self.sliced(tokens).logits, rtol=0, atol=tolerance)


def narrowed(model: PreTrainedModel, widths: list[int]) -> PreTrainedModel:
    """With MLPs of these widths, a layer each, and the heads as they are."""
    canonicalise(model)
    for layer, width in zip(model.model.layers, widths, strict=True):
        weights, neurons = layer.mlp.weights(), layer.mlp.neurons
        layer.mlp = SlicedMLP(
            keep_best(
                weights,
                rank_neurons(weights, torch.eye(neurons), torch.ones(neurons), INTRASLICE_FIT),
                torch.zeros(neurons),
                width,
            )
        )
    return model


def save_slice(case, method: str, folder: Path) -> PreTrainedModel:
    """Slice a tiny case by so much that every size changes, and save it."""
    sliced = case.sliced(method=method, bias=1.0)
    intraslice.save(sliced, case.loaded.tokenizer, folder, MADE)
    return sliced


@pytest.fixture(scope="module", params=KINDS, ids=["-".join(names) for names in KINDS])
def opened(request: pytest.FixtureRequest, tiny_case, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Every kind in turn."""
    family, method = request.param
    folder = tmp_path_factory.mktemp("saved") / "sliced"
    sliced = save_slice(case := tiny_case(family), method, folder)
    return Opened(case, sliced, folder, AutoModelForCausalLM.from_pretrained(folder))
