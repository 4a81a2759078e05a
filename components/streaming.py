"""Two models answer one prompt at the same time, piece by piece. Belongs to `session.py`."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from components.views import Answers
from intraslice.evaluation import generate_text


def side_by_side(
    models: tuple[PreTrainedModel, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    stop: threading.Event,
) -> Iterator[Answers]:
    """Both answers whenever one has grown. A job that ends by itself leaves `stop` alone."""
    pieces: queue.Queue[tuple[int, str | BaseException | None, float]] = queue.Queue()

    def pump(index: int) -> None:
        try:
            for piece in generate_text(models[index], tokenizer, prompt, tokens, temperature, seed, stop):
                pieces.put((index, piece, time.monotonic()))
            pieces.put((index, None, time.monotonic()))
        except BaseException as error:  # raised again where the caller sees it
            pieces.put((index, error, time.monotonic()))

    workers = [threading.Thread(target=pump, args=(index,), daemon=True) for index in range(2)]
    for worker in workers:
        worker.start()
    texts, grown, running = ["", ""], [[], []], 2  # grown: (moment, length) after every piece
    try:
        while running:
            index, piece, moment = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
                continue
            if piece:
                texts[index] += piece
                grown[index].append((moment, len(texts[index])))
                yield Answers(*texts)
    except BaseException:  # also when the caller leaves early
        stop.set()
        raise
    finally:
        for worker in workers:
            worker.join()
    counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    yield Answers(*texts, *_speeds(grown, counts), finished=True)


def _speeds(grown: list[list[tuple[float, int]]], counts: list[int]) -> list[float | None]:
    """Tokens a second of each answer, over the time in which both were growing: alone, either would be faster."""
    if not all(len(steps) > 1 for steps in grown):
        return [None, None]
    start = max(steps[0][0] for steps in grown)
    end = min(steps[-1][0] for steps in grown)
    speeds = []
    for steps, count in zip(grown, counts, strict=True):
        inside = [(moment, length) for moment, length in steps if start <= moment <= end]
        if len(inside) < 3 or inside[-1][0] <= inside[0][0]:
            speeds.append(None)
            continue
        share = (inside[-1][1] - inside[0][1]) / steps[-1][1]
        speeds.append(count * share / (inside[-1][0] - inside[0][0]))
    return speeds
