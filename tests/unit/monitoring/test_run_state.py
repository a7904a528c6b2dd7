"""The line that says what a run is doing."""

from __future__ import annotations

import pytest

from pgstash import events
from pgstash.monitoring.run_state import RunState

NAME = "backup_20260131_020000.sql.gz"
BACKUP = events.BackupStarted(NAME)
RESTORE = events.RestoreStarted(NAME, "db", "shop", dry_run=False)
DRILL = events.DrillStarted(NAME, "a throwaway server")
GB = 1_000_000_000


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def text(*heard: events.Event | float) -> str:
    """Return the line after these events; a number is how many seconds pass."""
    clock = Clock()
    state = RunState(clock)
    for each in heard:
        if isinstance(each, events.Event):
            state.update(each)
        else:
            clock.now += each
    assert state.running
    return state.text()


def upload(usual: int | None, database: int | None = None) -> events.UploadStarted:
    return events.UploadStarted(NAME, "s3://b", 1, usual, database)


def test_a_backup_is_judged_by_the_latest_ones() -> None:
    latest = events.Progressed(NAME, 8 * GB, GB, 1_234_567)
    assert text(BACKUP, upload(4 * GB, 100 * GB), 100, latest) == (
        "25%, 8.0GB read, 1,234,567 rows, 1.0GB stored, 80MB/s, 1m 40s elapsed, about 5m left"
    )


def test_the_first_backup_is_judged_by_the_database() -> None:
    latest = events.Progressed(NAME, 8 * GB, GB, 1)
    assert text(BACKUP, upload(None, 80 * GB), 2, latest) == (
        "10%, 8.0GB read, 1 row, 1.0GB stored, 4.0GB/s, 2s elapsed"
    )


def test_nothing_is_estimated_of_a_backup_that_is_larger_than_expected() -> None:
    shown = text(BACKUP, upload(GB), 10, events.Progressed(NAME, 8 * GB, 2 * GB))
    assert shown == "8.0GB read, 2.0GB stored, 800MB/s, 10s elapsed"


def test_before_the_first_byte() -> None:
    assert text(BACKUP, 3) == "preparing: 3s elapsed"
    assert text(RESTORE, 0) == "preparing: 0s elapsed"
    assert text(DRILL, 61) == "preparing: 1m 1s elapsed"


@pytest.mark.parametrize(
    ("attempted", "started"),
    [
        (events.BackupAttempted("db", "shop"), BACKUP),
        (events.RestoreTargeted("db:5432", "shop", created=False), RESTORE),
        (events.DrillAttempted("latest"), DRILL),
    ],
)
def test_the_clock_starts_before_the_backup_is_known(
    attempted: events.Event, started: events.Event
) -> None:
    assert text(attempted, 7) == "preparing: 7s elapsed"
    assert text(attempted, 7, started, 1) == "preparing: 8s elapsed"


def test_the_phases_of_a_restore() -> None:
    rows: list[events.Event | float] = [RESTORE, 5, events.PhaseStarted("rows"), 10]
    read = events.RestoreProgressed(NAME, 300_000_000, 30_000_000, 60_000_000)
    assert text(*rows, read) == (
        "rows: 50%, 30MB of 60MB read, 300MB restored, 30MB/s, 15s elapsed, about 10s left"
    )
    of_unknown = events.RestoreProgressed(NAME, 300_000_000, 30_000_000, None)
    assert text(*rows, of_unknown) == "rows: 30MB read, 300MB restored, 30MB/s, 15s elapsed"
    indexes = [*rows, read, events.PhaseStarted("indexes and constraints", 42), 20]
    assert text(*indexes) == "indexes and constraints: 0%, 0 of 42, 35s elapsed"
    working = [*indexes, events.StepsDone(21), events.WorkingOn("index of public.t 7%")]
    assert text(*working) == (
        "indexes and constraints: 50%, 21 of 42, index of public.t 7%, 35s elapsed, about 20s left"
    )
    owners = [*working, events.PhaseStarted("owners and privileges"), 1]
    assert text(*owners) == "owners and privileges: 36s elapsed"


def test_the_whole_script_in_one_session() -> None:
    script = events.PhaseStarted("objects, rows and indexes")
    read = events.RestoreProgressed(NAME, 60_000_000, 60_000_000, 60_000_000)
    working = events.WorkingOn("index of public.t 7%")
    assert text(RESTORE, script, 60, read, working) == (
        "objects, rows and indexes: 99%, 60MB of 60MB read, 60MB restored, 1.0MB/s, "
        "index of public.t 7%, 1m elapsed"
    )


def test_steps_that_were_not_expected() -> None:
    more: list[events.Event] = [
        events.PhaseStarted("indexes and constraints", 2),
        events.StepsDone(3),
    ]
    assert text(RESTORE, *more) == "indexes and constraints: 99%, 2 of 2, 0s elapsed"


@pytest.mark.parametrize(
    "end",
    [
        events.BackupSucceeded(NAME, 1, "s3://b", 1, 1, 1, 1),
        events.BackupFailed(NAME, 1, "no", ""),
        events.RestoreFailed(NAME, 1, "no", "", "", "", 1),
        events.DrillFailed(NAME, 1, "no", "", "", "", "", 1),
    ],
)
def test_nothing_is_shown_between_two_runs(end: events.Event) -> None:
    clock = Clock()
    state = RunState(clock)
    seen = [state.running]
    assert state.update(BACKUP)
    state.update(events.Progressed(NAME, 5, 5))
    state.update(end)
    seen.append(state.running)
    assert seen == [False, False]
    clock.now += 100
    assert state.update(RESTORE)
    assert state.running
    assert state.text() == "preparing: 0s elapsed"


def test_a_copy_shows_how_much_was_sent() -> None:
    started = events.CopyStarted(NAME, "offsite", 4 * GB)
    assert text(started, 10, events.CopyProgressed(NAME, GB, 4 * GB)) == (
        "copying: 25%, 1.0GB of 4.0GB sent, 100MB/s, 10s elapsed, about 30s left"
    )
    state = RunState(Clock())
    for end in (
        events.CopySucceeded(NAME, "offsite", "x", 1.0, 1, already=False, verified=True),
        events.CopyFailed(NAME, "offsite", 1.0, "no", "", after_backup=False),
    ):
        state.update(started)
        state.update(end)
        assert not state.running


def test_a_copy_in_the_background_does_not_end_the_line_of_a_backup() -> None:
    done = events.CopySucceeded(NAME, "offsite", "x", 1.0, 1, already=False, verified=True)
    assert text(BACKUP, 3, done, 2) == "preparing: 5s elapsed"
