"""Every way to slice, a file each, under one roof and at equal removed parameters.

To add one, write a file here that registers a `Method`, and name it below; or register it from outside.
"""

from intraslice.methods import intraslice, intraslice_plus, crossmodule, modegpt, svd, baselines  # noqa: F401, I001  in the order on offer
from intraslice.methods.registry import METHODS, Method, plan_by, slice_by

__all__ = ["METHODS", "Method", "plan_by", "slice_by"]
