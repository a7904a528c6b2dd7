"""The health of a service of one job, for `/readyz`.

The service is healthy while the newest backup is fresh and no drill has failed since the last one
that passed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from pgstash import __version__, events
from pgstash.format.iso_time import iso
from pgstash.format.names import ARCHIVE_NAME, started_of
from pgstash.monitoring.copy_states import CopyStates
from pgstash.monitoring.redaction import Scrubber

_LONGEST_MESSAGE = 500


@dataclass(frozen=True, slots=True)
class _Success:
    name: str
    started: datetime
    stored_bytes: int
    raw_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Failure:
    name: str
    error: str
    at: datetime
    message: str


@dataclass(frozen=True, slots=True)
class _Proof:
    name: str
    at: datetime


class Health:
    """An event listener that keeps the state of the service. Safe to use from any thread."""

    def __init__(
        self,
        scrubber: Scrubber,
        stale_at: Callable[[datetime], datetime],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Start without any state; ``stale_at`` is the rule of `pgstash healthcheck`."""
        self._scrubber = scrubber
        self._stale_at = stale_at
        self._now = now
        self._running_since = now()
        self._lock = threading.Lock()
        self._success: _Success | None = None
        self._failure: _Failure | None = None
        self._proof: _Proof | None = None
        self._failed_drill: _Failure | None = None
        self._drill_failed = False
        self._next_run: datetime | None = None
        self._copies = CopyStates()

    def found(self, name: str, started: datetime, stored_bytes: int) -> None:
        """Record a backup that was in the store before, unless a newer one is known."""
        with self._lock:
            if self._success is None or self._success.started < started:
                self._success = _Success(name, started, stored_bytes, None)

    def found_proof(self, name: str, at: datetime) -> None:
        """Record a drill that passed before, unless a later one is known; a failure stays."""
        with self._lock:
            if self._proof is None or self._proof.at < at:
                self._proof = _Proof(name, at)

    def __call__(self, event: events.Event) -> None:
        """Take an event; never waits."""
        self._copies(event)
        match event:
            case events.BackupSucceeded():
                named = ARCHIVE_NAME.fullmatch(event.name)
                started = (started_of(named[1]) if named else None) or self._now()
                with self._lock:
                    self._success = _Success(
                        event.name, started, event.stored_bytes, event.raw_bytes
                    )
            case events.BackupFailed():
                failure = self._failed(event)
                with self._lock:
                    self._failure = failure
            case events.DrillSucceeded():
                with self._lock:
                    self._proof, self._drill_failed = _Proof(event.name, event.at), False
            case events.DrillFailed():
                failure = self._failed(event)
                with self._lock:
                    self._failed_drill, self._drill_failed = failure, True
            case events.NextRunPlanned():
                with self._lock:
                    self._next_run = event.at
            case _:
                pass

    def _failed(self, event: events.BackupFailed | events.DrillFailed) -> _Failure:
        message = self._scrubber.scrub(event.message)
        return _Failure(event.name, event.error, self._now(), message[:_LONGEST_MESSAGE])

    def facts(self) -> tuple[bool, dict[str, object]]:
        """Return whether the service is healthy, and the body of `/readyz`."""
        now = self._now()
        with self._lock:
            success, failure, next_run = self._success, self._failure, self._next_run
            proof, failed_drill, drill_failed = self._proof, self._failed_drill, self._drill_failed
        copies = self._copies.judged(now, self._stale_at, self._scrubber.scrub)
        # A failed drill comes first: a fresh backup is worth little if backups do not restore.
        if drill_failed:
            status = "drill failed"
        elif success is None:
            status = "no backup yet"
        else:
            status = "ready" if now < self._stale_at(success.started) else "stale"
        return status == "ready", {
            "status": status,
            "version": __version__,
            "running_since": iso(self._running_since),
            "next_run": iso(next_run) if next_run else None,
            **({"copies": copies} if copies else {}),
            "last_success": {
                "name": success.name,
                "at": iso(success.started),
                "age_seconds": round((now - success.started).total_seconds()),
                "stored_bytes": success.stored_bytes,
                "raw_bytes": success.raw_bytes,
            }
            if success
            else None,
            "last_failure": {
                "error": failure.error,
                "at": iso(failure.at),
                "message": failure.message,
            }
            if failure
            else None,
            "last_proof": {
                "name": proof.name,
                "at": iso(proof.at),
                "age_seconds": round((now - proof.at).total_seconds()),
            }
            if proof
            else None,
            "last_failed_drill": {
                "name": failed_drill.name,
                "error": failed_drill.error,
                "at": iso(failed_drill.at),
                "message": failed_drill.message,
            }
            if failed_drill
            else None,
        }
