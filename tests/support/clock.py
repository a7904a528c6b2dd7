"""A clock whose time passes only when somebody sleeps: hours of a service in no time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from pgstash.errors import Interrupted

START = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)


class FakeClock:
    """Stands in for the clock of a runtime, and for the sleep of the service's loop.

    ``plan`` has things happen while somebody sleeps: a signal, a suspend, a clock that is set.
    """

    def __init__(self, start: datetime = START, *, late: float = 0.0) -> None:
        """Begin at ``start``; every sleep takes ``late`` seconds longer than asked for."""
        self._now = start
        self._end = start
        self._late = late
        self._plan: list[tuple[datetime, Callable[[], None]]] = []
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self._now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._end = self._now + timedelta(seconds=seconds + self._late)
        for moment, happen in self._plan[:]:
            if moment <= self._end:
                self._plan.remove((moment, happen))
                self._now = max(self._now, moment)
                happen()
        self._now = max(self._now, self._end)

    def pass_by(self, seconds: float) -> None:
        """Let time pass that nobody slept: a job at work, or a machine asleep."""
        self._now += timedelta(seconds=seconds)

    def set(self, moment: datetime) -> None:
        """Set the clock, as an operator or NTP would."""
        self._now = self._end = moment

    def plan(self, moment: datetime, happen: Callable[[], None]) -> None:
        self._plan.append((moment, happen))

    def signal_at(self, moment: datetime, signum: int) -> None:
        def arrive() -> None:
            raise Interrupted(signum)

        self.plan(moment, arrive)
