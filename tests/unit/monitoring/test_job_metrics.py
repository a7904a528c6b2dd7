"""The figures of one job: what each event changes, and what processes exchange."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from pgstash import events
from pgstash.monitoring.job_metrics import JobMetrics, Key, known_error

STARTED = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
NOW = STARTED + timedelta(minutes=1)
AT = STARTED.timestamp()
NAME = "backup_20260131_020000.sql.gz"
SUCCEEDED = events.BackupSucceeded(NAME, 7.5, "s3://b/k", 524, 102, 3, 12)
FAILED = events.BackupFailed(NAME, 1.0, "no", "", error="DumpError", exit_code=13)
PASSED = events.DrillSucceeded(
    NAME, 9.0, 7.0, "s3://b/p", NOW, checks=5, tables=3, rows=12, host="h", database="d"
)
NOT_PROVEN = events.DrillFailed(NAME, 9.0, "no", "", "h", "d", error="Odd", exit_code=70)


def figures() -> JobMetrics:
    return JobMetrics(lambda last: last + timedelta(minutes=90), lambda: NOW)


def after(*happened: events.Event) -> tuple[dict[str, float], dict[tuple[str, ...], float]]:
    found = figures()
    for event in happened:
        found(event)
    gauges, counters = found.values()
    return {"/".join(key): value for key, value in gauges.items()}, counters


def test_a_backup() -> None:
    gauges, counters = after(events.BackupAttempted("h", "d"), FAILED, FAILED, SUCCEEDED)
    assert gauges == {
        "backup_last_attempt_timestamp_seconds": NOW.timestamp(),
        "backup_last_success_timestamp_seconds": AT,
        "backup_stale_at_timestamp_seconds": AT + 5400,
        "backup_last_duration_seconds": 7.5,
        "backup_last_raw_bytes": 524,
        "backup_last_stored_bytes": 102,
        "backup_last_rows": 12,
        "backup_last_tables": 3,
        "backup_failures_in_a_row": 0,
    }
    assert counters == {
        ("backup_runs", "failure", "DumpError"): 2,
        ("backup_runs", "success", ""): 1,
    }


def test_a_failure_keeps_the_last_success() -> None:
    gauges, _ = after(SUCCEEDED, FAILED, FAILED)
    assert gauges["backup_failures_in_a_row"] == 2
    assert gauges["backup_last_success_timestamp_seconds"] == AT


def test_a_drill() -> None:
    gauges, counters = after(NOT_PROVEN, PASSED, NOT_PROVEN)
    assert gauges == {
        "drill_last_success_timestamp_seconds": NOW.timestamp(),
        "drill_last_restore_seconds": 7.0,
        "drill_failures_in_a_row": 1,
    }
    assert counters == {
        ("drill_runs", "failure", "unexpected"): 2,
        ("drill_runs", "success", ""): 1,
    }


@pytest.mark.parametrize(
    ("event", "phase"),
    [
        (events.BackupAttempted("h", "d"), "preparing"),
        (events.DumpStarted("x", "16", "16"), "dumping"),
        (events.DumpFinished("x", 1.0, 1), "uploading"),
        (events.DrillStarted("x", "there"), "restoring"),
        (events.PhaseStarted("checks"), "checking"),
    ],
)
def test_one_phase_runs_at_a_time(event: events.Event, phase: str) -> None:
    gauges, _ = after(events.DrillAttempted("x"), event)
    assert [key for key in gauges if key.startswith("running")] == [f"running/{phase}"]
    for end in (SUCCEEDED, FAILED, PASSED, NOT_PROVEN):
        gauges, _ = after(event, end)
        assert not [key for key in gauges if key.startswith("running")]


def test_copies_pruning_and_the_rest() -> None:
    removed = events.BackupRemoved(NAME, (), dry_run=False)
    gauges, counters = after(
        events.NextRunPlanned(NOW, 5.0),
        removed,
        removed,
        events.BackupRemoved(NAME, (), dry_run=True),
        events.Retrying("x", 1, 3, 0.1, "y"),
        events.CopySucceeded(NAME, "nas", "x", 1.0, 5, already=False, verified=True),
        events.CopySucceeded(NAME, "nas", "x", 1.0, 0, already=True, verified=None),
        events.CopyFailed(NAME, "nas", 1.0, "x", "", after_backup=True),
        events.CopyCompared("nas", NAME, STARTED, 4),
        events.CopyCompared("off", None, None, None, "down"),
    )
    assert gauges == {
        "backup_next_run_timestamp_seconds": NOW.timestamp(),
        "copy_newest_timestamp_seconds/nas": AT,
        "copy_missing_backups/nas": 4,
    }
    assert counters == {
        ("prune_removed",): 2,
        ("storage_retries",): 1,
        ("copy_runs", "nas", "success"): 1,
        ("copy_runs", "nas", "failure"): 1,
    }


def test_a_label_has_only_errors_that_are_known() -> None:
    assert known_error("StorageUnreachableError") == "StorageUnreachableError"
    assert known_error("Interrupted") == "Interrupted"
    assert known_error("table x") == "unexpected"


def test_what_the_store_knows_replaces_nothing_later() -> None:
    found = figures()
    found(SUCCEEDED)
    known: dict[Key, float] = {("backup_last_rows",): 99.0, ("drill_last_restore_seconds",): 3.0}
    found.remember(known, STARTED - timedelta(days=1))
    gauges, _ = found.values()
    assert gauges["backup_last_rows",] == 12
    assert gauges["drill_last_restore_seconds",] == 3
    assert gauges["backup_last_success_timestamp_seconds",] == AT
    # The records in the store may already have the failure of this process.
    for first, count in ((FAILED, 4), (SUCCEEDED, 0)):
        found = figures()
        found(first)
        found.remember({("backup_failures_in_a_row",): 4.0}, None)
        assert found.values()[0]["backup_failures_in_a_row",] == count
    fresh = figures()
    fresh.remember({}, STARTED)
    assert fresh.values()[0]["backup_stale_at_timestamp_seconds",] == AT + 5400


def test_another_schedule_changes_when_a_backup_is_stale() -> None:
    found = figures()
    found.judge_by(lambda last: last + timedelta(hours=5))
    assert found.values() == ({}, {})
    found(SUCCEEDED)
    found.judge_by(lambda last: last + timedelta(hours=7))
    assert found.values()[0]["backup_stale_at_timestamp_seconds",] == AT + 7 * 3600


def test_failures_in_a_row_go_on_from_an_earlier_process() -> None:
    before: dict[Key, float] = {
        ("backup_failures_in_a_row",): 2.0,
        ("drill_failures_in_a_row",): 1.0,
    }
    failing, well, idle = figures(), figures(), figures()
    failing(FAILED)
    well(SUCCEEDED)
    for each, count in ((failing, 3), (well, 0), (idle, 2)):
        each.continued(before)
        gauges, _ = each.values()
        assert (gauges["backup_failures_in_a_row",], gauges["drill_failures_in_a_row",]) == (
            count,
            1,
        )


def test_a_process_reports_its_figures_to_another() -> None:
    child, parent = figures(), figures()
    parent(FAILED)
    child(events.BackupAttempted("h", "d"))
    child(FAILED)
    for _ in range(2):
        parent.add(child.text())
    gauges, counters = parent.values()
    assert counters["backup_runs", "failure", "DumpError"] == 3
    assert gauges["backup_failures_in_a_row",] == 3
    succeeded = figures()
    succeeded(SUCCEEDED)
    parent.add(succeeded.text())
    gauges, _ = parent.values()
    assert (gauges["backup_failures_in_a_row",], gauges["backup_last_rows",]) == (0, 12)


def test_a_run_in_another_process() -> None:
    found = figures()
    found.started("backup")
    assert found.values()[0]["running", "backup"] == 1
    found.ended()
    found.killed("backup")
    found.killed("drill")
    found.planned(NOW)
    gauges, counters = found.values()
    assert not [key for key in gauges if key[0] == "running"]
    assert gauges["drill_failures_in_a_row",] == gauges["backup_failures_in_a_row",] == 1
    assert gauges["backup_next_run_timestamp_seconds",] == NOW.timestamp()
    assert counters["backup_runs", "failure", "unexpected"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        json.dumps({"gauges": [["backup_last_rows", "x"]], "counters": []}),
        json.dumps({"gauges": [["backup_last_rows", "label", 1]], "counters": []}),
        json.dumps({"gauges": [["evil", 1]], "counters": [["backup_runs", 1]]}),
        json.dumps({"gauges": [[]], "counters": []}),
    ],
)
def test_what_is_no_report_changes_nothing(text: str) -> None:
    found = figures()
    found.add(text)
    assert found.values() == ({}, {})


def test_too_many_figures_are_not_reported() -> None:
    found = figures()
    for number in range(1000):
        found(events.CopyCompared(f"copy-{number}", NAME, STARTED, 0))
    assert found.text() == ""
