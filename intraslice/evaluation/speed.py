"""Measured speed: tokens a second of reading a prompt and of writing an answer, dense and sliced in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
from intraslice.modeling.logits import read_on


@dataclass(frozen=True)
class SpeedConfig:
    """One sequence of `prompt` tokens is read, then `new` tokens are written one by one; `repeats` times each."""

    prompt: int = 256
    new: int = 16
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("prompt", "new", "repeats"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats, in tokens a second."""

    prefill: float
    decode: float


@torch.no_grad()
def measure_speed(
    models: Mapping[str, PreTrainedModel],
    config: SpeedConfig | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> dict[str, Speed]:
    """Speeds of every model. They take turns, so that a busy machine slows them all alike.

    The first turn warms up and does not count. Compare ratios: another machine, or another load, gives other seconds.
    `progress` counts turns and is called after each token; what happens meanwhile is not timed.
    """
    config, report = config or SpeedConfig(), progress_callback(progress)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}

    def pause() -> None:
        report(Progress("speed", min(map(len, seconds.values())), config.repeats + 1))

    pause()
    for _ in range(config.repeats + 1):
        for name, model in models.items():
            seconds[name].append(_time(model, config, pause))
            pause()
    return {
        name: Speed(config.prompt / median(read for read, _ in times), config.new / median(write for _, write in times))
        for name, (_, *times) in seconds.items()
    }


def _time(model: PreTrainedModel, config: SpeedConfig, pause: Pause) -> tuple[float, float]:
    """Seconds of prefill, and of decoding the new tokens one after the other from the cache.

    `pause` is called after the prompt and after each token.
    """
    vocabulary = model.model.embed_tokens.num_embeddings
    tokens = (torch.arange(config.prompt, device=model.device) * 7919 % vocabulary)[None]  # any tokens cost the same
    cache: dict[str, Any] = {}
    seconds = []
    for _ in range(1 + config.new):
        start = _now(model)
        logits, cache = read_on(model, tokens, cache)
        tokens = logits.argmax(-1, keepdim=True)
        seconds.append(_now(model) - start)
        pause()
    return seconds[0], sum(seconds[1:])


def _now(model: PreTrainedModel) -> float:
    if model.device.type == "cuda":  # work is only queued there until somebody waits for it
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
