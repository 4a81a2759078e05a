"""The folder of uploads, which gradio has for files that come in and go out.

Gradio has no public name for it. The page writes its downloads there, since gradio copies a file from anywhere else
before it serves it. And it deletes the uploads of a page itself when the process ends: `gr.Blocks.close()` waits for
the calls that run, up to 5 seconds, and leaves the uploads there if one of them goes on.

Tried with gradio 6.25 and 6.31. Test: `tests/page/gradio_compat/test_upload_folder.py`.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.route_utils import delete_files_created_by_app
from gradio.utils import get_upload_folder, is_in_or_equal

DOWNLOADS = "downloads-"  # how the names of folders begin that hold the page's downloads, not uploads


def upload_folder() -> Path:
    """The folder, which may not exist yet."""
    return Path(get_upload_folder())


def is_uploaded(path: str) -> bool:
    """Whether a path lies in the folder, `..` and links resolved."""
    return is_in_or_equal(path, get_upload_folder())


def delete_uploads(page: gr.Blocks) -> None:
    """Delete all files that were uploaded to a page or made by it."""
    delete_files_created_by_app(page, age=None)
