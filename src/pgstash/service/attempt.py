"""What would follow the failure of a run: decided before it, for a run in another process."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Self

from pgstash.errors import PgstashError
from pgstash.runtime import FollowUp
from pgstash.service.blackout import Blackout


def reason_of(error: BaseException) -> str:
    """Return the name of an error; that of another process has the name that it had there."""
    return getattr(error, "named_there", "") or type(error).__name__


@dataclass(frozen=True, slots=True)
class Attempt:
    """A run, as far as it decides what follows its failure.

    The next ``scheduled`` run is in UTC; another try may come ``delay`` after the end of this one.
    The run is ``early`` if it is such a try; then ``reported`` are the names of the errors that
    were reported since the last scheduled time.
    """

    scheduled: datetime
    delay: timedelta
    early: bool = False
    reported: Collection[str] = ()

    def follow_up(self, error: BaseException, now: datetime, blackout: Blackout) -> FollowUp:
        """Return what follows if the run ends with an error now."""
        if not isinstance(error, Exception):
            return FollowUp()
        repeated = self.early and reason_of(error) in self.reported
        if isinstance(error, PgstashError) and error.retryable:
            soon = blackout.over(now + self.delay)
            if soon < self.scheduled:
                return FollowUp(soon, early=True, repeated=repeated)
        return FollowUp(self.scheduled, repeated=repeated)

    def text(self) -> str:
        """Return it as :meth:`read` takes it."""
        return json.dumps(
            {
                "scheduled": self.scheduled.isoformat(),
                "delay": self.delay.total_seconds(),
                "early": self.early,
                "reported": sorted(self.reported),
            }
        )

    @classmethod
    def read(cls, text: str) -> Self:
        """Read what another process of this version wrote. Raises ValueError."""
        match json.loads(text):
            case {
                "scheduled": str(scheduled),
                "delay": float(delay),
                "early": bool(early),
                "reported": list(reported),
            }:
                at, wait = datetime.fromisoformat(scheduled), timedelta(seconds=delay)
                return cls(at, wait, early=early, reported=frozenset(map(str, reported)))
        raise ValueError("is not an attempt")
