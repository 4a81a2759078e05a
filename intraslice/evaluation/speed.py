"""Measured speed: tokens a second of reading a prompt and of writing an answer, dense and sliced in turn."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from transformers import PreTrainedModel

from intraslice.errors import UserError
from intraslice.evaluation.generation import cache_keyword
from intraslice.progress import Progress


@dataclass(frozen=True)
class SpeedConfig:
    """One sequence of `prompt` tokens is read, then `new` tokens are written one by one; `repeats` times each."""

    prompt: int = 256
    new: int = 16
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("prompt", "new", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)!r}; wanted 1 or more")


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats, in tokens a second."""

    prefill: float
    decode: float


def measure_speed(
    models: Mapping[str, PreTrainedModel], config: SpeedConfig | None = None
) -> Generator[Progress, None, dict[str, Speed]]:
    """Speeds of every model. They take turns, so that a busy machine slows them all alike; yields progress by turn.

    The first turn warms up and does not count. Compare ratios: another machine, or another load, gives other seconds.
    """
    config = config or SpeedConfig()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    yield Progress("speed", 0, config.repeats + 1)
    for turn in range(config.repeats + 1):
        for name, model in models.items():
            times = _time(model, config)
            if turn > 0:
                seconds[name].append(times)
        yield Progress("speed", turn + 1, config.repeats + 1)
    return {
        name: Speed(config.prompt / median(read for read, _ in times), config.new / median(write for _, write in times))
        for name, times in seconds.items()
    }


@torch.no_grad()
def _time(model: PreTrainedModel, config: SpeedConfig) -> tuple[float, float]:
    """Seconds to read the prompt and to write the new tokens, one after the other from the cache."""
    vocabulary = model.get_input_embeddings().num_embeddings
    prompt = (torch.arange(config.prompt, device=model.device) * 7919 % vocabulary)[None]  # any tokens cost the same
    keyword = cache_keyword(model)
    start = _now(model)
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    read = _now(model)
    for _ in range(config.new):
        following = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=following, use_cache=True, logits_to_keep=1, **{keyword: getattr(output, keyword)})
    return read - start, _now(model) - read


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":  # work is only queued there until somebody waits for it
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
