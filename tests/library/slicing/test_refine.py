"""Refining a selection: against cases whose optimum is known, and never for the worse."""

from dataclasses import fields, replace

import pytest
import torch
from random_weights import mlp_weights, random
from test_mlp import sliced_on
from torch import Tensor
from torch.testing import assert_close

from intraslice.core.progress import Progress
from intraslice.core.weights import MLPWeights
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.refine import RefineConfig, refine_mlp

HIDDEN, KEPT = 24, 16
TOKENS = 4096
LONG = RefineConfig(passes=20, batch=128, rate=0.05, noise=0.2, patience=20)


def make_weights(neurons: int = 32, **options) -> MLPWeights:
    """As large as those of a trained MLP."""
    weights = mlp_weights(HIDDEN, neurons, **{"bias": False} | options)
    inner = {name: value * HIDDEN**-0.5 for name in ("gate", "up") if (value := getattr(weights, name)) is not None}
    return replace(weights, **inner, down=weights.down * neurons**-0.5)


def hidden_states(tokens: int = TOKENS, seed: int = 7) -> Tensor:
    """Tokens whose channels are correlated and of unequal size."""
    mixed = torch.eye(HIDDEN) + 0.2 * random(HIDDEN, HIDDEN, seed=8)
    return random(tokens, HIDDEN, seed=seed) * torch.linspace(0.5, 1.5, HIDDEN) @ mixed


def select(weights: MLPWeights, tokens: Tensor, width: int = KEPT) -> MLPWeights:
    rows = SlicedMLP(weights).inner(tokens[None].to(weights.up.dtype))[0].float()
    return sliced_on(weights, rows, width)


def error(sliced: MLPWeights, dense: MLPWeights, tokens: Tensor) -> float:
    tokens = tokens[None].to(dense.up.dtype)
    expected = SlicedMLP(dense)(tokens).float()
    return ((SlicedMLP(sliced)(tokens).float() - expected).norm() / expected.norm()).item()


def refined(weights: MLPWeights, selected: MLPWeights, tokens: Tensor, config: RefineConfig = LONG) -> MLPWeights:
    return refine_mlp(weights, selected, [tokens], config)


def test_comes_close_to_reduced_rank_regression_where_the_mlp_is_linear():
    """Of linear maps of one rank, the best is known: the output's leading principal axes (Eckart and Young)."""
    weights = make_weights(64, gated=False, activation="linear")
    tokens, fresh = hidden_states(), hidden_states(seed=10)
    selected = select(weights, tokens, width=8)
    variance = torch.linalg.svdvals(SlicedMLP(weights)(fresh[None])[0]).square()
    optimum = (variance[8:].sum() / variance.sum()).sqrt().item()
    assert error(selected, weights, fresh) > 1.3 * optimum
    assert optimum * 0.999 < error(refined(weights, selected, tokens), weights, fresh) < 1.05 * optimum


@pytest.mark.parametrize(
    ("gated", "bias", "dtype", "largest"),
    [
        (True, False, torch.float32, 1),  # as in Llama
        (False, True, torch.float32, 1),  # as in Phi
        (True, True, torch.bfloat16, 1),
        (True, False, torch.float32, 20),  # one token in 64 carries nearly all the energy, yet the others gain
    ],
)
def test_better_than_the_selection_on_fresh_tokens(gated, bias, dtype, largest):
    weights = make_weights(gated=gated, bias=bias)
    tensors = {f.name: v for f in fields(weights) if isinstance(v := getattr(weights, f.name), Tensor)}
    weights = replace(weights, **{name: tensor.to(dtype) for name, tensor in tensors.items()})
    tokens, fresh = hidden_states(), hidden_states(seed=10)
    tokens[::64] *= largest
    selected = select(weights, tokens)
    result = refined(weights, selected, tokens.to(dtype))
    assert error(result, weights, fresh) < 0.97 * error(selected, weights, fresh)
    assert all(getattr(result, name).dtype == dtype for name in tensors)
    assert (result.up.shape, result.down.shape) == ((KEPT, HIDDEN), (HIDDEN, KEPT))


@pytest.mark.parametrize("rate", [30.0, 1e30])
def test_a_run_that_goes_astray_is_not_kept(rate):
    weights, tokens = make_weights(), hidden_states()
    selected = select(weights, tokens)
    assert refined(weights, selected, tokens, RefineConfig(rate=rate)) is selected


def test_what_only_fits_the_training_tokens_is_not_kept():
    """Held-out tokens unlike the others, by far."""
    weights = make_weights()
    tokens = hidden_states(512)
    tokens[:-64] = tokens[:1] + 0.01 * random(448, HIDDEN, seed=11)
    selected = select(weights, tokens)
    result = refined(weights, selected, tokens, RefineConfig(passes=20, batch=64, rate=0.3, noise=0.0))
    assert error(result, weights, tokens[-64:]) <= error(selected, weights, tokens[-64:])


def test_stops_when_nothing_gets_better():
    weights, tokens = make_weights(), hidden_states()
    config = RefineConfig(passes=10, batch=TOKENS, rate=30.0, patience=3)
    events: list[Progress] = []
    refine_mlp(weights, select(weights, tokens), [tokens], config, events.append)
    assert events == [Progress("refine", done, 10) for done in (1, 2, 3)]


def test_the_same_seed_gives_the_same_weights():
    weights, tokens = make_weights(), hidden_states()
    selected = select(weights, tokens)
    config = RefineConfig(passes=2, batch=128)
    first, again = (refined(weights, selected, tokens, config) for _ in range(2))
    other = refined(weights, selected, tokens, replace(config, seed=1))
    for name in ("gate", "up", "down"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_a_layer_whose_mlp_is_silent_is_left_alone():
    weights, tokens = replace(make_weights(), down=torch.zeros(HIDDEN, 32)), hidden_states(256)
    selected = select(weights, tokens)
    assert_close(refined(weights, selected, tokens, RefineConfig()).down, torch.zeros(HIDDEN, KEPT))
