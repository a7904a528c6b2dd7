"""The fields of a failed run's event that come from the error that ended it."""

from __future__ import annotations

from typing import TypedDict

from pgstash.errors import EXIT_UNEXPECTED, Interrupted, PgstashError


class Fields(TypedDict):
    """The fields of a failed run's event that come from the error; ``error`` names its class."""

    message: str
    hint: str
    error: str
    exit_code: int


def fields(error: BaseException) -> Fields:
    """Return the fields of a failed run's event for the error that ended it."""
    expected = isinstance(error, PgstashError | Interrupted)
    return {
        "message": str(error) if expected else f"{type(error).__name__}: {error}",
        "hint": getattr(error, "hint", ""),
        "error": type(error).__name__,
        "exit_code": getattr(error, "exit_code", EXIT_UNEXPECTED),
    }
