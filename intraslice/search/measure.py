"""KL divergence of candidates on prepared text, and the predicted cost of every change of one module's level.

A candidate is put together from one-shot slices of its modules, which depend on the dense calibration alone: nothing is
fitted anew, and modules are kept for later candidates. The dense model's distributions are stored by their largest
entries and the probability of the rest, so that a candidate costs one sliced forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.fit_config import INTRASLICE_FIT
from intraslice.core.progress import Pause, no_pause
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import TOKENS_PER_BATCH, LayerArguments, Windows, embed, final_norm, last_states
from intraslice.modeling.residual import SlicedModule, output_of
from intraslice.planning.sizes import LayerPlan
from intraslice.search.evolution import Allocation, Levels
from intraslice.slicing.one_shot import Rankings, attention_from_moments, mlp_from_moments

LARGEST = 128  # stored entries of every dense distribution
WINDOWS_PER_BATCH = 2
CHUNK = 256  # tokens whose logits exist at a time
SMALLEST = 1e-6  # nats: KL of a window that relative changes are divided by
KEPT_LEVELS = 5  # of a module on average, whose slices are kept in memory


@dataclass(frozen=True)
class Distributions:
    """Next-token distributions by their largest entries: their tokens and log-probabilities, and that of the rest."""

    tokens: Int[Tensor, "scored largest"]
    logs: Float[Tensor, "scored largest"]
    rest: Float[Tensor, " scored"]

    def divergence(self, rows: slice, logits: Float[Tensor, "tokens vocabulary"]) -> Float[Tensor, " tokens"]:
        """KL divergence of these logits' distributions from the stored ones, with the rest as one entry, in nats.

        Never above the divergence of the whole distributions.
        """
        logs, rest = self.logs[rows], self.rest[rows]
        other, other_rest = _largest(logits, self.tokens[rows])
        return (logs.exp() * (logs - other)).sum(-1) + rest.exp() * (rest - other_rest)


def _largest(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of these tokens, and of all others together."""
    logs = logits.gather(-1, tokens) - logits.logsumexp(-1, keepdim=True)
    tiny = torch.finfo(logs.dtype).eps
    return logs, (1 - logs.exp().sum(-1)).clamp_min(tiny).log()


# Of some windows: what enters the first layer, its other arguments, and the dense model's distributions.
_Batch = tuple[Tensor, LayerArguments, Distributions]


@dataclass(frozen=True)
class _Layer:
    """A decoder layer with modules of some size."""

    block: Block
    attention: SlicedModule
    mlp: SlicedModule

    def run(self, hidden: Tensor, arguments: LayerArguments) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The layer's output, the inputs of both modules, and their outputs."""
        block = self.block
        read = block.attention_norm(hidden)
        attended = output_of(self.attention, read, arguments)
        after = hidden + _through(block.attention_output_norm, attended)
        mlp_read = read if block.parallel else block.mlp_norm(after)
        output = output_of(self.mlp, mlp_read, arguments)
        return after + _through(block.mlp_output_norm, output), [read, mlp_read], [attended, output]

    def backward(
        self, hidden: Tensor, arguments: LayerArguments, gradient: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """Inputs and outputs of both modules, the gradients of these outputs, and that of the layer's input."""
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            result, reads, outputs = self.run(hidden, arguments)
            *gradients, before = torch.autograd.grad(result, [*outputs, hidden], gradient)
        return [read.detach() for read in reads], [output.detach() for output in outputs], gradients, before


def _through(norm: nn.Module | None, output: Tensor) -> Tensor:
    return output if norm is None else norm(output)


@dataclass
class Candidates:
    """Measures allocations of one dense model.

    Every method takes a slice of the windows, so that candidates can be compared on the same few of them first.
    """

    model: PreTrainedModel
    stats: CalibrationStats
    levels: Levels
    windows: Windows
    pause: Pause = no_pause  # called after each layer and each chunk of logits, except during a backward pass
    _batches: dict[int, _Batch] = field(default_factory=dict, init=False, repr=False)  # by their first window
    _modules: dict[tuple[int, int], SlicedModule] = field(default_factory=dict, init=False, repr=False)
    _rankings: Rankings = field(default_factory=dict, init=False, repr=False)  # for all widths

    @torch.no_grad()
    def divergence(self, allocation: Allocation, windows: range) -> list[float]:
        """KL divergence of a candidate from the dense model in each of these windows, in nats per token."""
        layers, results = self._layers(allocation), []
        for first in windows[:: self._batch_size]:
            hidden, arguments, dense = self._batch(first, windows)
            for layer in layers:
                hidden, *_ = layer.run(hidden, arguments)
                self.pause()
            states = final_norm(self.model)(hidden)[:, :-1].flatten(0, 1)
            by_token = []
            for rows in _chunks(len(states)):
                by_token.append(dense.divergence(rows, self._logits(states[rows])))
                self.pause()
            results.append(torch.cat(by_token).double().view(len(hidden), -1).mean(1))
        return torch.cat(results).tolist()

    def costs(
        self, allocation: Allocation, alternatives: Mapping[int, Sequence[int]], windows: range
    ) -> dict[tuple[int, int], float]:
        """First-order relative change of KL, mean of the windows, with one module at another level, by both.

        The gradient of KL with respect to the output of a module inside the candidate, times the change of this output.
        One backward pass serves all modules.
        """
        layers = self._layers(allocation)
        costs = {(module, level): 0.0 for module, levels in alternatives.items() for level in levels}
        for first in windows[:: self._batch_size]:
            hidden, arguments, dense = self._batch(first, windows)
            inputs = [hidden]
            with torch.no_grad():
                for layer in layers:
                    inputs.append(layer.run(inputs[-1], arguments)[0])
                    self.pause()
            gradient = self._head_gradient(inputs.pop(), dense, len(windows))
            self.pause()
            for number in reversed(range(len(layers))):
                reads, outputs, gradients, gradient = layers[number].backward(inputs.pop(), arguments, gradient)
                for kind in range(2):
                    module = 2 * number + kind
                    for level in alternatives.get(module, ()):
                        with torch.no_grad():
                            change = output_of(self._module(module, level), reads[kind], arguments)
                            change = (change - outputs[kind]).float()
                            costs[module, level] += (change * gradients[kind].float()).sum().item()
                        self.pause()
        return costs

    def _head_gradient(self, hidden: Tensor, dense: Distributions, windows: int) -> Tensor:
        """The gradient of the mean of log KL in each of the windows with respect to the last layer's output."""
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            states = final_norm(self.model)(hidden)[:, :-1].flatten(0, 1)
            by_state: list[Tensor] = []
            divergences: list[Tensor] = []
            for rows in _chunks(len(states)):
                part = states[rows].detach().requires_grad_()
                divergences.append(dense.divergence(rows, self._logits(part)))
                by_state += torch.autograd.grad(divergences[-1].sum(), part)
            in_window = torch.cat(divergences).detach().view(len(hidden), -1).sum(1).clamp_min(SMALLEST)
            weights = (1 / (windows * in_window)).repeat_interleave(hidden.shape[1] - 1)[:, None]
            (gradient,) = torch.autograd.grad(states, hidden, torch.cat(by_state) * weights.to(states.dtype))
        return gradient

    @torch.no_grad()
    def _batch(self, first: int, windows: range) -> _Batch:
        """The batch of windows that starts at `first`. The dense model runs on first use."""
        if first not in self._batches:
            tokens = self.windows[first : min(first + self._batch_size, windows.stop)]
            embedded = embed(self.model, tokens)
            states = last_states(self.model, self.model.model.layers, embedded, self.pause)
            parts = []
            for rows in _chunks(len(states)):
                logits = self._logits(states[rows])
                largest = logits.topk(min(LARGEST, logits.shape[-1] - 1), -1).indices
                parts.append((largest, *_largest(logits, largest)))
                self.pause()
            dense = Distributions(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
            self._batches[first] = torch.cat(embedded.hidden), embedded.arguments[0], dense
        return self._batches[first]

    @cached_property
    def _blocks(self) -> list[Block]:
        return blocks(self.model)

    def _layers(self, allocation: Allocation) -> list[_Layer]:
        """The layers of a candidate."""
        modules = [self._module(*place) for place in enumerate(allocation)]
        return list(map(_Layer, self._blocks, modules[::2], modules[1::2]))

    @property
    def _batch_size(self) -> int:
        return max(1, min(WINDOWS_PER_BATCH, TOKENS_PER_BATCH // self.windows.shape[1]))

    def _logits(self, states: Tensor) -> Tensor:
        return self.model.lm_head(states).float()

    @torch.no_grad()
    def _module(self, module: int, level: int) -> SlicedModule:
        """A sliced module; the dense one at its largest level."""
        if (sliced := self._modules.get((module, level))) is not None:
            return sliced
        if len(self._modules) >= KEPT_LEVELS * len(self.levels.modules):
            self._modules.pop(next(iter(self._modules)))  # the oldest
        (layer, kind), size = self.levels.modules[module], self.levels[module, level]
        block, moments, tokens = self._blocks[layer], self.stats.layers[layer], self.stats.tokens
        if kind == "mlp":
            sliced = mlp_from_moments(block.mlp, size.width, moments, tokens, INTRASLICE_FIT, self._rankings)
        else:
            plan = LayerPlan(size.ratio, 0.0, size.heads, size.kv_heads, size.width, block.mlp.neurons)
            sliced = attention_from_moments(block.attention, plan, moments, tokens, INTRASLICE_FIT)
        self._modules[module, level] = sliced
        return sliced


def _chunks(count: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, count, CHUNK)]
