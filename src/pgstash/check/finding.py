"""What one check found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pgstash.errors import PgstashError

State = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``topic`` is what was looked at, ``found`` a sentence, ``remedy`` lines of what to do."""

    topic: str
    state: State
    found: str
    remedy: str = ""

    @classmethod
    def of(cls, topic: str, error: PgstashError) -> Finding:
        """Return the failure that an error stands for."""
        return cls(topic, "failure", error.message, error.hint)


def skipped(topics: tuple[str, ...], why: str) -> Iterator[Finding]:
    """Yield what could not be looked at."""
    yield from (Finding(topic, "skipped", why) for topic in topics)


def clock(topic: str, ahead: float, whose: str) -> Finding:
    """Return what a clock that is ``ahead`` of ours, in seconds, means."""
    if abs(ahead) <= LARGEST_SKEW:
        return Finding(topic, "ok", f"within {LARGEST_SKEW:.0f} s of ours")
    way = "ahead of" if ahead > 0 else "behind"
    return Finding(
        topic,
        "warning",
        f"{whose} is {abs(ahead):.0f} s {way} ours",
        "Set the clocks, best by NTP. Backups are named by the clock of this machine, and a store "
        "refuses requests when it differs by more than 15 minutes.",
    )


LARGEST_SKEW = 60.0
"""Seconds by which clocks may differ without a word."""
