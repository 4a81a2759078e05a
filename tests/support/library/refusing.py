"""What is refused, and the one line that says why."""

from collections.abc import Callable
from typing import Any

import pytest

from intraslice.core.errors import UserError


def refused(call: Callable[..., Any], *given: Any, **options: Any) -> str:
    """The message, of one line, of the UserError that a call must raise."""
    with pytest.raises(UserError) as caught:
        call(*given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
