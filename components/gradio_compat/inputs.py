"""Checks of the values that come in from the page and from programs, before gradio reads them.

Gradio itself

- answers a call with too few values, or a slider's value of another type, with an error without a message;
- downloads any `http` address given as a file into memory;
- hands a dictionary with a `path` outside of the uploads to a handler that takes no file;
- rounds a fraction where a field is for whole numbers;
- does not say what replaces a choice that was removed;
- takes a path for a file only as the dictionary that its own client sends.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_values.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio_client.utils import is_file_obj, is_file_obj_with_meta, traverse

from intraslice.core import checks
from intraslice.core.errors import UserError

from .. import limits
from ..i18n.language import lazy_gettext
from .requests import is_uploaded

NOT_UPLOADED = lazy_gettext("The file was not uploaded to this page. Pass it with `handle_file` of gradio_client.")


def uploaded_path(upload: Any) -> str | None:
    """The path of an upload, on a desktop also any other. Raises ValueError for a file that no client has uploaded."""
    path = upload.get("path") if isinstance(upload, dict) else upload
    if path in (None, ""):
        return None
    is_own = isinstance(upload, str) and not limits.hosted()
    if not (isinstance(path, str) and (is_own or is_uploaded(path))):
        raise ValueError(NOT_UPLOADED)
    return path


def require_readable(components: Sequence[Any], values: Sequence[Any], state: Any = None) -> None:
    """Raise UserError where a component, or its update in the session `state`, cannot take a value."""
    if (missing := len(components) - len(values)) > 0:
        text = "{missing} of {all} values are missing. The page's API documentation lists them."
        raise UserError(text, missing=missing, all=len(components))
    traverse(values, uploaded_path, is_file_obj)
    for component, value in zip(components, values, strict=False):
        current = state[component._id] if state and component._id in state else component
        if isinstance(current, gr.Slider) or (isinstance(current, gr.Number) and value is not None):
            low = -math.inf if current.minimum is None else current.minimum
            high = math.inf if current.maximum is None else current.maximum
            require = checks.integer if current.precision == 0 else checks.number
            require(str(current.label), value, low, high)
        if isinstance(current, gr.CheckboxGroup) and isinstance(value, list):
            choices = [str(choice) for _, choice in current.choices]
            for name in (each for each in value if isinstance(each, str)):
                checks.one_of(str(current.label), name, choices)
        if isinstance(current, gr.File) and not (value is None or is_file_obj_with_meta(value)):
            raise ValueError(NOT_UPLOADED)
