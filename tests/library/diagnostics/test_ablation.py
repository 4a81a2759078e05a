"""The diagnosis: whole at full width, each ablation cuts where it says, nothing is lost in a planted subspace."""

import pytest
import torch
from tiny_models import entering
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.diagnostics.ablation import ABLATIONS, ablated_model, measure_ablations
from intraslice.evaluation.perplexity import perplexity


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(3, 256, (4, 40), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["llama-gqa", "phi3", "phi"])
def dense(request: pytest.FixtureRequest, tiny_case) -> PreTrainedModel:
    return tiny_case(request.param).dense


def cut(dense: PreTrainedModel, ablation: str, width: int) -> PreTrainedModel:
    return ablated_model(dense, ablation, width, tokens(), progress=False)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_nothing_is_cut_at_full_width_and_the_dense_model_is_left_alone(dense, ablation: str):
    before = dense(tokens(1)).logits
    whole, model = cut(dense, ablation, dense.config.hidden_size), cut(dense, ablation, 16)
    torch.testing.assert_close(whole(tokens(1)).logits, before, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(model(tokens(1)).logits, before, atol=1e-2)
    assert torch.equal(dense(tokens(1)).logits, before)


def seen(rows: Tensor, model: PreTrainedModel) -> Tensor:
    """As the family's norms see it: LayerNorm never sees the mean."""
    return rows - rows.mean(-1, keepdim=True) if model.config.model_type == "phi" else rows


def leading(rows: Tensor, count: int) -> Tensor:
    """The projection on the principal axes, by singular values of the rows themselves."""
    axes = torch.linalg.svd(rows.double(), full_matrices=False).Vh[:count]
    return (axes.T @ axes).float()


@pytest.mark.parametrize("layer", [0, 2])
def test_outputs_are_cut_on_the_axes_of_what_the_cut_model_makes_of_them(dense, layer: int):
    model = cut(dense, "outputs", 16)
    cut_layer, dense_layer = model.model.layers[layer], dense.model.layers[layer]
    written = seen(dense_layer.mlp.down_proj(entering(model, [cut_layer.mlp.down_proj], tokens())[0]), model)
    expected = leading(written, 16) @ dense_layer.mlp.down_proj.weight
    torch.testing.assert_close(cut_layer.mlp.down_proj.weight, expected, atol=1e-3, rtol=1e-3)
    assert cut_layer.self_attn.qkv_proj.weight is dense_layer.self_attn.qkv_proj.weight


@pytest.mark.parametrize("layer", [0, 2])
def test_reads_are_cut_on_the_axes_of_the_hidden_states_as_the_cuts_before_leave_them(dense, layer: int):
    model = cut(dense, "reads", 16)
    reader = model.model.layers[layer].input_layernorm[0]
    states = seen(entering(model, [reader], tokens())[0], model)
    torch.testing.assert_close(reader.weight, leading(states, 16), atol=1e-3, rtol=1e-3)
    assert model.model.layers[layer].mlp.down_proj.weight is dense.model.layers[layer].mlp.down_proj.weight


def test_the_last_writer_is_whole_when_writes_are_cut(dense):
    model = cut(dense, "writes", 16)
    assert model.model.layers[-1].mlp.down_proj.weight is dense.model.layers[-1].mlp.down_proj.weight
    assert torch.linalg.matrix_rank(model.model.layers[0].mlp.down_proj.weight) == 16


def test_ablations_are_measured_by_name(dense):
    measured = measure_ablations(dense, dense.config.hidden_size, tokens(), tokens(2), progress=False)
    assert list(measured) == list(ABLATIONS)
    assert list(measured.values()) == pytest.approx([perplexity(dense, tokens(2), progress=False)] * 4, rel=1e-3)
