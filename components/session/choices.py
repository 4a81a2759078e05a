"""What can be chosen on the page: the library's registries, in which whatever registers itself appears."""

from __future__ import annotations

from intraslice.methods.registry import METHODS
from intraslice.registry import ESTIMATORS

__all__ = ["ESTIMATORS", "METHODS"]
