"""The result of one check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pgstash.errors import PgstashError

State = Literal["ok", "warning", "failure", "skipped"]
Part = Literal["database", "storage", "webhook", "notify"]


@dataclass(frozen=True, slots=True)
class Finding:
    """``topic`` is what was checked, ``found`` the result, ``remedy`` lines with what to do."""

    topic: str
    state: State
    found: str
    remedy: str = ""

    @classmethod
    def of(cls, topic: str, error: PgstashError) -> Finding:
        """Return the failure for an error."""
        return cls(topic, "failure", error.message, error.hint)


def skipped(topics: tuple[str, ...], why: str) -> Iterator[Finding]:
    """Yield a finding for each topic that could not be checked."""
    yield from (Finding(topic, "skipped", why) for topic in topics)


def clock(topic: str, ahead: float, whose: str) -> Finding:
    """Return the finding for a clock that is ``ahead`` seconds ahead of ours."""
    if abs(ahead) <= LARGEST_SKEW:
        return Finding(topic, "ok", f"within {LARGEST_SKEW:.0f} s of ours")
    way = "ahead of" if ahead > 0 else "behind"
    return Finding(
        topic,
        "warning",
        f"{whose} is {abs(ahead):.0f} s {way} ours",
        "Synchronise the clocks, preferably by NTP. Backups are named by the clock of this "
        "machine, and a store refuses requests if it differs by more than 15 minutes.",
    )


LARGEST_SKEW = 60.0
"""Seconds by which clocks may differ without a warning."""
