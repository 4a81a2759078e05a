"""A sliced model on disk: our own folder format, and transformers'.

Folders that were saved import `load` from here, so this path stays.
"""

from intraslice.checkpoints.format import is_checkpoint, load, require_free, save

__all__ = ["is_checkpoint", "load", "require_free", "save"]
