"""Where the rooms are kept: beside the cache folder, whose eviction and cleaning never reach them."""

from __future__ import annotations

import os
from pathlib import Path

from intraslice.core.cache import cache_folder

VARIABLE = "INTRASLICE_ROOMS"


def rooms_folder() -> Path:
    """The folder of the rooms' database: INTRASLICE_ROOMS, else the cache folder's name with `.rooms` appended."""
    if configured := os.environ.get(VARIABLE):
        return Path(configured).expanduser()
    cache = cache_folder()
    return cache.with_name(f"{cache.name}.rooms")
