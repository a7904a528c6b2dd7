"""How the run of a job ended, as its process reports it to the one that started it.

The exit status alone has neither the message, nor whether another try may succeed.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass, replace

_LONGEST_MESSAGE = 2000
_LONGEST_NAME = 100

MOST_BYTES = 64 * 1024
"""How much is read of an outcome; one that is longer is no outcome."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A failure: a message without secrets, and whether another try may succeed.

    ``error`` is its class if the process has reported it to the webhook and the like. ``figures``
    are those of the run for metrics; after a success, the outcome has nothing else.
    """

    message: str = ""
    retryable: bool = False
    error: str = ""
    figures: str = ""


def report(descriptor: int, outcome: Outcome) -> None:
    """Write an outcome to a descriptor, if somebody still reads it."""
    short = replace(outcome, message=outcome.message[:_LONGEST_MESSAGE])
    with contextlib.suppress(OSError):
        os.write(descriptor, json.dumps(asdict(short)).encode())


def read(written: bytes) -> Outcome | None:
    """Return the outcome that was written; None if that is something else, or nothing."""
    if len(written) > MOST_BYTES:
        return None
    try:
        match json.loads(written):
            case {
                "message": str(message),
                "retryable": bool(retryable),
                "error": str(error),
                **others,
            }:
                figures = str(others.get("figures", ""))
                return Outcome(
                    message[:_LONGEST_MESSAGE], retryable, error[:_LONGEST_NAME], figures
                )
    except (ValueError, RecursionError):
        pass
    return None
