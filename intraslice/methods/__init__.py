"""Slicing methods, one file each, all with the same definition of sparsity.

To add one, write a file here that registers a `SlicingMethod`, and name it below; or register it from outside.
"""

from intraslice.methods import intraslice, paper, crossmodule, modegpt, flatllm, shortgpt, baselines  # noqa: F401, I001  in the order they are listed
from intraslice.methods.registry import METHODS, SlicingMethod, plan_by, slice_by

__all__ = ["METHODS", "SlicingMethod", "plan_by", "slice_by"]
