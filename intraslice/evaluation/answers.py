"""Greedy answers to fifty fixed prompts: how often they loop, how soon they differ from the dense model's, how varied
they are. Perplexity scores the next token of other people's text, and does not show that a model repeats itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.evaluation.generation import end_tokens, prompt_tokens
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import next_token_logits

LOOP_TOKENS, LOOP_REPEATS = 4, 3  # an answer loops if a 4-gram comes three times
NGRAM = 3  # tokens, of the fraction of distinct n-grams
FORMAT = "2"
ANSWER_TOKENS = 64


class AnswerStatistics(NamedTuple):
    """Statistics of several answers."""

    loops: float  # fraction of the answers in which a 4-gram comes three times
    tokens_before_divergence: float  # mean number of tokens that an answer has in common with the dense model's
    answer_tokens: float  # mean length of an answer; one that ends early has fewer chances to loop
    distinct_3grams: float  # fraction of all 3-grams within answers that are the first of their kind in their answer


def answer_statistics(answers: Sequence[Sequence[int]], dense: Sequence[Sequence[int]]) -> AnswerStatistics:
    """Statistics of the tokens of answers, where `dense` has the dense model's answers to the same prompts."""
    counts = [ngrams(answer, NGRAM) for answer in answers]
    common = [common_tokens(answer, other) for answer, other in zip(answers, dense, strict=True)]
    return AnswerStatistics(
        loops=sum(map(has_loop, answers)) / len(answers),
        tokens_before_divergence=sum(common) / len(common),
        answer_tokens=sum(map(len, answers)) / len(answers),
        distinct_3grams=sum(map(len, counts)) / max(1, sum(count.total() for count in counts)),
    )


def has_loop(answer: Sequence[int]) -> bool:
    """Whether any `LOOP_TOKENS` consecutive tokens come `LOOP_REPEATS` times or more."""
    return max(ngrams(answer, LOOP_TOKENS).values(), default=0) >= LOOP_REPEATS


def ngrams(tokens: Sequence[int], size: int) -> Counter[tuple[int, ...]]:
    """All runs of `size` consecutive tokens, with their counts."""
    return Counter(zip(*(tokens[start:] for start in range(size)), strict=False))


def common_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens before the first that differs, or the length of the shorter answer."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


PROMPTS = (
    "Why is the sky blue?",
    "Explain how a bicycle stays upright.",
    "Write a short poem about the sea.",
    "List five things to pack for a hike.",
    "How do I boil an egg?",
    "What is the difference between weather and climate?",
    "Give three reasons to learn a second language.",
    "Describe a busy market in the morning.",
    "What does a heart do?",
    "Tell a story about a lost key.",
    "How does a refrigerator keep food cold?",
    "Write a polite email that asks for a day off.",
    "What is photosynthesis?",
    "Name three planets and say one thing about each.",
    "How can I sleep better?",
    "Write a Python function that adds two numbers.",
    "What is a prime number?",
    "Explain gravity to a child.",
    "What should I cook with rice and beans?",
    "Why do leaves change their colour in autumn?",
    "Describe your favourite kind of music.",
    "How do vaccines work?",
    "What are the primary colours?",
    "Write two sentences about winter.",
    "How do I change a flat tyre?",
    "What is the capital of Italy, and what can I see there?",
    "Why do we have leap years?",
    "Give me advice for a job interview.",
    "What is the water cycle?",
    "Write a dialogue between a cat and a dog.",
    "How are mountains formed?",
    "What is inflation in an economy?",
    "Explain what a computer program is.",
    "Why is exercise good for the body?",
    "Describe the taste of an orange.",
    "How does a plane fly?",
    "What is the largest animal on Earth?",
    "Plan a weekend in a small town.",
    "What is democracy?",
    "How do bees make honey?",
    "Write a riddle and its answer.",
    "What causes an earthquake?",
    "How can a school save energy?",
    "What is the meaning of the word patience?",
    "Describe a house by a lake.",
    "Why do ships float?",
    "What did people use before electric light?",
    "Explain how to multiply 12 by 15.",
    "What makes a good friend?",
    "How do I start a small garden?",
)


def tokens_of_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str] = PROMPTS) -> list[list[int]]:
    """The tokens of each prompt, through the chat template if there is one."""
    return [prompt_tokens(tokenizer, prompt) for prompt in prompts]


@torch.no_grad()
def greedy_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = ANSWER_TOKENS,
    stage: str = "answers",
    *,
    progress: ProgressCallback | bool = True,
) -> list[list[int]]:
    """The tokens of a greedy answer to each prompt (its tokens), in one batch, without the end token."""
    report = progress_callback(progress)
    rows = [torch.tensor(prompt, dtype=torch.int64, device=model.device) for prompt in prompts]
    tokens = pad_sequence(rows, batch_first=True, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    end_ids = end_tokens(model)
    ends = torch.tensor(sorted(end_ids), device=model.device)
    cache: dict[str, Any] = {}
    columns: list[Tensor] = []
    running = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    while len(columns) < max_new_tokens and running.any():
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -tokens.shape[1] :]
        logits, cache = next_token_logits(model, tokens, cache, attention_mask=mask, position_ids=positions)
        tokens = logits.argmax(-1, keepdim=True)
        columns.append(tokens)
        running &= ~torch.isin(tokens[:, 0], ends)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        report(Progress(stage, len(columns), max_new_tokens))
    report(Progress(stage, max_new_tokens, max_new_tokens))
    answers = torch.cat(columns, dim=1).tolist()
    return [list(takewhile(lambda token: token not in end_ids, answer)) for answer in answers]


def answer_columns(
    loaded: LoadedModel, model: PreTrainedModel, prompts: list[list[int]], stage: str, *, progress: ProgressCallback
) -> dict[str, float]:
    """Columns of a sweep's row: the statistics of the model's answers, and those of the dense model, which are kept."""
    inputs = (prompts, sorted(end_tokens(loaded.model)))
    path = cache_path("sweep", ".json", FORMAT, loaded.fingerprint, loaded.model.dtype, "answers", inputs)
    record = read_record(path)
    if not record:
        record = {"answers": greedy_answers(loaded.model, prompts, stage="answers dense", progress=progress)}
        write_record(path, record, "the dense model's answers")
    dense = record["answers"]
    answers = greedy_answers(model, prompts, stage=stage, progress=progress)
    of_dense = answer_statistics(dense, dense)
    names = ("loops", "answer_tokens", "distinct_3grams")
    columns = {f"dense_{name}": getattr(of_dense, name) for name in names}
    return columns | answer_statistics(answers, dense)._asdict()
