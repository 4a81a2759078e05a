"""Distillation that also trains on texts that the slice writes itself, against loops in its answers.

A slice that is trained on the texts of others alone never sees what follows its own choices. Its greedy texts loop more
than the dense model's, and within a loop the dense model, too, expects that it goes on. So the slice learns the dense
model's distributions in its own texts up to where they loop, and wherever it repeats what it wrote and the dense model
thinks another token plausible, to prefer that. This costs KL where text repeats itself for a reason, so there the other
texts have more weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.core.progress import Pause, no_pause
from intraslice.core.registry import RECOVERIES
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.hidden_states import Tokens, next_token_logits
from intraslice.recovery.distill import Distillation, Lesson, Logs
from intraslice.samples import SAMPLES_PER_BATCH, KeptStates, states_of

# After which fractions of other steps the slice writes, and its steps per other. Where many follow, loops come back.
SHORT, LONG, LONG_STEPS = ((0.63, 0.74), 0.05), ((0.6, 0.72, 0.84, 0.94), 0.12), 600
LENGTH, WRITTEN = 128, 0.625  # tokens of a text, and the fraction of them that the slice writes
RUN, LOOP = 4, 3  # a text loops from where a run of so many tokens comes so often
NATURAL = 4.0  # weight of the loss where other texts repeat themselves
MARGIN = 0.5  # nats by which the slice shall prefer another token to one that repeats
PLAUSIBLE = 3.0  # nats that the other may be less likely to the dense model: within words and phrases, none is


class OwnTexts(NamedTuple):
    """Texts that a slice continued greedily. A position stands for the choice of the token after it."""

    tokens: Int[Tensor, "texts length"]
    scored: Bool[Tensor, "texts length"]  # the slice's choices before the text loops
    repeated: Bool[Tensor, "texts length"]  # its choices that complete a run which came before in what it wrote


def lengths(length: int) -> tuple[int, int]:
    """The tokens that a text begins with, and those that the slice writes, for training sequences of this length."""
    whole = min(LENGTH, length)
    written = round(WRITTEN * whole)
    return whole - written, written


@torch.no_grad()
def write_texts(
    model: PreTrainedModel, prefixes: Int[Tensor, "texts prefix"], written: int, pause: Pause = no_pause
) -> OwnTexts:
    """Continue each prefix greedily by so many tokens, end tokens included; calls `pause` after each."""
    columns, cache = [prefixes], dict[str, Any]()
    for _ in range(written):
        logits, cache = next_token_logits(model, columns[-1], cache)
        columns.append(logits.argmax(-1, keepdim=True))
        pause()
    tokens = torch.cat(columns, dim=1)
    scored, repeated = torch.zeros_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    first = prefixes.shape[1] - 1
    for row, text in enumerate(tokens[:, first + 1 :].tolist()):
        times = occurrences(text)
        scored[row, first : first + len(list(takewhile(lambda time: time < LOOP, times)))] = True
        repeated[row, first:-1] = torch.tensor(times, device=tokens.device) > 1
    return OwnTexts(tokens, scored, repeated)


def occurrences(text: Sequence[int]) -> list[int]:
    """For each token of a text, how often the run of `RUN` tokens that it completes has come, this time included."""
    seen: Counter[tuple[int, ...]] = Counter()
    times = [0] * min(RUN - 1, len(text))
    for run in zip(*(text[start:] for start in range(RUN)), strict=False):
        seen[run] += 1
        times.append(seen[run])
    return times


def weights_of(text: Int[Tensor, " length"]) -> Float[Tensor, " length"]:
    """Of the loss in a text by others: `NATURAL` where the next token completes a run which came before, else 1."""
    times = torch.tensor([*occurrences(text.tolist())[1:], 0], device=text.device)
    return torch.where(times > 1, NATURAL, 1.0)


def repetition_losses(log_probs: Logs, target: Logs, chosen: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """What is missing until the slice prefers another token to the chosen one by `MARGIN` nats, at least 0.

    The other token is the one that the dense model expects most (`target` are its log-probabilities). Where that is
    less likely to it than the chosen one by more than `PLAUSIBLE` nats, the loss is 0.
    """
    other = target.scatter(-1, chosen[:, None], -torch.inf).argmax(-1)
    lead, dense_lead = (
        (values.gather(-1, chosen[:, None]) - values.gather(-1, other[:, None]))[:, 0] for values in (log_probs, target)
    )
    return functional.relu(lead + MARGIN) * (dense_lead < PLAUSIBLE)


@dataclass(frozen=True)
class DistillationOnOwnTexts(Distillation):
    """At the cost of `Distillation`, with smaller updates, also on texts that the slice writes, in turns."""

    name = "distill-own"
    label = "Distillation with own texts"
    explanation = (
        "as distill, and on texts that the sliced model writes, where it learns not to repeat itself: its answers loop "
        "less often, but it is less close to the dense model"
    )

    rank: int = 32  # costs less, which pays for the own texts
    schedule: tuple[tuple[float, ...], float] | None = None  # SHORT, or LONG for so many steps
    repetition_weight: float = 2.0  # of the losses where it repeats itself; that of the KL divergence is 1

    def products(
        self, dense: PreTrainedModel, sliced: PreTrainedModel, sequences: int, length: int, epochs: int
    ) -> int:
        """Own texts are written (by the head, only what is new), read by the dense model, and trained on."""
        size, (begun, written) = self._texts_per_step(length), lengths(length)
        steps, head = self.steps(sequences, length, epochs), dense.lm_head.weight.numel()
        layers = decoder_parameters(dense) + decoder_parameters(sliced) + self.update_weights(sliced)
        per_token = layers + head + self.token_products(dense, sliced, size * (begun + written))
        of_text = (begun + written) * per_token + written * head
        others = sum(map(len, steps)) * length * self.token_products(dense, sliced, length)
        return steps.count([]) * size * of_text + others

    def steps(self, sequences: int, length: int, epochs: int) -> list[list[int]]:
        """The steps without own texts, and an empty list for each step on own texts."""
        steps = super().steps(sequences, length, epochs)
        turns, share = self.schedule or (SHORT if len(steps) < LONG_STEPS else LONG)
        count = round(share * len(steps) / len(turns))
        for turn in [round(fraction * len(steps)) for fraction in reversed(turns)]:
            steps[turn:turn] = [[] for _ in range(count)]
        return steps

    def lessons(
        self,
        dense: PreTrainedModel,
        sliced: PreTrainedModel,
        tokens: Tokens,
        states: KeptStates,
        steps: Iterable[list[int]],
        pause: Pause,
    ) -> Iterator[list[Lesson]]:
        """Own texts are written by the slice as it is at their turn, from parts of `tokens` on."""
        draws, length = torch.Generator().manual_seed(self.seed), tokens.shape[1]
        size, (begun, written) = self._texts_per_step(length), lengths(length)
        for is_own, turn in groupby(steps, key=lambda indices: not indices):
            if not is_own:
                for lessons in super().lessons(dense, sliced, tokens, states, turn, pause):
                    yield [lesson._replace(weights=(weights_of(lesson.tokens),)) for lesson in lessons]
                continue
            count = size * len(list(turn))
            rows = torch.randint(len(tokens), (count, 1), generator=draws)
            starts = torch.randint(length - begun + 1, (count, 1), generator=draws)
            together = size * max(1, SAMPLES_PER_BATCH // size)
            for beginnings in tokens[rows, starts + torch.arange(begun)].split(together):
                texts = write_texts(sliced, beginnings, written, pause)
                for part, *masks in zip(*(tensor.split(size) for tensor in texts), strict=True):
                    yield [Lesson(part, *states_of(dense, part), tuple(masks))]

    def losses(
        self, log_probs: Logs, target: Logs, following: Int[Tensor, " tokens"], *weights: Shaped[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        """As without own texts, weighted; in these, with the masks of `OwnTexts`."""
        weight, *repeated = weights
        losses = weight * super().losses(log_probs, target, following)
        for mask in repeated:
            missing = repetition_losses(log_probs, target, following.clamp_min(0))
            losses = losses + self.repetition_weight * mask * missing
        return losses

    def _texts_per_step(self, length: int) -> int:
        return max(1, self.tokens_per_step // sum(lengths(length)))


RECOVERIES.register(DistillationOnOwnTexts())
