"""The pinned setting A as one line of text, which the page keeps in a hidden field and a link carries; and A's name.

The text is a query string of the settings that are not the defaults, such as `sparsity=20&estimator=fisher`. An
uploaded file is represented by a hash, by which the page recognises its own upload, and never by its name.
"""

from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode

from intraslice.core import checks

from .. import limits
from ..i18n.language import gettext, percentage
from ..state.request import Request, parse
from ..state.settings import CONTROLS, Settings
from .labels import ESTIMATORS


def write(request: Request) -> str:
    """The text of a setting."""
    settings, defaults = request.named, Settings()._asdict()
    values = {
        name: value for name, value in settings._asdict().items() if name == "sparsity" or value != defaults[name]
    }
    return urlencode(values | ({"upload": _upload_hash(settings.upload)} if settings.upload else {}))


def read(text: Any) -> Settings | None:
    """The setting of a text, with a hash as `upload`; None for an empty text. Raises UserError if it is invalid."""
    values = dict(parse_qsl(checks.text("Pinned setting", text or "", limits.LINK.value)))
    if not values:
        return None
    for name in values:
        checks.one_of("a key of the pinned setting", name, Settings._fields)
    settings = Settings(**{name: typed(values.get(name), default) for name, default in Settings()._asdict().items()})
    parse(settings._replace(upload=None))
    return settings._replace(upload=values.get("upload"))


def comparable_request(text: Any, request: Request) -> Request | None:
    """The pinned setting as a request; None if its model or its upload is not that of `request`."""
    pinned, settings = read(text), request.settings
    if pinned is None or pinned.model != settings.model or pinned.upload not in (None, _upload_hash(settings.upload)):
        return None
    return parse(pinned._replace(upload=settings.upload if pinned.upload else None))


def typed(text: str | None, default: Any) -> Any:
    """A link's text as a text, truth value or number, whichever the default is; otherwise the default."""
    if text is None or isinstance(default, str):
        return default if text is None else text
    if isinstance(default, bool):
        return text.lower() == "true"
    try:
        number = float(text)
    except ValueError:  # a mistyped link still opens the page
        return default
    return int(number) if number.is_integer() else number  # whether it must be whole is checked with its range


def _upload_hash(upload: str | None) -> str:
    return sha256((upload or "").encode()).hexdigest()[:12]


def name_of(pinned: Settings, settings: Settings) -> str:
    """A's name, such as "20 %, Fisher, sequential": sparsity, estimator, and all else that differs from `settings`."""
    estimator = gettext("manual") if pinned.locked else ESTIMATORS.get(pinned.estimator, pinned.estimator)
    names = sorted(CONTROLS, key=lambda name: CONTROLS[name].calibrates)  # the slice's first
    values = {name: getattr(pinned, name) for name in names if getattr(pinned, name) != getattr(settings, name)}
    others = [describe(value) for name, value in values.items() if (describe := CONTROLS[name].describe)]
    return ", ".join([percentage(pinned.sparsity), estimator, *others])
