"""The folder of the page's styles, scripts, texts and precomputed results."""

from importlib.resources import files
from pathlib import Path

_PACKAGE = Path(str(files(__package__)))
ASSETS = _PACKAGE / "assets" if (_PACKAGE / "assets").is_dir() else _PACKAGE.parent / "assets"  # installed, in a clone
