"""Short questions with known answers: which of them a model answers, and which it only recognises.

A question is a text that breaks off, without a chat template. The model *selects* the answer with the highest
log-probability per byte after it, of three or four, and *says* what it writes there greedily. `facts.json` has the
questions, in groups that the dense default model mostly answers; no single question was chosen by its result.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.progress import Pause, Progress, ProgressOption, no_pause, progress_callback
from intraslice.evaluation.answers import greedy_answers
from intraslice.evaluation.generation import answer_text, prompt_tokens
from intraslice.evaluation.perplexity import head_losses
from intraslice.modeling.hidden_states import TOKENS_PER_BATCH, embed, last_states, require_model

LANGUAGES = ("en", "de")
BATCH = 48  # questions; a pass over them takes at most half a second on the default model
EXTRA_TOKENS = 4  # of a completion, after as many as the longest right answer has
LEVELS = ("neither", "selects", "says")  # a model that says an answer need not select it
Level = Literal["neither", "selects", "says"]


class Question(NamedTuple):
    """A text that breaks off before a space, and the answers that may follow it, the right one first."""

    group: str
    prompt: str
    answers: tuple[str, ...]


class EncodedQuestion(NamedTuple):
    """A question, the tokens of its prompt, and those of each answer after it."""

    question: Question
    prompt: list[int]
    answers: list[list[int]]


@dataclass(frozen=True)
class Fact:
    """A model's answer to a question."""

    chosen: int  # index of the answer with the highest log-probability per byte; 0 is the right one
    probability: float  # of the right answer after the prompt
    completion: str  # what the model writes greedily, as far as it was asked to
    says: bool  # whether that begins with the right answer, as whole words

    @property
    def level(self) -> Level:
        """Whether the model says the right answer, selects it only, or neither."""
        return "says" if self.says else "neither" if self.chosen else "selects"


@cache
def fact_questions(language: str = "en") -> tuple[Question, ...]:
    """The questions in one of `LANGUAGES`, group by group."""
    groups = json.loads(Path(__file__).with_name("facts.json").read_text(encoding="utf-8"))[language]
    return tuple(Question(group, prompt, tuple(answers)) for group in groups for prompt, *answers in groups[group])


def encode_questions(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question] = fact_questions()
) -> list[EncodedQuestion]:
    """The tokens of questions: of each answer those that are added to the prompt's, as in lm-eval."""
    encode = partial(prompt_tokens, tokenizer, chat=False)
    prompts = [encode(question.prompt) for question in questions]
    return [
        EncodedQuestion(question, prompt, [encode(f"{question.prompt} {a}")[len(prompt) :] for a in question.answers])
        for question, prompt in zip(questions, prompts, strict=True)
    ]


@torch.no_grad()
def measure_facts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[EncodedQuestion],
    stage: str = "facts",
    *,
    progress: ProgressOption = True,
) -> tuple[Fact, ...]:
    """The model's answers to all questions, in their order. `progress` counts questions."""
    require_model(model)
    report, facts = progress_callback(progress), dict[int, Fact]()
    order = sorted(range(len(questions)), key=lambda index: len(questions[index].prompt))
    report(Progress(stage, 0, len(questions)))
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        batch = [questions[index] for index in indices]
        pause = partial(report, Progress(stage, start, len(questions)))
        facts.update(zip(indices, _ask(model, tokenizer, batch, pause), strict=True))
        report(Progress(stage, start + len(batch), len(questions)))
    return tuple(facts[index] for index in range(len(questions)))


def _ask(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[EncodedQuestion], pause: Pause
) -> list[Fact]:
    log_probs = answer_log_probs(model, questions, pause)
    tokens = EXTRA_TOKENS + max(len(question.answers[0]) for question in questions)
    prompts = [question.prompt for question in questions]
    written, facts = greedy_answers(model, prompts, tokens, progress=lambda _: pause()), []
    for (question, *_), values, answer_tokens in zip(questions, log_probs, written, strict=True):
        completion = answer_text(tokenizer, answer_tokens).strip()
        scores = [value / len(answer.encode()) for value, answer in zip(values, question.answers, strict=True)]
        chosen = max(reversed(range(len(scores))), key=scores.__getitem__)  # not the right one if two are equal, or NaN
        says = re.match(rf"{re.escape(question.answers[0])}(?!\w)", completion) is not None
        facts.append(Fact(chosen, math.exp(values[0]), completion, says))
    return facts


@torch.no_grad()
def answer_log_probs(
    model: PreTrainedModel, questions: Sequence[EncodedQuestion], pause: Pause = no_pause
) -> list[list[float]]:
    """Log-probability in nats of each answer after its prompt. Answers that differ in their last token share a row."""
    rows: dict[tuple[int, ...], int] = {}
    places: list[tuple[int, int]] = []  # row and position of the state before each token of an answer
    targets: list[int] = []
    lengths = [[len(answer) for answer in question.answers] for question in questions]
    for question in questions:
        for answer in question.answers:
            row = rows.setdefault((*question.prompt, *answer[:-1]), len(rows))
            places += [(row, len(question.prompt) - 1 + position) for position in range(len(answer))]
            targets += answer
    # The last token's state is left out. Tokens after those of a row do not change what is before them.
    tokens = pad_sequence([torch.tensor([*row, 0]) for row in rows], batch_first=True)
    chunks = tokens.split(max(1, TOKENS_PER_BATCH // tokens.shape[1]))
    states = torch.cat([last_states(model, model.model.layers, embed(model, chunk), pause) for chunk in chunks])
    indices = torch.tensor([row * (tokens.shape[1] - 1) + position for row, position in places])
    losses, _ = head_losses(model, states[indices.to(states.device)], torch.tensor(targets), None, pause)
    parts = iter(losses.split([length for each in lengths for length in each]))
    return [[-next(parts).sum().item() for _ in each] for each in lengths]


def fact_changes(dense: Sequence[Fact], other: Sequence[Fact]) -> tuple[list[int], list[int]]:
    """Indices of the questions that the other model has lost (its level is lower than the dense model's) and gained.

    First what the dense model was most sure of: those with the highest probability of the right answer.
    """
    steps = [LEVELS.index(b.level) - LEVELS.index(a.level) for a, b in zip(dense, other, strict=True)]
    order = sorted(range(len(steps)), key=lambda index: -dense[index].probability)
    return [index for index in order if steps[index] < 0], [index for index in order if steps[index] > 0]


def fact_counts(questions: Sequence[Question], facts: Sequence[Fact]) -> dict[str, dict[str, int]]:
    """How many right answers a model says, and selects, by group and for "all"; `of` is the number of questions."""
    counts = {}
    for group in (*dict.fromkeys(question.group for question in questions), "all"):
        pairs = zip(questions, facts, strict=True)
        among = [fact for question, fact in pairs if group in (question.group, "all")]
        says, selects = sum(fact.says for fact in among), sum(not fact.chosen for fact in among)
        counts[group] = {"says": says, "selects": selects, "of": len(among)}
    return counts


def facts_record(questions: Sequence[Question], facts: Mapping[str, Sequence[Fact]]) -> dict[str, Any]:
    """The counts of every model, and what each but the first, the dense one, has lost and gained, as JSON."""
    (_, dense), *others = facts.items()
    record: dict[str, Any] = {name: {"counts": fact_counts(questions, of_model)} for name, of_model in facts.items()}
    for name, other in others:
        for kind, indices in zip(("lost", "gained"), fact_changes(dense, other), strict=True):
            record[name][kind] = [_change(questions[index], dense[index], other[index]) for index in indices]
    return record


def _change(question: Question, dense: Fact, other: Fact) -> dict[str, Any]:
    right, *_ = question.answers
    row = {"group": question.group, "prompt": question.prompt, "answer": right, "probability": dense.probability}
    for name, fact in (("dense", dense), ("sliced", other)):
        row[name] = {"level": fact.level, "says": fact.completion, "selects": question.answers[fact.chosen]}
    return row
