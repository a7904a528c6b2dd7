"""How often progress is reported."""

from __future__ import annotations

import time

PROGRESS_SECONDS = 0.25
"""The shortest time between two progress events, in seconds."""


class Throttle:
    """Decides when the next progress event is due."""

    def __init__(self) -> None:
        """Start the first period."""
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Return True at most once in PROGRESS_SECONDS."""
        now = time.monotonic()
        if now - self._last < PROGRESS_SECONDS:
            return False
        self._last = now
        return True
