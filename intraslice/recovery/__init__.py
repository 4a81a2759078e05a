"""Recovery: training of a sliced model to match the dense one, after any slicing method.

To add a recovery, write a file here that registers a `Recovery`, and name it below; or register it from outside.
"""

from intraslice.core.registry import RECOVERIES
from intraslice.recovery import distill, own_texts  # noqa: F401
from intraslice.recovery.registry import Recovery, recover

__all__ = ["RECOVERIES", "Recovery", "recover"]
