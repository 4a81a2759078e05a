"""What a program asks of the page: the command line's own JSON, as endpoints whose every parameter has a default.

`gradio_client` and MCP clients call these by name. They share the page's caches, and its one lane for heavy work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, get_type_hints

import gradio as gr

from components.export import files as exports
from components.page.context import HEAVY
from components.session.session import Session
from components.session.settings import Settings, Status
from components.sweep import measure as sweeps
from components.sweep.views import SweepChoice
from components.ui.handlers import flat, visitor_of

FIRST = SweepChoice()
LANE = {name: HEAVY[name] for name in ("concurrency_id", "concurrency_limit")}


def build(session: Session) -> None:
    """Add the endpoints. Called inside the `gr.Blocks()` of the page."""

    def run(work: Generator[Any, None, Any], request: gr.Request) -> Any:
        """What `work` returns, as the visitor's job. Raises gr.Error for what goes wrong, in the page's words."""
        visitor, kept = visitor_of(request), []

        def keeping() -> Generator[Any, None, None]:
            kept.append((yield from work))

        *_, last = [Status("Stopped"), *session.jobs.run(visitor, session.jobs.start(visitor, live=False), keeping())]
        if not kept:
            raise gr.Error(last.text)
        return kept[0]

    def evaluate(settings: Settings, request: gr.Request) -> dict:
        """Slice a model and measure it: plan, parameters, ratios, perplexity dense and sliced, and the protocol.

        Percentages (sparsity, cap) are out of 100. `locked` gives ratios by hand, such as "7 mlp 25, 3 attention 0".
        The first call for a model and text loads and calibrates them, which takes minutes; later ones find both.
        """
        return run(exports.evaluation(session, settings), request)

    def generate(
        settings: Settings,
        prompt: str = "Why does it rain?",
        tokens: int = 64,
        temperature: float = 0.0,
        sample_seed: int = 0,
        request: gr.Request = None,
    ) -> dict:
        """The dense and the sliced model's answers to a prompt, as {"dense": ..., "sliced": ...}; greedy at 0."""
        return run(exports.answers(session, settings, prompt, tokens, temperature, sample_seed), request)

    def sweep_table(
        settings: Settings,
        methods: list[str] = FIRST.methods,
        estimators: list[str] = FIRST.estimators,
        sparsities: list[float] = FIRST.sparsities,
        speed: bool = False,
        request: gr.Request = None,
    ) -> list[dict]:
        """Perplexity, and speed if asked, of every method x estimator x sparsity (per cent): one object a model.

        Methods: intraslice, intraslice+, crossmodule, magnitude, wanda, flap. Points that are measured already come
        from the disk.
        """
        choice = SweepChoice(tuple(methods), tuple(estimators), tuple(sparsities), speed)
        return run(sweeps.table(session, settings, choice), request)

    def command_lines(settings: Settings, prompt: str = "Why does it rain?") -> str:
        """The shell lines that evaluate, save and ask the same model without the page."""
        try:
            return exports.command_lines(session, settings, prompt)
        except ValueError as problem:
            raise gr.Error(str(problem)) from problem

    for endpoint in (evaluate, generate, sweep_table):
        gr.api(spelled(endpoint), api_name=endpoint.__name__, **LANE)
    gr.api(spelled(command_lines), api_name="command_lines", queue=False)


def spelled(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """`flat(endpoint)` with every parameter's type and default, which is what callers from outside see."""
    called, hints = flat(endpoint), get_type_hints(Settings) | get_type_hints(endpoint)
    defaults = Settings()._asdict()

    def told(own: inspect.Parameter) -> inspect.Parameter:
        usual = defaults.get(own.name, None if own.default is own.empty else own.default)
        return own.replace(annotation=hints[own.name], default=usual)

    parameters = [told(own) for own in called.__signature__.parameters.values()]
    called.__signature__ = inspect.Signature(parameters, return_annotation=hints["return"])
    called.__annotations__ = {own.name: own.annotation for own in parameters} | {"return": hints["return"]}
    return called
