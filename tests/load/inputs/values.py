"""What untrusted clients send for a parameter: good values, those at a bound and past it, and rubbish of every kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from components.jobs import limits
from components.state.settings import Settings
from intraslice.core import checks

GOOD: dict[str, Sequence[Any]] = {
    "sequences": (1, 2, 4),
    "length": (32, 64, 128),
    "seed": range(4),
    "sparsity": (0, 10, 30, 45),
    "tokens": (1, 4),
    "temperature": (0, 0.7),
    "layer": range(30),
    "prompt": ("Why does it rain?", "😀 " * 20),
    "passage": ("It rains where air rises.",),
    "locked": ("", "2 mlp 25"),
    "methods": (["intraslice"], ["intraslice", "magnitude"]),
    "estimators": (["pca"], ["fisher", "uniform"]),
    "sparsities": ([20], [10, 30]),
    "speed": (False,),
    "quantise": (["none"], ["none", "q4_0"]),
    "gguf_type": ("f16", "q4_0"),
}


def bounds() -> dict[str, Sequence[Any]]:
    """By parameter: the largest and smallest that are taken where the page is hosted, and those next to them."""
    return {
        "sequences": (limits.SEQUENCES.value, limits.SEQUENCES.value + 1, 0),
        "length": (limits.LENGTH.value, limits.LENGTH.value + 1, 2, 1),
        "seed": (checks.MAX_INTEGER, checks.MAX_INTEGER + 1),
        "sparsity": (80, 80.000001, -1e-9),
        "bias": (0.2, 2, 2.0001, 0.1999),
        "cap": (0, 100, 100.1),
        "tokens": (1, limits.NEW_TOKENS.value, limits.NEW_TOKENS.value + 1),
        "temperature": (limits.TEMPERATURE.value, limits.TEMPERATURE.value + 0.01),
        "layer": (29, 30, 10_000, 10_001),
        "prompt": ("", "x" * limits.PROMPT.value, "😀" * (limits.PROMPT.value + 1)),
        "passage": ("", "x " * (limits.PASSAGE.value // 2), "x" * (limits.PASSAGE.value + 1)),
        "locked": ("0 mlp 5," * (limits.LOCKED.value // 8), "0 mlp 5," * limits.LOCKED.value, "999 mlp 5", "0 mlp nan"),
        "model": ("a/" + "b" * (limits.NAME.value - 2), "a/" + "b" * limits.NAME.value),
        "sparsities": (list(range(80)), list(range(1000)), [], ["20"], [float("nan")]),
        "methods": (["intraslice+"], ["intraslice"] * 1000, [["a"]], "intraslice"),
        "estimators": (["pca"] * 1000, ["mine.py:importances"], []),
        "quantise": (["f32"] * 1000, ["q2_k"], "none", []),
        "gguf_type": ("f32", "q2_k", ""),
    }


def paths(server: str) -> list[str]:
    """Of what lies on a server whose page is in the folder `server`."""
    return [
        *("/etc/passwd", "file:///etc/passwd", "~/.bashrc", "/proc/self/environ", "/dev/zero", "\\\\host\\share", ".."),
        *(f"{server}/app.py", f"{server}/secret.csv", f"{server}/secret.json", f"file://{server}/secret.csv"),
        *(
            "app.py",
            "secret.csv",
            "../server/secret.csv",
            "components/frame",
            "assets/lesson",
            "../" * 20 + "etc/passwd",
        ),
        *("http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x.csv", "mine.py:importances"),
    ]


def rubbish(server: str) -> list[Any]:
    """What is good for no parameter."""
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    names = paths(server)
    return [
        *(None, True, -1, 10**30, 1e300, float("nan"), float("inf"), -float("inf"), 10**400, 0.5, "7"),
        *("", " ", "\0", "\ud800", "x" * 100_000, "é" * 50_000, "\u202e\u0000\ufeff", "%s%n{0}{settings}"),
        *("'; DROP TABLE models;--", "<script>alert(1)</script>", "{{7*7}}", "$(id)", "`id`", "__import__('os')"),
        *([], {}, [[]], {"a": 1}, deep, list(range(10_000)), {"__type__": "update", "choices": ["x"], "value": "x"}),
        *("somebody/none", "meta-llama/Llama-3.2-1B", "a/../b", "default ", "gpt2", "somebody/none/../../etc"),
        *names,
        *({"path": name, "meta": {"_type": "gradio.FileData"}} for name in names),
        {"path": "x.csv", "url": "http://127.0.0.1:1/x.csv", "meta": {"_type": "gradio.FileData"}},
        {"path": 7, "meta": {"_type": "gradio.FileData"}},
    ]


def drawn(dice: random.Random, parameters: Sequence[dict[str, Any]], server: str) -> list[Any]:
    """A value for each parameter, as the API describes it: all good, or up to three of them not."""
    values = [_good(dice, parameter) for parameter in parameters]
    usual, at_bounds, worst = Settings()._asdict(), bounds(), rubbish(server)
    for index in dice.sample(range(len(values)), min(len(values), dice.choice((0, 1, 1, 2, 3)))):
        name = parameters[index]["parameter_name"]
        ways = [at_bounds.get(name, worst), worst, parameters[index]["type"].get("enum") or [usual.get(name)]]
        values[index] = dice.choice(dice.choice(ways))
    shape = dice.random()
    if shape < 0.03:
        return values[: dice.randrange(len(values) + 1)]
    return values + [dice.choice(worst)] * 3 if shape > 0.98 else values


def _good(dice: random.Random, parameter: dict[str, Any]) -> Any:
    name = parameter["parameter_name"]
    return dice.choice(GOOD[name]) if name in GOOD else parameter.get("parameter_default")
