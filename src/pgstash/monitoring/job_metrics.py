"""The figures of one job for metrics: a listener to events, and values that processes exchange."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from pgstash import errors, events
from pgstash.format.names import ARCHIVE_NAME, started_of
from pgstash.monitoring import run_phase

Key = tuple[str, ...]
"""The name of a metric without its prefix, then the values of its own labels."""

GAUGES: Mapping[str, tuple[str, ...]] = {
    "backup_last_success_timestamp_seconds": (),
    "backup_last_attempt_timestamp_seconds": (),
    "backup_last_duration_seconds": (),
    "backup_last_raw_bytes": (),
    "backup_last_stored_bytes": (),
    "backup_last_rows": (),
    "backup_last_tables": (),
    "backup_stale_at_timestamp_seconds": (),
    "backup_next_run_timestamp_seconds": (),
    "backup_failures_in_a_row": (),
    "drill_last_success_timestamp_seconds": (),
    "drill_last_restore_seconds": (),
    "drill_failures_in_a_row": (),
    "copy_newest_timestamp_seconds": ("copy",),
    "copy_missing_backups": ("copy",),
    "running": ("phase",),
}
"""The gauges, each with its own labels."""

COUNTERS: Mapping[str, tuple[str, ...]] = {
    "backup_runs": ("result", "error"),
    "drill_runs": ("result", "error"),
    "copy_runs": ("copy", "result"),
    "prune_removed": (),
    "storage_retries": (),
}
"""The same for counters."""

_IN_A_ROW = ("backup_failures_in_a_row", "drill_failures_in_a_row")  # 0 after a success
_LARGEST = 32 * 1024
_OTHER = "unexpected"


def _classes(base: type[BaseException]) -> set[str]:
    found = {base.__name__}
    return found.union(*map(_classes, base.__subclasses__()))


_ERRORS = frozenset({*_classes(errors.PgstashError), errors.Interrupted.__name__})


def known_error(name: str) -> str:
    """Return the class of an error as a label: one of a fixed set."""
    return name if name in _ERRORS else _OTHER


class JobMetrics:
    """An event listener that keeps the figures of one job. Safe to use from any thread."""

    def __init__(
        self,
        stale_at: Callable[[datetime], datetime],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Know nothing yet; ``stale_at`` is the rule of `pgstash healthcheck`."""
        self._stale_at = stale_at
        self._now = now
        self._lock = threading.Lock()
        self._gauges: dict[Key, float] = {}
        self._counters: dict[Key, float] = {}

    def __call__(self, event: events.Event) -> None:
        """Take an event; never waits."""
        with self._lock:
            if phase := run_phase.after(event):
                self._run(phase)
            match event:
                case events.BackupAttempted():
                    self._gauges["backup_last_attempt_timestamp_seconds",] = self._seconds()
                case events.BackupSucceeded():
                    self._succeeded(event)
                case events.BackupFailed():
                    self._count("backup_runs", "failure", known_error(event.error))
                    self._failed_again("backup_failures_in_a_row")
                case events.DrillSucceeded():
                    self._gauges["drill_last_success_timestamp_seconds",] = event.at.timestamp()
                    self._gauges["drill_last_restore_seconds",] = event.restore_seconds
                    self._gauges["drill_failures_in_a_row",] = 0
                    self._count("drill_runs", "success", "")
                    self._run(None)
                case events.DrillFailed():
                    self._count("drill_runs", "failure", known_error(event.error))
                    self._failed_again("drill_failures_in_a_row")
                case events.NextRunPlanned():
                    self._gauges["backup_next_run_timestamp_seconds",] = event.at.timestamp()
                case events.BackupRemoved(dry_run=False):
                    self._count("prune_removed")
                case events.Retrying():
                    self._count("storage_retries")
                case _:
                    self._copied(event)

    def _succeeded(self, event: events.BackupSucceeded) -> None:
        named = ARCHIVE_NAME.fullmatch(event.name)
        started = (started_of(named[1]) if named else None) or self._now()
        self._backup(started)
        self._gauges |= {
            ("backup_last_duration_seconds",): event.seconds,
            ("backup_last_raw_bytes",): event.raw_bytes,
            ("backup_last_stored_bytes",): event.stored_bytes,
            ("backup_last_rows",): event.rows,
            ("backup_last_tables",): event.tables,
            ("backup_failures_in_a_row",): 0,
        }
        self._count("backup_runs", "success", "")
        self._run(None)

    def _backup(self, started: datetime) -> None:
        self._gauges["backup_last_success_timestamp_seconds",] = started.timestamp()
        stale = self._stale_at(started)
        self._gauges["backup_stale_at_timestamp_seconds",] = stale.timestamp()

    def _copied(self, event: events.Event) -> None:
        match event:
            case events.CopySucceeded(already=False):
                self._count("copy_runs", event.copy, "success")
            case events.CopyFailed():
                self._count("copy_runs", event.copy, "failure")
            case events.CopyCompared():
                if event.at:
                    at = event.at.timestamp()
                    self._gauges["copy_newest_timestamp_seconds", event.copy] = at
                if event.missing is not None:
                    self._gauges["copy_missing_backups", event.copy] = event.missing
            case _:
                pass

    def _seconds(self) -> float:
        return self._now().timestamp()

    def _count(self, *key: str) -> None:
        self._counters[key] = self._counters.get(key, 0) + 1

    def _failed_again(self, name: str) -> None:
        self._gauges[name,] = self._gauges.get((name,), 0) + 1
        self._run(None)

    def _run(self, phase: str | None) -> None:
        for key in [each for each in self._gauges if each[0] == "running"]:
            del self._gauges[key]
        if phase:
            self._gauges["running", phase] = 1

    def started(self, work: str) -> None:
        """Record that a run started in a process of its own, whose phase is not known."""
        with self._lock:
            self._run(work)
            if work == "backup":
                self._gauges["backup_last_attempt_timestamp_seconds",] = self._seconds()

    def killed(self, work: str) -> None:
        """Record that such a run failed without a report of its own."""
        with self._lock:
            name = "drill" if work == "drill" else "backup"
            self._count(f"{name}_runs", "failure", _OTHER)
            self._failed_again(f"{name}_failures_in_a_row")

    def ended(self) -> None:
        """Record that such a run has ended."""
        with self._lock:
            self._run(None)

    def planned(self, at: datetime) -> None:
        """Record when the next backup is due."""
        with self._lock:
            self._gauges["backup_next_run_timestamp_seconds",] = at.timestamp()

    def continued(self, found: Mapping[Key, float]) -> None:
        """Take the gauges of earlier processes, unless later ones are known already.

        Failures in a row go on from there, if nothing has succeeded since.
        """
        with self._lock:
            for key, value in found.items():
                before = value if self._gauges.get(key) and key[0] in _IN_A_ROW else 0
                self._gauges[key] = self._gauges.get(key, value) + before

    def judge_by(self, stale_at: Callable[[datetime], datetime]) -> None:
        """Take another rule of when a backup is too old."""
        with self._lock:
            self._stale_at = stale_at
            last = self._gauges.get(("backup_last_success_timestamp_seconds",))
            if last is not None:
                self._backup(datetime.fromtimestamp(last, UTC))

    def remember(self, found: Mapping[Key, float], newest: datetime | None) -> None:
        """Take what the store has from before, unless something later is known already."""
        with self._lock:
            if newest and ("backup_last_success_timestamp_seconds",) not in self._gauges:
                self._backup(newest)
            for key, value in found.items():
                now = self._gauges.setdefault(key, value)
                if now and key[0] in _IN_A_ROW:  # the records of this process are among those
                    self._gauges[key] = max(now, value)

    def values(self) -> tuple[dict[Key, float], dict[Key, float]]:
        """Return the gauges and the counters of now."""
        with self._lock:
            return dict(self._gauges), dict(self._counters)

    def text(self) -> str:
        """Return what :meth:`add` takes in another process; empty if it is too much."""
        gauges, counters = self.values()
        found = {"gauges": [[*key, value] for key, value in gauges.items()]}
        found["counters"] = [[*key, value] for key, value in counters.items()]
        text = json.dumps(found)
        return text if len(text) <= _LARGEST else ""

    def add(self, text: str) -> None:
        """Take the figures of a run that ended in another process of this version.

        Gauges replace those known, counters are added; what is not of a metric is ignored.
        """
        try:
            found = json.loads(text)
            gauges, counters = _read(found["gauges"], GAUGES), _read(found["counters"], COUNTERS)
        except (ValueError, TypeError, KeyError, RecursionError):
            return
        with self._lock:
            for key, value in counters.items():
                self._counters[key] = self._counters.get(key, 0) + value
            for key, value in gauges.items():
                again = key[0] in _IN_A_ROW and value
                if key[0] != "running":
                    self._gauges[key] = value + (self._gauges.get(key, 0) if again else 0)


def _read(rows: list[list[object]], known: Mapping[str, tuple[str, ...]]) -> dict[Key, float]:
    found: dict[Key, float] = {}
    for *key, value in rows:
        name, labels = str(key[0]), [str(each) for each in key[1:]]
        if len(labels) == len(known.get(name, ("?", "?", "?"))) and isinstance(value, int | float):
            found[name, *labels] = value
    return found
