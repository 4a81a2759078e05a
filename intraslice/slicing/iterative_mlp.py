"""The iterative variant of the paper (section 3.4): learned projections of the cut neurons of an MLP, as released.

The best neurons are kept whole. The last few components of the sliced MLP are made from the other neurons, which are
split into consecutive slices: each slice learns projections of its own neurons for its own components, one after the
other. The projections then fuse into `up` and `gate`, and `down` is fitted again to the dense activations.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from intraslice.core.linalg import add_moment_, damp, solve
from intraslice.core.progress import Pause
from intraslice.core.weights import MLPWeights
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.mlp import select_neurons

SLICE = 1024 / 11008  # neurons of a slice and components that are learned, of all neurons (Llama-2-7B's, as released)
STEPS = 100  # of each slice, on one batch
SEQUENCES = 32  # of the batch
RATE = 1e-3  # learning rate of the first slice; that of each later one is half as large
DECAY, DECAY_STEPS = 0.8, 20
DAMPING = 0.01
SKIPPED = 2  # first and last layers, which are never refined
HELD_OUT = 4  # one of so many sequences judges a refinement

Inputs = Float[Tensor, "sequences tokens hidden"]  # of the MLP, after its norm


def learned_components(neurons: int, width: int) -> int:
    """Return how many of `width` kept components are learned: the multiple of 8 nearest to the released fraction."""
    return min(width, max(8, 8 * round(neurons * SLICE / 8)))


@dataclass(frozen=True)
class Projections:
    """The projections of `up` and `gate` of the cut neurons, neurons first; block-diagonal over the slices."""

    up: Float[Tensor, "cut components"]
    gate: Float[Tensor, "cut components"]


def target_axes(
    moment: Float[Tensor, "cut cut"], kept_axes: Int[Tensor, " components"]
) -> Float[Tensor, "cut components"]:
    """Return the map from activations to the targets of the components: `Q_t (Q_t^T Q_t)^-1`, damped.

    `Q_t^T = [S_kk^-1 S_kc, I]` expresses all cut neurons by those of `kept_axes`, with `moment` the damped S.
    """
    axes = moment.new_zeros(len(moment), len(kept_axes))
    axes[:] = solve(moment[kept_axes][:, kept_axes], moment[kept_axes]).T
    axes[kept_axes] = torch.eye(len(kept_axes), dtype=moment.dtype, device=moment.device)
    return solve(damp(axes.T @ axes, DAMPING), axes.T).T


def learn(
    dense: SlicedMLP,
    cut: Int[Tensor, " cut"],
    moment: Float[Tensor, "cut cut"],
    components: int,
    batch: Float[Tensor, "tokens hidden"],
    pause: Pause,
) -> Projections:
    """Learn the projections of the neurons `cut`, in index order, slice by slice, on `batch`.

    `moment` is the second moment of the activations of the neurons `cut`.
    """
    damped = damp(moment, DAMPING)
    chosen = damped.diagonal().topk(components).indices.sort().values
    axes = target_axes(damped, chosen).to(batch.dtype)
    start = batch.new_zeros(len(cut), components)
    start[chosen, torch.arange(components, device=batch.device)] = 1
    learned = Projections(start, start.clone())
    weights = dense.weights()
    gate, up = (
        nn.functional.linear(batch, weight[cut].float(), None if bias is None else bias[cut].float())
        for weight, bias in ((weights.gate, weights.gate_bias), (weights.up, weights.up_bias))
        if weight is not None
    )
    targets = (dense.activate(gate) * up) @ axes
    size = learned_components(dense.neurons, dense.neurons)
    for index, rows in enumerate(torch.arange(len(cut), device=batch.device).split(size)):
        columns = ((chosen >= rows[0]) & (chosen <= rows[-1])).nonzero().flatten()
        if len(columns):
            parts = _learn_slice(
                dense, gate[:, rows], up[:, rows], targets[:, columns], start[rows][:, columns], index, pause
            )
            for whole, part in zip((learned.gate, learned.up), parts, strict=True):
                whole[rows[:, None], columns] = part
    return learned


@torch.enable_grad()
def _learn_slice(
    dense: SlicedMLP, gate: Tensor, up: Tensor, targets: Tensor, start: Tensor, index: int, pause: Pause
) -> tuple[Tensor, Tensor]:
    """Return the projections of gate and up of one slice, from `start` (neurons, components)."""
    gate_map, up_map = (start.clone().requires_grad_() for _ in range(2))
    optimiser = torch.optim.Adam([gate_map, up_map], RATE * 0.5**index)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, DECAY_STEPS, DECAY)
    for _ in range(STEPS):
        made = (up @ up_map) * dense.activate(gate @ gate_map)
        loss = nn.functional.mse_loss(made, targets) * targets.shape[1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        pause()
    return gate_map.detach(), up_map.detach()


def projected(weights: MLPWeights, kept: Int[Tensor, " kept"], cut: Tensor, learned: Projections) -> MLPWeights:
    """Return the MLP of the kept neurons and of the learned components, whose `down` is not fitted yet."""
    assert weights.gate is not None

    def joined(tensor: Tensor, projection: Tensor) -> Tensor:
        made = (projection.T @ tensor[cut].float()).to(tensor.dtype)
        return torch.cat([tensor[kept], made])

    def joined_bias(bias: Tensor | None, projection: Tensor) -> Tensor | None:
        return None if bias is None else joined(bias, projection)

    width = len(kept) + learned.up.shape[1]
    return replace(
        weights,
        gate=joined(weights.gate, learned.gate),
        up=joined(weights.up, learned.up),
        gate_bias=joined_bias(weights.gate_bias, learned.gate),
        up_bias=joined_bias(weights.up_bias, learned.up),
        down=weights.down.new_zeros(len(weights.down), width),
    )


def fit_down(made: MLPWeights, dense: SlicedMLP, inputs: Inputs, pause: Pause) -> SlicedMLP:
    """Fit `down` of `made` by ridge least squares to the output of `dense` on `inputs`.

    With Z the activations of `made` and A the dense ones, `down = W_down (damp(Z^T Z)^-1 Z^T A)^T`. If `down` has a
    bias, the fit is centred, and the bias makes up for the difference of the means. Raises NumericalError where the
    damped moment is not finite or singular.
    """
    module, weights, (width, neurons) = SlicedMLP(made), dense.weights(), (len(made.up), dense.neurons)
    shapes = (width, width), (width, neurons), (width,), (neurons,)
    moment, cross, *means = (inputs.new_zeros(shape, dtype=torch.float) for shape in shapes)
    for rows in inputs.split(1):
        made_values, target = module.inner(rows), dense.inner(rows)
        add_moment_(moment, made_values)
        add_moment_(cross, made_values, target)
        for mean, values in zip(means, (made_values, target), strict=True):
            mean += values.flatten(0, 1).float().sum(0)
        pause()
    tokens = inputs.shape[0] * inputs.shape[1]
    made_mean, dense_mean = (mean / tokens for mean in means)
    if weights.down_bias is not None:
        moment = moment - tokens * torch.outer(made_mean, made_mean)
        cross = cross - tokens * torch.outer(made_mean, dense_mean)
    dense_down = weights.down.float()
    down, bias = dense_down @ solve(damp(moment, DAMPING), cross).T, weights.down_bias
    if bias is not None:
        bias = (bias.float() + dense_down @ dense_mean - down @ made_mean).to(bias.dtype)
    return SlicedMLP(replace(made, down=down.to(weights.down.dtype), down_bias=bias))


def output_error(sliced: SlicedMLP, dense: SlicedMLP, inputs: Inputs) -> float:
    """Return the sum of the squared differences between the outputs of `sliced` and `dense` on `inputs`."""
    return sum((sliced(rows) - dense(rows)).float().square().sum().item() for rows in inputs.split(1))


def refine(
    dense: SlicedMLP, order: Int[Tensor, " neurons"], width: int, inputs: Inputs, seed: int, pause: Pause
) -> SlicedMLP | None:
    """Return the refined MLP of `width` components, or None where held-out text is reconstructed less well than before.

    `order` has the neurons, best first: the selection keeps the first `width`. Projections are learned on a random
    batch of the first three quarters of the sequences of `inputs`, and judged on the last quarter with both fits on the
    first ones. The accepted MLP is fitted again on all sequences. Pauses after each step and each sequence. Raises
    NumericalError where a damped moment is not finite or singular.
    """
    weights, components = dense.weights(), learned_components(dense.neurons, width)
    seen, unseen = inputs.tensor_split([len(inputs) - max(1, len(inputs) // HELD_OUT)])
    if not len(seen):
        return None
    kept, cut = (part.sort().values for part in order.tensor_split([width - components]))
    moment = inputs.new_zeros(len(cut), len(cut), dtype=torch.float)
    for rows in seen.split(1):
        add_moment_(moment, dense.inner(rows)[..., cut])
        pause()
    drawn = torch.randperm(len(seen), generator=torch.Generator().manual_seed(seed))[:SEQUENCES]
    batch = seen[drawn.to(seen.device)].flatten(0, 1).float()
    refined = projected(weights, kept, cut, learn(dense, cut, moment, components, batch, pause))
    best = order[:width].sort().values
    selected = select_neurons(weights, best, weights.down[:, best], weights.down_bias)
    errors = [output_error(fit_down(made, dense, seen, pause), dense, unseen) for made in (refined, selected)]
    return fit_down(refined, dense, inputs, pause) if errors[0] <= errors[1] else None
