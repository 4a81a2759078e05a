"""Where the page's style, scripts, texts and snapshots lie."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parents[1] / "assets"
