"""What a run is given from outside: where events go, signals, the clock and randomness."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pgstash import events
from pgstash.signals import Interruption


def utc_now() -> datetime:
    """Return the time of the wall clock, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """What follows a failed backup: the next attempt ``at`` a time in UTC, or None.

    It is ``early`` if it comes before its scheduled time. The failure is ``repeated`` if an attempt
    since the last scheduled time has failed, and was reported, for the same reason.
    """

    at: datetime | None = None
    early: bool = False
    repeated: bool = False


def nothing_follows(_error: BaseException) -> FollowUp:
    """Plan nothing: for callers that try once."""
    return FollowUp()


@dataclass(frozen=True, slots=True)
class Runtime:
    """The injected environment of a backup, a drill or a prune.

    ``emit`` receives its events. ``interruption`` defers signals while a commit runs; one that was
    never installed does nothing. ``now`` returns the time in UTC, ``random`` N random bytes.
    ``follow_up`` returns what follows a failure, so that its report can include it.
    """

    emit: events.Emit
    interruption: Interruption = field(default_factory=Interruption)
    now: Callable[[], datetime] = utc_now
    random: Callable[[int], bytes] = os.urandom
    follow_up: Callable[[BaseException], FollowUp] = nothing_follows
