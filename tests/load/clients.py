"""What clients do until the time is up. Each kind is a function of the page's address, a stop, notes and its truth."""

from __future__ import annotations

import json
import math
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch

import intraslice as sl
from components.state.settings import PROMPT, Settings
from intraslice.evaluation.perplexity import measure_losses
from intraslice.pretrained.precision import choose_dtype
from tests.load.calls import Failed, Notes, Page


class Life(NamedTuple):
    """Of one client: where the page is, when to stop, where to note, and the library's word on its seed."""

    address: str
    stop: threading.Event
    notes: Notes
    seed: int
    truth: Truth
    dice: random.Random


def dragger(life: Life) -> None:
    """Drags, and looks: ratios are the library's once its seed is calibrated, else said to be others."""
    page = Page(life.address)
    with page.opened():
        while not life.stop.is_set():
            _drag(life, page)
            life.stop.wait(2.0)


def _drag(life: Life, page: Page) -> None:
    for _ in range(10):
        sparsity = life.dice.choice(SPARSITIES)
        start = time.monotonic()
        answer = page.now("ratios", [*asked(life.seed, sparsity), 0, ""])
        life.notes.slider.append(time.monotonic() - start)
        life.notes.call("slider")
        _check_ratios(life, answer, sparsity)
        life.stop.wait(0.15)


def slider(life: Life) -> None:
    """Drags, and lets go, which under this load is measured after minutes."""
    page = Page(life.address)
    with page.opened():
        while not life.stop.is_set():
            _drag(life, page)
            sparsity = life.dice.choice(MEASURED)
            answer = page.ask("measure_live", [*asked(life.seed, sparsity), 0, ""])
            life.notes.call("let go")
            shown = re.findall(r"→\s*(?:<[^>]*>)*\s*([\d.]+)", json.dumps(answer, ensure_ascii=False))
            near = [math.isclose(float(value), life.truth.perplexity[sparsity], rel_tol=2e-3) for value in shown]
            life.notes.check("let go", any(near), f"{shown} at {sparsity}, expected {life.truth.perplexity[sparsity]}")
            life.stop.wait(2.0)


def evaluator(life: Life) -> None:
    """Calibrates its seed, slices and measures."""
    page = Page(life.address)
    while not life.stop.is_set():
        sparsity = life.dice.choice(MEASURED)
        result = page.ask("evaluate", list(asked(life.seed, sparsity)))[0]
        life.notes.call("evaluate")
        wanted = {"dense": life.truth.dense, "sliced": life.truth.perplexity[sparsity]}
        right = all(math.isclose(result["perplexity"][name], value, rel_tol=2e-3) for name, value in wanted.items())
        life.notes.check("evaluate", right and _same(result["ratios"], life.truth.ratios[sparsity]), str(result))
        life.stop.wait(1.0)


def reader(life: Life) -> None:
    """Lets the sliced model answer."""
    page = Page(life.address)
    while not life.stop.is_set():
        sparsity = life.dice.choice(MEASURED)
        texts = page.ask("generate", [*asked(life.seed, sparsity), PROMPT, NEW, 0.0, 0])[0]
        life.notes.call("generate")
        life.notes.check("generate", texts["sliced"] == life.truth.answers[sparsity], str(texts))
        life.stop.wait(1.0)


def sweeper(life: Life) -> None:
    """Asks for a small table."""
    page = Page(life.address)
    while not life.stop.is_set():
        rows = page.ask(
            "sweep_table", [*asked(life.seed, 30), ["intraslice"], ["pca"], list(MEASURED), False, ["none"]]
        )[0]
        life.notes.call("sweep")
        found = {round(100 * row["sparsity"]): row["perplexity"] for row in rows}
        right = all(math.isclose(found[at], life.truth.perplexity[at], rel_tol=2e-3) for at in MEASURED)
        life.notes.check("sweep", right, str(found))
        life.stop.wait(5.0)


def vanisher(life: Life) -> None:
    """Asks, and leaves: in the midst of an answer, without having read a word, or with its page."""
    while not life.stop.is_set():
        page, others = Page(life.address), list(asked(life.dice.randrange(10**6), 25))
        how = life.dice.choice(("reading", "unread", "page"))
        life.notes.call(f"vanished, {how}")
        if how == "unread":
            page.join("evaluate", others)
        elif how == "reading":
            page.ask("evaluate", others, seconds=life.dice.uniform(0.2, 2.0))
        else:
            with page.opened():
                page.ask("prepare", others, seconds=0.5)
        page.http.close()
        life.stop.wait(2.0)


def hooligan(life: Life) -> None:
    """Uploads and sends rubbish, which is to be refused in words."""
    page = Page(life.address)
    settings = list(asked(life.seed, 30))
    while not life.stop.is_set():
        rubbish = life.dice.randbytes(life.dice.randrange(1, 100_000))
        name = f"rubbish.{life.dice.choice(['csv', 'jsonl', 'parquet', 'gguf', 'txt'])}"
        answer = page.http.post(f"{page.api}/upload", files={"files": (name, rubbish)})
        life.notes.call("rubbish")
        wrong = [[None] * 14, ["?"] * 14, [10**9] * 14, [*settings[:3], 10**9, *settings[4:]], []]
        data = life.dice.choice(wrong)
        if answer.status_code == 200 and life.dice.random() < 0.5:
            file = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}
            data = [*settings[:2], file, *settings[3:]]
        try:
            page.ask("evaluate", data)
            life.notes.failed("rubbish", f"taken as {str(data)[:100]}")
        except Failed as refusal:
            words = str(refusal)
            if words in ("null", '{"error": null}') or "Traceback" in words or "/site-packages/" in words:
                life.notes.failed("rubbish", words)
        life.stop.wait(0.5)


KINDS: dict[Callable[[Life], None], int] = {
    dragger: 6,
    slider: 6,
    evaluator: 4,
    reader: 4,
    sweeper: 2,
    vanisher: 4,
    hooligan: 4,
}


def live(kind: Callable[[Life], None], life: Life) -> None:
    """Go on until the time is up, whatever fails."""
    while not life.stop.is_set():
        try:
            kind(life)
        except Exception as problem:
            life.notes.failed(kind.__name__, f"{type(problem).__name__}: {problem}")
            life.stop.wait(1.0)


def _check_ratios(life: Life, answer: list, sparsity: int) -> None:
    chart = answer[0]
    if not isinstance(chart, str):
        return  # nothing is known of this seed yet
    figure = json.loads(chart)
    if "so far" in chart or "Precomputed" in chart:
        return  # and says so
    bars = [trace["y"] for trace in figure["data"] if trace["type"] == "bar"]
    wanted = life.truth.ratios[sparsity]
    right = len(bars) == 2 and any(_same(list(zip(*pair, strict=True)), wanted) for pair in (bars, bars[::-1]))
    life.notes.check("slider", right, f"{bars} at {sparsity}")


def _same(found: list, wanted: list[tuple[float, float]]) -> bool:
    if len(found) != len(wanted):
        return False
    pairs = zip(chain.from_iterable(found), chain.from_iterable(wanted), strict=True)
    return all(math.isclose(one, other, abs_tol=2e-3) for one, other in pairs)


# What the library says of every setting that a client asks for, computed beforehand and alone

SEQUENCES, LENGTH, EVALUATED = 8, 128, 2560
SPARSITIES = tuple(range(10, 60, 5))
MEASURED = (20, 40)  # the sparsities that are sliced
NEW = 8


@dataclass(frozen=True)
class Truth:
    """Of one seed: ratios (layer, attention and MLP) by sparsity, perplexities and answers of those that are sliced."""

    ratios: dict[int, list[tuple[float, float]]]
    perplexity: dict[int, float]
    dense: float
    answers: dict[int, str]


def asked(seed: int, sparsity: float) -> Settings:
    """The page's settings of a client."""
    return Settings(sequences=SEQUENCES, length=LENGTH, seed=seed, sparsity=sparsity, dtype=choose_dtype())


def truths(seeds: int) -> list[Truth]:
    """One a seed."""
    loaded = sl.load_model("default", getattr(torch, choose_dtype()))
    evaluation = sl.EvaluationConfig("default", EVALUATED, LENGTH)
    windows = sl.evaluation_tokens(loaded.tokenizer, evaluation, "default")
    dense = _perplexity(loaded.model, windows)
    return [_truth(loaded, windows, dense, seed) for seed in range(1, seeds + 1)]


def _truth(loaded: sl.LoadedModel, windows: torch.Tensor, dense: float, seed: int) -> Truth:
    tokens = sl.calibration_tokens(
        loaded.tokenizer, sl.CalibrationConfig("default", SEQUENCES, LENGTH, seed), "default"
    )
    stats = sl.calibrate(loaded, tokens, progress=False)
    configs = {sparsity: sl.SliceConfig(sparsity / 100, order="one-shot") for sparsity in SPARSITIES}
    plans = {sparsity: sl.make_plan(stats.profile, config) for sparsity, config in configs.items()}
    perplexity, answers = {}, {}
    for sparsity in MEASURED:
        model = sl.slice_model(loaded.model, plans[sparsity], stats, tokens, progress=False)
        perplexity[sparsity] = _perplexity(model, windows)
        answers[sparsity] = "".join(sl.generate_text(model, loaded.tokenizer, PROMPT, NEW))
    ratios = {
        sparsity: [(layer.attention_ratio, layer.mlp_ratio) for layer in plan.layers]
        for sparsity, plan in plans.items()
    }
    return Truth(ratios, perplexity, dense, answers)


def _perplexity(model: torch.nn.Module, windows: torch.Tensor) -> float:
    return measure_losses(model, windows, progress=False).perplexity().value
