"""The state of each copy, as the events of copies report it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime

from pgstash import events
from pgstash.format.iso_time import iso

_LONGEST = 500

Facts = dict[str, object]


class CopyStates:
    """An event listener that keeps the last known state of each copy. Safe in any thread."""

    def __init__(self) -> None:
        """Know no copy yet."""
        self._lock = threading.Lock()
        self._compared: dict[str, events.CopyCompared] = {}

    def __call__(self, event: events.Event) -> None:
        """Take an event."""
        if isinstance(event, events.CopyCompared):
            with self._lock:
                self._compared[event.copy] = event

    def facts(self) -> dict[str, Facts]:
        """Return what each copy has, by its name; ``missing`` is None if that is unknown."""
        with self._lock:
            known = list(self._compared.values())
        return {
            each.copy: {
                "newest": each.newest,
                "at": iso(each.at) if each.at else None,
                "missing": each.missing,
                "problem": each.problem or None,
            }
            for each in known
        }

    def judged(
        self,
        now: datetime,
        stale_at: Callable[[datetime], datetime],
        scrub: Callable[[str], str],
    ) -> dict[str, Facts]:
        """Return the same without secrets, with the age of the newest backup and its freshness."""
        found = self.facts()
        with self._lock:
            times = {each.copy: each.at for each in self._compared.values()}
        for name, facts in found.items():
            at, problem = times[name], facts["problem"]
            facts["problem"] = scrub(problem)[:_LONGEST] if isinstance(problem, str) else None
            facts["age_seconds"] = round((now - at).total_seconds()) if at else None
            if facts["missing"] is None:
                facts["status"] = "unknown"
            else:
                facts["status"] = "fresh" if at and now < stale_at(at) else "stale"
        return found
