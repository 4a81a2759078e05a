"""What can be chosen on the page: the library's registries and precisions.

For `ui/` and charts, which import no library.
Whatever registers itself there is offered here.
"""

from __future__ import annotations

from typing import get_args

from intraslice.methods.registry import METHODS
from intraslice.pretrained.precision import Precision
from intraslice.registry import ESTIMATORS

__all__ = ["ESTIMATORS", "METHODS", "PRECISIONS"]

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
