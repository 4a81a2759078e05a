"""What comes in from the page and from programs: values that can be read, and files that were uploaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder, is_in_or_equal
from gradio_client.utils import is_file_obj, is_file_obj_with_meta, traverse

from components.i18n.language import later
from components.jobs import limits

NOT_UPLOADED = later("the upload is no file that was uploaded here; wanted one, by `handle_file` in gradio_client")


def uploaded_path(upload: Any) -> str | None:
    """The path of an upload, as the page's component or a program gives it; on a desktop any path will do.

    Raises ValueError for a file that nobody has uploaded.
    """
    path = upload.get("path") if isinstance(upload, dict) else upload
    if path in (None, ""):
        return None
    is_own = isinstance(upload, str) and not limits.hosted()
    if not (isinstance(path, str) and (is_own or is_in_or_equal(path, get_upload_folder()))):
        raise ValueError(NOT_UPLOADED)
    return path


def require_readable(components: Sequence[Any], values: Sequence[Any], state: Any = None) -> None:
    """Raises ValueError where a component gets what it cannot take; that a field is left empty its handler looks at."""
    if (missing := len(components) - len(values)) > 0:
        all_of_them = len(components)
        raise ValueError(
            later("{missing} of {all} values are missing; the page's API names them", missing=missing, all=all_of_them)
        )
    traverse(values, uploaded_path, is_file_obj)
    for component, value in zip(components, values, strict=False):
        own = state[component._id] if state and component._id in state else component  # as this page has it now
        if isinstance(own, gr.Slider) or (isinstance(own, gr.Number) and value is not None):
            low = -math.inf if own.minimum is None else own.minimum
            limits.number(own.label, value, low, math.inf if own.maximum is None else own.maximum)
        if isinstance(own, gr.File) and not (value is None or is_file_obj_with_meta(value)):
            raise ValueError(NOT_UPLOADED)
