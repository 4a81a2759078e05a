"""What a program asks of the page: the command line's own JSON, as endpoints whose every parameter has a default.

`gradio_client` and MCP clients call these by name. They share the page's caches, and its one lane for heavy work.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from typing import Any, get_type_hints

import gradio as gr

from components import exports, sweeps
from components.handlers import visitor_of
from components.session import Session
from components.views import Settings, Status, SweepChoice
from components.wiring import HEAVY

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
    """`endpoint(settings, ...)` as a function of the fields of `Settings`, each with its type and its default."""
    rest = list(inspect.signature(endpoint).parameters.values())[1:]
    hints, keyword = get_type_hints(endpoint), inspect.Parameter.POSITIONAL_OR_KEYWORD
    fields = [
        inspect.Parameter(name, keyword, default=getattr(Settings(), name), annotation=hint)
        for name, hint in get_type_hints(Settings).items()
    ]
    rest = [parameter.replace(annotation=hints[parameter.name], kind=keyword) for parameter in rest]
    rest = [p.replace(default=None) if p.default is inspect.Parameter.empty else p for p in rest]

    def called(*values: Any) -> Any:
        return endpoint(Settings(*values[: len(fields)]), *values[len(fields) :])

    called.__name__, called.__doc__ = endpoint.__name__, endpoint.__doc__
    called.__signature__ = inspect.Signature([*fields, *rest], return_annotation=hints["return"])
    called.__annotations__ = {p.name: p.annotation for p in (*fields, *rest)} | {"return": hints["return"]}
    return called
