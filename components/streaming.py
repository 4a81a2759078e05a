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
    """Both answers whenever one has grown. The speeds are of decoding while both run, so they only compare."""
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
    texts, first, last, running = ["", ""], [0.0, 0.0], [0.0, 0.0], 2
    try:
        while running:
            index, piece, moment = pieces.get()
            if isinstance(piece, BaseException):
                raise piece
            if piece is None:
                running -= 1
                continue
            if not piece:
                continue
            first[index] = first[index] or moment
            last[index] = moment
            texts[index] += piece
            yield Answers(*texts)
        counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        speeds = [
            (count - 1) / (end - start) if count > 1 and end > start else None
            for count, start, end in zip(counts, first, last, strict=True)
        ]
        yield Answers(*texts, *speeds, finished=True)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
