"""The pinned setting A as one line of text: the page keeps it in a field, and a link carries it.

It is the query string of what is not as the page opens anyway, `sparsity=20&estimator=fisher`. Of an uploaded file it
has a mark, by which the page knows its own upload again; it names none.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode

from components.i18n.language import lazy_gettext
from components.jobs import limits
from components.state.request import Request, parse
from components.state.settings import Settings


def write(request: Request) -> str:
    """The text of a setting."""
    settings, usual = request.settings, Settings()._asdict()
    told = {name: value for name, value in settings._asdict().items() if name == "sparsity" or value != usual[name]}
    return urlencode(told | ({"upload": _mark(settings.upload)} if settings.upload else {}))


def read(text: Any) -> Settings | None:
    """The setting of a text, None of an empty one; its upload is a mark. Raises UserError for what is no setting."""
    told = dict(parse_qsl(limits.words(lazy_gettext("the pinned setting"), text or "", limits.LINK.value)))
    if not told:
        return None
    for name in told:
        limits.choice("what the pinned setting has", name, Settings._fields)
    settings = Settings(**{name: typed(told.get(name), usual) for name, usual in Settings()._asdict().items()})
    parse(settings._replace(upload=None))
    return settings._replace(upload=told.get("upload"))


def beside(text: Any, request: Request) -> Request | None:
    """A where it can be set beside `request`: it is of the same model, and of no file that the page has no more."""
    pinned, settings = read(text), request.settings
    if pinned is None or pinned.model != settings.model or pinned.upload not in (None, _mark(settings.upload)):
        return None
    return parse(pinned._replace(upload=settings.upload if pinned.upload else None))


def typed(text: str | None, default: Any) -> Any:
    """What a link says, as a value of the default's type; the default where it says nothing, or nonsense."""
    if text is None or isinstance(default, str):
        return default if text is None else text
    if isinstance(default, bool):
        return text.lower() == "true"
    try:
        return float(text) if default is None else type(default)(float(text))
    except (ValueError, OverflowError):  # a mistyped link opens the page all the same
        return default


def _mark(upload: str | None) -> str:
    return sha256((upload or "").encode()).hexdigest()[:12]
