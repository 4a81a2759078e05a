"""Saves and loads sliced models, and exports them to other formats.

Saved folders import `load` from here, so this path must not change.
"""

from intraslice.checkpoints.format import is_checkpoint, load, require_free, save

__all__ = ["is_checkpoint", "load", "require_free", "save"]
