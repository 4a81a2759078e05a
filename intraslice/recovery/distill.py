"""Distillation: trains a sliced model for a short time to match the dense model's distributions.

Slicing fits each layer to its own output; this trains all layers together, with Adam, for the next-token distribution
(Hinton et al., arXiv 1503.02531), on the calibration's text and on text that the dense model samples itself, which
carries over better to other texts. The loss is the KL divergence from the dense model, on a sample of the vocabulary.
What is trained is a low-rank update of each linear map, which is added to its matrix in the end. Sizes, and tensors
that the two models share, do not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import linear
from transformers import PreTrainedModel

from intraslice.core.errors import Message, NumericalError
from intraslice.core.progress import Pause, Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.core.registry import RECOVERIES
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.hidden_states import LOGIT_TOKENS, Tokens, logits_in_chunks
from intraslice.pretrained.memory import available_bytes, backward_bytes_per_token, no_room
from intraslice.recovery.registry import Recovery
from intraslice.samples import KeptStates, kept_samples, kept_states, last_hidden, likely_size

# Standard deviation of the right factors: the smaller, the faster Adam turns them. A recovery's results depend on it.
INITIAL = 0.05
DRAWN_PER_LIKELY = 0.5  # tokens drawn from the rest of the vocabulary
Logs = Float[Tensor, "tokens sampled"]  # of a sample of the vocabulary: logits or log-probabilities


class LowRankUpdate:
    """Adds `scale * left @ right` to the matrix of a linear map. `left` is 0 at first.

    With the scale, a change of all entries of `left` by 0.001 changes the matrix by 0.001 times its root mean square.
    """

    def __init__(self, module: nn.Linear, rank: int, generator: torch.Generator) -> None:
        weight = module.weight
        right = INITIAL * torch.randn(rank, weight.shape[1], generator=generator)
        self.right = right.to(weight.device).requires_grad_()
        self.left = torch.zeros(weight.shape[0], rank, device=weight.device, requires_grad=True)
        self.scale = weight.float().square().mean().sqrt().item() / (INITIAL * rank**0.5)

    def hook(
        self, module: nn.Linear, inputs: tuple[Any, ...], output: Float[Tensor, "*tokens rows"]
    ) -> Float[Tensor, "*tokens rows"]:
        """Adds the update's product with the inputs to the output, as a forward hook."""
        narrow = linear(inputs[0], (self.scale * self.right).to(output.dtype))
        return output + linear(narrow, self.left.to(output.dtype))

    @torch.no_grad()
    def merge_(self, module: nn.Linear) -> None:
        """Add the update to the matrix, rounding once."""
        module.weight.copy_(torch.addmm(module.weight.float(), self.left, self.right, alpha=self.scale))


@contextmanager
def low_rank_updates(modules: Sequence[nn.Linear], rank: int, seed: int) -> Iterator[list[Tensor]]:
    """Give every linear map an update while the context is open. Yields the factors, float32 tensors to train.

    On exit the updates are added to the matrices; after an exception they are dropped. Each map must have a matrix of
    its own, and be called with one positional argument.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = [LowRankUpdate(module, rank, generator) for module in modules]
    with ExitStack() as hooks:
        for module, update in zip(modules, updates, strict=True):
            hooks.enter_context(module.register_forward_hook(update.hook))
        yield [factor for update in updates for factor in (update.left, update.right)]
    for module, update in zip(modules, updates, strict=True):
        update.merge_(module)


@dataclass(frozen=True)
class SampledHead:
    """Logits of some tokens whose softmax estimates, on these tokens, that of all.

    The likely tokens stand for themselves. Each of the others, drawn uniformly from the rest of the vocabulary, stands
    for several: the logarithm of their number is added to its logit. The sum of the exponentials is unbiased; of its
    logarithm, the bias is small where the likely tokens have most of the probability. Where two models agree, the
    gradient of their divergence is 0 on every sample.
    """

    likely: Int[Tensor, " likely"]  # ascending; the first tokens of the sample
    weight: Float[Tensor, "sampled hidden"]
    bias: Float[Tensor, " sampled"]

    def __call__(self, hidden: Float[Tensor, "tokens hidden"]) -> Logs:
        """Float32 logits of the sample."""
        return linear(hidden, self.weight).float() + self.bias

    def positions(self, tokens: Int[Tensor, "*tokens"]) -> Int[Tensor, "*tokens"]:
        """The columns of likely tokens."""
        return torch.searchsorted(self.likely, tokens)


def sampled_head(head: nn.Linear, likely: Int[Tensor, " likely"], generator: torch.Generator) -> SampledHead:
    """The rows of `head` for the likely tokens (ascending, on the CPU), and for others that are drawn."""
    likely = likely.long()
    drawn_size, others = sampled_size(head, len(likely)) - len(likely), head.out_features - len(likely)
    keys = torch.rand(head.out_features, generator=generator)
    keys[likely] = -1.0
    drawn = keys.topk(drawn_size).indices
    tokens = torch.cat([likely, drawn]).to(head.weight.device)
    stands_for = others / drawn_size if drawn_size else 1.0
    bias = torch.cat([torch.zeros(len(likely)), torch.full((drawn_size,), math.log(stands_for))]).to(tokens.device)
    if head.bias is not None:
        bias = bias + head.bias[tokens]
    return SampledHead(tokens[: len(likely)], head.weight[tokens], bias)


def sampled_size(head: nn.Linear, likely: int) -> int:
    """The size of the sample for so many likely tokens."""
    return min(likely + round(DRAWN_PER_LIKELY * likely), head.out_features)


FORMAT = "5"  # of the training, including what `SampledHead` draws
IGNORE_INDEX = -100  # label of the last token
BYTES_PER_FACTOR = 16  # of a low-rank update: the float32 value, its gradient and two moments of Adam
# Bytes of memory per byte of tensors. At 135 M it was 0.9 in bfloat16 and 0.7 in float32, without the kept states.
ALLOCATED = 1.5


class Lesson(NamedTuple):
    """One or more texts of equal length, with what the dense model predicts in them."""

    tokens: Int[Tensor, "*texts length"]
    hidden: Float[Tensor, "tokens hidden"]  # the dense model's final states
    likely: Int[Tensor, " likely"]  # tokens, as in `KeptStates`
    weights: tuple[Shaped[Tensor, "*texts length"], ...] = ()  # for `losses`


@dataclass(frozen=True)
class Distillation(Recovery):
    """Trains low-rank updates of the sliced layers' linear maps with Adam to match the dense model's distributions."""

    name = "distill"
    label = "Distillation"
    explanation = (
        "trains low-rank updates (LoRA) of the sliced layers' weight matrices to match the dense model's next-token "
        "distributions, on the calibration text and on samples of the dense model"
    )

    rank: int = 64  # of the updates
    learning_rate: float = 0.002  # change of a matrix per step, relative to it; falls to 0 linearly
    warm_up: int = 6  # steps
    tokens_per_step: int = 512
    samples: float = 0.375  # fraction of the training tokens that the dense model samples
    temperature: float = 1.0  # of the samples
    seed: int = 0  # of the samples, the updates and the order of the training

    @property
    def settings(self) -> str:
        return f"{FORMAT} {self}"

    def training_bytes(self, dense: PreTrainedModel, weights: int, length: int) -> int:
        activations = length * backward_bytes_per_token(dense.config, dense.dtype)
        logits = 8 * LOGIT_TOKENS * _sampled_tokens(dense, length) * 4
        # Of a matrix with one side as wide as the residual stream, and the other at least that.
        factors = 2 * self.rank * weights // dense.config.hidden_size
        return round(ALLOCATED * (activations + logits + BYTES_PER_FACTOR * factors))

    def recover(
        self, dense: PreTrainedModel, sliced: PreTrainedModel, tokens: Tokens, epochs: int, *, progress: ProgressOption
    ) -> PreTrainedModel:
        """Train updates of the linear maps of `sliced` on `tokens` and on samples of the dense model, and add them.

        The first time for a dense model and a text, the samples and a dense forward come first. There is no early
        stopping: in the first epoch every step sees new text. Raises UserError if the training does not fit into
        memory, NumericalError if it diverges. After these, or an exception of `progress`, the weights are as before.
        """
        report = progress_callback(progress)
        shared = {id(parameter) for parameter in dense.parameters()}
        modules = [module for module in _linear_maps(sliced) if id(module.weight) not in shared]
        if not modules or epochs == 0:
            return sliced
        required = self.training_bytes(dense, sum(module.weight.numel() for module in modules), tokens.shape[1])
        if required > (free := available_bytes(str(sliced.device))):
            raise no_room(Message("distillation"), required, free, sliced.device, Message("slice without recovery"))
        if size := self.sampled_sequences(len(tokens)):
            samples = kept_samples(dense, (size, tokens.shape[1]), self.temperature, self.seed, report)
            tokens = torch.cat([tokens.cpu(), samples])
        states = kept_states(dense, tokens, report)
        requiring = [weight for weight in sliced.parameters() if weight.requires_grad]  # only the updates are trained
        try:
            for weight in requiring:
                weight.requires_grad_(False)
            with low_rank_updates(modules, self.rank, self.seed) as factors:
                steps = self.steps(len(tokens), tokens.shape[1], epochs)
                lessons = partial(self.lessons, dense, sliced, tokens.to(sliced.device), states, steps)
                self._train_(sliced, factors, lessons, len(steps), report)
        finally:
            for weight in requiring:
                weight.requires_grad_(True)
        return sliced

    def token_products(self, dense: PreTrainedModel, sliced: PreTrainedModel, length: int) -> int:
        """Of the layers two, forward and backward for inputs, and three with the updates, as if every map had one.

        Of the head, three with each row of the sample: on the dense states, forward, and backward for inputs.
        """
        sampled = 3 * _sampled_tokens(dense, length) * dense.config.hidden_size
        return 2 * decoder_parameters(sliced) + 3 * self.update_weights(sliced) + sampled

    def sampled_sequences(self, sequences: int) -> int:
        """The number of sampled sequences that are added to `sequences` of the text."""
        return round(sequences * self.samples / (1 - self.samples))

    def update_weights(self, sliced: PreTrainedModel) -> int:
        """Numbers in the updates, as if every map had one."""
        return self.rank * sum(map(sum, (module.weight.shape for module in _linear_maps(sliced))))

    def steps(self, sequences: int, length: int, epochs: int) -> list[list[int]]:
        """The sequences of each step, in random order."""
        generator = torch.Generator().manual_seed(self.seed)
        batch = max(1, self.tokens_per_step // length)
        orders = (torch.randperm(sequences, generator=generator) for _ in range(epochs))
        return [indices.tolist() for order in orders for indices in order.split(batch)]

    def lessons(
        self,
        dense: PreTrainedModel,
        sliced: PreTrainedModel,
        tokens: Tokens,
        states: KeptStates,
        steps: Iterable[list[int]],
        pause: Pause,
    ) -> Iterator[list[Lesson]]:
        """What each step trains on, made at its turn; calls `pause` while that takes long."""
        for indices in steps:
            yield [Lesson(tokens[index], states.hidden[index], states.likely[index]) for index in indices]

    def losses(
        self, log_probs: Logs, target: Logs, following: Int[Tensor, " tokens"], *weights: Shaped[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        """The loss of each token, from both models' log-probabilities of the one after it, whose column it is.

        `IGNORE_INDEX` stands for none. `weights` are those of the lesson.
        """
        return functional.kl_div(log_probs, target, log_target=True, reduction="none").sum(-1)

    def _train_(
        self,
        model: PreTrainedModel,
        factors: list[Tensor],
        lessons: Callable[[Pause], Iterator[list[Lesson]]],
        steps: int,
        progress: ProgressCallback,
    ) -> None:
        optimiser, draws, done = torch.optim.Adam(factors), torch.Generator().manual_seed(self.seed), 0

        def pause() -> None:
            progress(Progress("distill", done, steps))

        for texts in lessons(pause):
            for lesson in texts:
                head = sampled_head(model.lm_head, lesson.likely.cpu(), draws)
                self._add_gradients_(model, lesson, head, 1 / len(texts))
                pause()
            factor = min(1.0, (done + 1) / self.warm_up) * (1 - done / steps)
            optimiser.param_groups[0]["lr"] = self.learning_rate * factor
            optimiser.step()
            optimiser.zero_grad()
            done += 1
            pause()
        if not all(torch.isfinite(factor).all() for factor in factors):
            raise NumericalError("distillation diverged; slice without recovery, or calibrate on other text")

    def _add_gradients_(self, model: PreTrainedModel, lesson: Lesson, head: SampledHead, scale: float) -> None:
        """Add `scale` times the gradient of the texts' mean loss, in nats per token, to the gradients."""
        following = functional.pad(
            head.positions(lesson.tokens[..., 1:].contiguous()), (0, 1), value=IGNORE_INDEX
        ).flatten()
        weights = [weight.flatten() for weight in lesson.weights]
        with torch.enable_grad():
            hidden = last_hidden(model, lesson.tokens)
            leaf = hidden.detach().requires_grad_()
            chunks = logits_in_chunks(head, leaf, lesson.hidden.to(leaf.device), following, *weights)
            for logits, dense_hidden, *others in chunks:
                with torch.no_grad():
                    target = head(dense_hidden).log_softmax(-1)
                (scale / len(leaf) * self.losses(logits.log_softmax(-1), target, *others).sum()).backward()
            hidden.backward(leaf.grad)


def _sampled_tokens(dense: PreTrainedModel, length: int) -> int:
    """The size of the vocabulary's sample for a sequence."""
    return sampled_size(dense.lm_head, likely_size(dense, length))


def _linear_maps(model: PreTrainedModel) -> list[nn.Linear]:
    """The linear maps of the layers."""
    linear_maps = (module for module in model.model.layers.modules() if isinstance(module, nn.Linear))
    return [module for module in linear_maps if module.weight.numel()]


RECOVERIES.register(Distillation())
