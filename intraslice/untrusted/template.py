"""Renders a chat template in the same environment as transformers. Runs in a separate process.

Templates are programs: a few lines can double a string until memory is exhausted, or loop without end.
"""

import json
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def run(template: str, messages: list[dict[str, str]], special_tokens: dict[str, Any], max_characters: int) -> str:
    """The rendered text with the generation prompt. Raises ValueError for more than `max_characters` characters."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _as_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dictionaries(),
        "namespace": PlainNamespace,
    }
    variables = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True} | special_tokens
    pieces, length = [], 0
    for piece in environment.from_string(template).generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > max_characters:
            raise ValueError(f"it writes more than {max_characters:,} characters")
    return "".join(pieces)


class Generation(Extension):
    """`{% generation %}` marks the model's text for training; here its contents are rendered as plain text."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class Dictionaries:
    """`dict` as a plain callable, without access to the class."""

    def __call__(self, *entries: Any, **named: Any) -> dict[Any, Any]:
        return dict(*entries, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class PlainNamespace(Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, *entries = arguments
        values = dict(*entries, **named)
        for name in values:
            _require_plain(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        Namespace.__setitem__(self, name, value)


def _require_plain(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a name in a namespace must not begin with an underscore, got {name[:40]!r}")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
