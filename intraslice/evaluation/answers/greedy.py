"""Greedy answers to many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.cache import cache_path
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.core.records import read_record, write_record
from intraslice.evaluation.answers.prompts import PROMPTS
from intraslice.evaluation.answers.statistics import answer_statistics
from intraslice.evaluation.generation import end_tokens, prompt_tokens
from intraslice.loading import LoadedModel
from intraslice.modeling.logits import next_token_logits

FORMAT = "2"
ANSWER_TOKENS = 64


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
    tokens, mask = _left_padded([torch.tensor(prompt) for prompt in prompts])
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    ends = torch.tensor(sorted(end_tokens(model)), device=model.device)
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
    return [_before_the_end(answer, set(ends.tolist())) for answer in answers]


def _left_padded(prompts: Sequence[Int[Tensor, " _"]]) -> tuple[Int[Tensor, "prompts tokens"], Tensor]:
    """Prompts that end in the same column, and a mask that is 1 on their tokens."""
    length = max(map(len, prompts))
    tokens, mask = torch.zeros(2, len(prompts), length, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        mask[row, length - len(prompt) :] = 1
    return tokens, mask


def _before_the_end(answer: list[int], ends: set[int]) -> list[int]:
    return answer[: next((i for i, token in enumerate(answer) if token in ends), len(answer))]


def _dense_answers(loaded: LoadedModel, prompts: list[list[int]], progress: ProgressCallback) -> list[list[int]]:
    model, inputs = loaded.model, (prompts, sorted(end_tokens(loaded.model)))
    path = cache_path("sweep", ".json", FORMAT, loaded.fingerprint, model.dtype, "answers", inputs)
    record = read_record(path)
    if not record:
        answers = greedy_answers(model, prompts, stage="answers dense", progress=progress)
        record = {"answers": answers}
        write_record(path, record, "the dense model's answers")
    return record["answers"]


def answer_columns(
    loaded: LoadedModel, model: PreTrainedModel, prompts: list[list[int]], stage: str, *, progress: ProgressCallback
) -> dict[str, float]:
    """Columns of a sweep's row: the statistics of the model's answers, and those of the dense model, which are kept."""
    dense = _dense_answers(loaded, prompts, progress)
    answers = greedy_answers(model, prompts, stage=stage, progress=progress)
    of_dense = answer_statistics(dense, dense)
    names = ("loops", "answer_tokens", "distinct_3grams")
    columns = {f"dense_{name}": getattr(of_dense, name) for name in names}
    return columns | answer_statistics(answers, dense)._asdict()
