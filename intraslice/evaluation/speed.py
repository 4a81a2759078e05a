"""Measures the speed of prefill and decode, in tokens per second, on dense and sliced models in turn."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel

from intraslice.core.checks import check_fields, integer
from intraslice.core.progress import Pause, Progress, ProgressOption, progress_callback
from intraslice.modeling.hidden_states import next_token_logits


@dataclass(frozen=True)
class SpeedConfig:
    """Prefill of `batch` sequences of `prompt` tokens, then decode of `new` tokens of each; `repeats` times."""

    prompt: int = 256
    new: int = 16
    repeats: int = 5
    batch: int = 1

    def __post_init__(self) -> None:
        check_fields(self, integer, prompt=(1,), new=(1,), repeats=(1,), batch=(1,))


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats, in tokens per second."""

    prefill: float
    decode: float


@torch.no_grad()
def measure_speed(
    models: Mapping[str, PreTrainedModel], config: SpeedConfig | None = None, *, progress: ProgressOption = True
) -> dict[str, Speed]:
    """Speeds of every model. Models take turns, so that a busy machine slows all of them equally.

    The first turn is a warm-up and is not counted. Compare ratios, as seconds depend on the machine and its load.
    `progress` counts turns and is called after each token; the time inside the callback is not counted.
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
    prompt, new = config.batch * config.prompt, config.batch * config.new
    return {
        name: Speed(prompt / median(prefill for prefill, _ in times), new / median(decode for _, decode in times))
        for name, (_, *times) in seconds.items()
    }


def _time(model: PreTrainedModel, config: SpeedConfig, pause: Pause) -> tuple[float, float]:
    """Seconds of prefill, and of decoding all new tokens with the cache; `pause` is called after each forward."""
    vocabulary = model.model.embed_tokens.num_embeddings
    tokens = torch.arange(config.batch * config.prompt, device=model.device) * 7919 % vocabulary  # arbitrary tokens
    tokens = tokens.view(config.batch, config.prompt)
    cache: dict[str, Any] = {}
    seconds = []
    for _ in range(1 + config.new):
        start = wall_clock(model.device)
        logits, cache = next_token_logits(model, tokens, cache)
        tokens = logits.argmax(-1, keepdim=True)
        seconds.append(wall_clock(model.device) - start)
        pause()
    return seconds[0], sum(seconds[1:])


def wall_clock(device: torch.device) -> float:
    """The time in seconds, on a GPU once the queued work is done."""
    if device.type == "cuda":  # kernels run asynchronously
        torch.cuda.synchronize(device)
    return time.perf_counter()
