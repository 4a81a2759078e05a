"""Gradio's folder for uploaded and served files.

Gradio has no public name for it. The page writes its downloads there, since gradio copies a file from anywhere else
before it serves it.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_values.py`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from gradio.utils import get_upload_folder, is_in_or_equal

DOWNLOADS = "downloads-"  # how the names of folders begin that hold the page's downloads, not uploads
BYTES_PER_INODE = 16 * 2**10  # which file systems provide by default: so few bytes of space use up an inode


def upload_folder() -> Path:
    """The folder, which may not exist yet."""
    return Path(get_upload_folder())


def is_uploaded(path: str) -> bool:
    """Whether a path lies in the folder, `..` and links resolved."""
    return is_in_or_equal(path, get_upload_folder())


def allocated_bytes(path: Path) -> int:
    """The disk space of a file, or of a folder with all in it: allocated blocks, and for each at least an inode's.

    Links are not followed. What another thread deletes meanwhile counts as nothing.
    """
    try:
        status = path.lstat()
        inside = [Path(entry.path) for entry in os.scandir(path)] if stat.S_ISDIR(status.st_mode) else []
    except OSError:
        return 0
    blocks = getattr(status, "st_blocks", status.st_size // 512)
    return max(512 * blocks, BYTES_PER_INODE) + sum(map(allocated_bytes, inside))
