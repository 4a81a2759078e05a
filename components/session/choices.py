"""What can be chosen on the page: the library's registries, for `ui/` and charts, which import no library.

Whatever registers itself there is offered here.
"""

from __future__ import annotations

from intraslice.methods.registry import METHODS
from intraslice.registry import ESTIMATORS

__all__ = ["ESTIMATORS", "METHODS"]
