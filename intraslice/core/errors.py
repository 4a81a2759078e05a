"""What can go wrong, by whose fault: each message says what was got, what is wanted and what to do next."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line: what was got, what is wanted, what to do next."""


class NumericalError(ArithmeticError):
    """A moment that is not finite or a system that is singular. The message says which and what to try."""
