"""The diagnosis: whole at full width, each fault cuts where it says, nothing is lost in a planted subspace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.config import UserError, finish
from intraslice.evaluation import perplexity
from intraslice.families import blocks, canonicalise
from intraslice.faults import FAULTS, find_axes, measure_faults, projected_model

TINY = ("tiny_llama_mha", "tiny_llama_gqa", "tiny_phi3", "tiny_phi")


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(3, 256, (4, 40), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=TINY)
def dense(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = request.getfixturevalue(request.param)()
    canonicalise(model)
    return model


@torch.no_grad()
@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_cut_at_full_width(dense, fault: str):
    axes = finish(find_axes(dense, tokens()))
    model = projected_model(dense, axes, fault, dense.config.hidden_size)
    torch.testing.assert_close(model(tokens(1)).logits, dense(tokens(1)).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("fault", FAULTS)
def test_a_cut_changes_the_logits_and_leaves_the_dense_model_alone(dense, fault: str):
    before = dense(tokens(1)).logits
    model = projected_model(dense, finish(find_axes(dense, tokens())), fault, 16)
    assert not torch.allclose(model(tokens(1)).logits, before, atol=1e-2)
    assert torch.equal(dense(tokens(1)).logits, before)


@torch.no_grad()
def test_outputs_lie_in_their_own_axes_and_reads_leave_the_writers_alone(dense):
    axes = finish(find_axes(dense, tokens()))
    outputs = blocks(projected_model(dense, axes, "outputs", 16))
    reads = projected_model(dense, axes, "reads", 16)
    for block, whole, layer, pair in zip(outputs, blocks(dense), reads.model.layers, axes, strict=True):
        for module, around in zip((block.attention.o_proj, block.mlp.down_proj), pair, strict=True):
            rest = around.own[:, 16:].T @ module.weight
            torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-5, rtol=0)
            assert torch.linalg.matrix_rank(module.weight) == 16
        assert layer.mlp.down_proj.weight is whole.mlp.down_proj.weight


@torch.no_grad()
def test_axes_are_those_of_the_dense_states(dense):
    """The first MLP's own output, taken with a hook, is diagonal in its axes."""
    axes = finish(find_axes(dense, tokens()))
    caught = []
    handle = dense.model.layers[1].mlp.register_forward_hook(lambda *call: caught.append(call[2]))
    dense(tokens())
    handle.remove()
    rows = caught[0].flatten(0, 1)
    if dense.config.model_type == "phi":  # LayerNorm never sees the mean
        rows = rows - rows.mean(-1, keepdim=True)
    moment = axes[1][1].own.T @ (rows.T @ rows) @ axes[1][1].own
    torch.testing.assert_close(moment, moment.diagonal().diag(), atol=1e-3 * float(moment.max()), rtol=0)
    assert (moment.diagonal().diff() < 1e-3 * moment.max()).all()


@torch.no_grad()
def test_the_last_writer_is_whole_when_writes_are_cut(dense):
    axes = finish(find_axes(dense, tokens()))
    model = projected_model(dense, axes, "writes", 16)
    assert model.model.layers[-1].mlp.down_proj.weight is dense.model.layers[-1].mlp.down_proj.weight
    assert torch.linalg.matrix_rank(model.model.layers[0].mlp.down_proj.weight) == 16


@torch.no_grad()
def test_faults_are_measured_by_name(dense):
    axes = finish(find_axes(dense, tokens()))
    width = dense.config.hidden_size
    measured = finish(measure_faults(dense, axes, width, tokens(2)))
    assert list(measured) == list(FAULTS)
    assert list(measured.values()) == pytest.approx([finish(perplexity(dense, tokens(2)))] * 4, rel=1e-3)


def test_unknown_faults_and_widths_are_refused(dense):
    axes = finish(find_axes(dense, tokens()))
    with pytest.raises(UserError, match="width is 0"):
        projected_model(dense, axes, "reads", 0)
