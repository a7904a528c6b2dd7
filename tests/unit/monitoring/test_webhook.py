"""What is posted of a backup, and when: the payload, the switches, the pings."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pgstash import events
from pgstash.monitoring.http_delivery import Courier, Request
from pgstash.monitoring.receiver import LONGEST_TEXT, Payload, Receiver
from pgstash.monitoring.redaction import Scrubber
from pgstash.monitoring.webhook import (
    MOST_WARNINGS,
    OPERATIONS,
    Operation,
    Ping,
    Report,
    Wanted,
    Webhook,
    ping_url,
)

NOW = datetime(2026, 1, 31, 2, 0, 22, 999_999, tzinfo=UTC)
NAME = "backup_20260131_020000.sql.gz"
SECRET = "PlantedSecret-0123456789"
LOCATION = f"s3://my-backups/postgres-backups/{NAME}"
ATTEMPTED = events.BackupAttempted("db.example.com", "shop")
PROVEN = datetime(2026, 1, 30, 4, 0, tzinfo=UTC)
SUCCEEDED = events.BackupSucceeded(
    NAME,
    22.04567,
    LOCATION,
    524_000_000,
    102_000_000,
    14,
    1_482_113,
    "db.example.com",
    "shop",
    PROVEN,
)
FAILED = events.BackupFailed(
    NAME,
    3.21,
    f"pg_dump failed: {SECRET}",
    f"Look at {SECRET}.",
    "db.example.com",
    "shop",
    "DumpError",
    13,
)
DRILLING = events.DrillStarted(NAME, "a scratch server")
PASSED = events.DrillSucceeded(
    name=NAME,
    seconds=41.23456,
    restore_seconds=30.98765,
    location="s3://my-backups/proof",
    at=NOW,
    checks=5,
    tables=14,
    rows=1_482_113,
    host="db.example.com",
    database="shop",
)
NOT_PROVEN = events.DrillFailed(
    name=NAME,
    seconds=7.04,
    message=f"public.users has no rows, said {SECRET}",
    hint=f"Look at {SECRET}.",
    host="db.example.com",
    database="shop",
    error="CheckFailedError",
    exit_code=60,
)
NOT_PRUNED = events.PruneFailed(
    "refused", "Check it.", after_backup=True, error="StorageDeniedError", exit_code=21
)
NOT_COPIED = events.CopyFailed(
    NAME,
    "offsite",
    2.0,
    f"down: {SECRET}",
    "Check it.",
    after_backup=True,
    error="StorageUnreachableError",
    exit_code=20,
)


def report(*heard: events.Event) -> list[Payload]:
    gathered = Report(lambda: NOW)
    return [payload for event in heard if (payload := gathered.add(event))]


class Collected(Courier):
    """A courier that keeps what it is given."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def send(self, request: Request) -> None:
        self.requests.append(request)

    @property
    def bodies(self) -> list[bytes]:
        return [request.body() for request in self.requests if request.body]


def posted(
    *heard: events.Event,
    on_success: bool = True,
    on_failure: bool = True,
    operations: Collection[Operation] = OPERATIONS,
) -> Collected:
    courier = Collected()
    webhook = Webhook(
        Receiver("https://hooks.example.com/x", Scrubber([SECRET])),
        courier,
        Wanted(on_success, on_failure, operations),
        now=lambda: NOW,
    )
    for event in heard:
        webhook(event)
    return courier


def test_a_success() -> None:
    heard = [
        ATTEMPTED,
        events.BackupStarted(NAME),
        events.ToolSaid("pg_dump", "pg_dump: warning: there are circular foreign keys"),
        events.ToolSaid("pg_dump", "pg_dump: last built-in OID is 16383"),
        events.DumpFinished(NAME, 21.0004, 524_000_000),
        events.UploadFinished(NAME, 22.0, 102_000_000),
        SUCCEEDED,
    ]
    [request] = posted(*heard).requests
    assert request.method == "POST"
    assert request.headers["Content-Type"] == "application/json"
    assert request.body
    assert json.loads(request.body()) == {
        "timestamp": "2026-01-31T02:00:22Z",
        "status": "success",
        "message": (
            "Backup completed successfully in 22s: backup_20260131_020000.sql.gz "
            "(14 tables, 1,482,113 rows, 102MB stored)"
        ),
        "service": "postgres-backup",
        "database": {"host": "db.example.com", "name": "shop"},
        "extra": {
            "operation": "backup",
            "backup": NAME,
            "seconds": 22.046,
            "dump_seconds": 21.0,
            "upload_seconds": 22.0,
            "location": LOCATION,
            "raw_bytes": 524_000_000,
            "stored_bytes": 102_000_000,
            "tables": 14,
            "rows": 1_482_113,
            "last_proof": "2026-01-30T04:00:00Z",
            "exit_code": 0,
            "warnings": ["pg_dump: warning: there are circular foreign keys"],
        },
    }


def test_a_failure_without_its_secrets() -> None:
    [body] = posted(ATTEMPTED, FAILED).bodies
    assert json.loads(body) == {
        "timestamp": "2026-01-31T02:00:22Z",
        "status": "failure",
        "message": "Backup failed after 3.2s: backup_20260131_020000.sql.gz: pg_dump failed: ***",
        "service": "postgres-backup",
        "database": {"host": "db.example.com", "name": "shop"},
        "extra": {
            "operation": "backup",
            "backup": NAME,
            "seconds": 3.21,
            "error": "DumpError",
            "exit_code": 13,
            "hint": "Look at ***.",
            "next_attempt": None,
            "warnings": [],
        },
    }


def test_a_failure_that_is_tried_again_has_the_time_of_the_next_attempt() -> None:
    failed = replace(FAILED, next_attempt=datetime(2026, 1, 31, 2, 1, 23, tzinfo=UTC))
    payload = json.loads(posted(failed).bodies[0])
    assert payload["extra"]["next_attempt"] == "2026-01-31T02:01:23Z"
    assert payload["message"].endswith(
        ": pg_dump failed: *** (next attempt at 2026-01-31T02:01:23Z)"
    )


def test_a_repeated_failure_is_not_posted_but_pinged() -> None:
    repeated = replace(FAILED, repeated=True)
    heard = [ATTEMPTED, FAILED, ATTEMPTED, repeated, ATTEMPTED, repeated, ATTEMPTED, SUCCEEDED]
    bodies = [json.loads(body) for body in posted(*heard).bodies]
    assert [body["status"] for body in bodies] == ["failure", "success"]
    courier = Collected()
    ping = Ping("https://hc.example/uuid", courier, Scrubber())
    for event in heard:
        ping(event)
    assert len(courier.bodies) == 3


def test_a_success_while_nothing_is_proven_yet() -> None:
    [payload] = report(ATTEMPTED, replace(SUCCEEDED, last_proof=None))
    assert isinstance(payload["extra"], dict)
    assert payload["extra"]["last_proof"] is None


def test_a_drill_that_passed() -> None:
    [body] = posted(DRILLING, PASSED).bodies
    assert json.loads(body) == {
        "timestamp": "2026-01-31T02:00:22Z",
        "status": "success",
        "message": (
            "Drill passed in 41s: backup_20260131_020000.sql.gz is proven to restore, in 31s "
            "(5 checks, 14 tables, 1,482,113 rows)"
        ),
        "service": "postgres-backup",
        "database": {"host": "db.example.com", "name": "shop"},
        "extra": {
            "operation": "drill",
            "backup": NAME,
            "seconds": 41.235,
            "restore_seconds": 30.988,
            "location": "s3://my-backups/proof",
            "checks": 5,
            "tables": 14,
            "rows": 1_482_113,
            "exit_code": 0,
            "warnings": [],
        },
    }


def test_a_drill_that_failed_after_a_backup_and_a_restore_of_its_own() -> None:
    """The restore within it is no run of its own, and the warnings are those of the drill."""
    heard = [
        ATTEMPTED,
        events.Warned("of the backup"),
        events.DumpFinished(NAME, 21.0, 1),
        SUCCEEDED,
        events.Warned("of pruning"),
        events.DrillAttempted("latest"),
        DRILLING,
        events.RestoreStarted(NAME, "scratch", "drill", dry_run=False),
        events.Warned("of the drill"),
        events.RestoreFailed(NAME, 5.0, "no", "", "nothing is there", "RestoreError", 40),
        NOT_PROVEN,
    ]
    _, body = posted(*heard).bodies
    assert json.loads(body) == {
        "timestamp": "2026-01-31T02:00:22Z",
        "status": "failure",
        "message": f"Drill failed after 7.0s: {NAME}: public.users has no rows, said ***",
        "service": "postgres-backup",
        "database": {"host": "db.example.com", "name": "shop"},
        "extra": {
            "operation": "drill",
            "backup": NAME,
            "seconds": 7.04,
            "error": "CheckFailedError",
            "exit_code": 60,
            "hint": "Look at ***.",
            "warnings": ["of the drill"],
        },
    }


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_webhook_of_one_kind_of_run_hears_nothing_of_the_other(operation: Operation) -> None:
    heard = (ATTEMPTED, SUCCEEDED, DRILLING, NOT_PROVEN, NOT_COPIED, NOT_PRUNED)
    courier = posted(*heard, operations=[operation])
    [extra] = [json.loads(body)["extra"] for body in courier.bodies]
    assert extra["operation"] == operation


def test_warnings_are_those_of_the_run() -> None:
    heard = [
        ATTEMPTED,
        events.Warned(f"odd {SECRET}"),
        events.Retrying("put of x", 1, 3, 5.0, "503 Slow Down"),
        events.UploadLeftBehind("a/b", "upload-1", "503"),
        FAILED,
        ATTEMPTED,
        SUCCEEDED,
    ]
    first, second = (json.loads(body)["extra"]["warnings"] for body in posted(*heard).bodies)
    assert first[:2] == ["odd ***", "put of x was retried: 503 Slow Down"]
    assert "upload-1" in first[2]
    assert second == []


def test_texts_are_cut_after_they_were_scrubbed() -> None:
    message = "x" * (LONGEST_TEXT - 150) + SECRET * 9
    failed = events.BackupFailed(NAME, 1, message, "")
    warned = [events.Warned("w" * 10_000)] * 100
    [body] = posted(ATTEMPTED, *warned, failed).bodies
    assert SECRET[:8].encode() not in body
    assert len(body) < (MOST_WARNINGS + 2) * (LONGEST_TEXT + 20)


def test_names_that_are_not_text_can_be_posted() -> None:
    failed = events.BackupFailed(NAME, 1, 'a "\udce9\x00\n密', "", "h", "\udc80")
    [body] = posted(failed).bodies
    assert body.isascii()
    assert json.loads(body)["database"]["name"] == "\udc80"


@pytest.mark.parametrize("on_success", [True, False])
@pytest.mark.parametrize("on_failure", [True, False])
def test_the_switches(on_success: bool, on_failure: bool) -> None:  # noqa: FBT001 - parameters
    ends = (SUCCEEDED, PASSED, FAILED, NOT_PROVEN)
    courier = posted(*ends, on_success=on_success, on_failure=on_failure)
    found = [json.loads(body)["status"] for body in courier.bodies]
    assert found == ["success"] * 2 * on_success + ["failure"] * 2 * on_failure


def test_only_the_end_of_a_run_is_reported() -> None:
    assert report(ATTEMPTED, events.BackupStarted(NAME), events.Progressed(NAME, 1, 1)) == []
    assert [payload["status"] for payload in report(SUCCEEDED, FAILED)] == ["success", "failure"]


@pytest.mark.parametrize(
    ("url", "signal", "expected"),
    [
        ("https://hc-ping.com/uuid", "", "https://hc-ping.com/uuid"),
        ("https://hc-ping.com/uuid", "start", "https://hc-ping.com/uuid/start"),
        ("https://hc-ping.com/uuid/", "fail", "https://hc-ping.com/uuid/fail"),
        (
            "https://hc.example/k/s?create=1&x=%2F",
            "fail",
            "https://hc.example/k/s/fail?create=1&x=%2F",
        ),
        ("http://u:p@hc.example:8000/a?b", "", "http://u:p@hc.example:8000/a?b"),
    ],
)
def test_urls_of_pings(url: str, signal: str, expected: str) -> None:
    assert ping_url(url, signal) == expected


def test_pings() -> None:
    courier = Collected()
    ping = Ping("https://hc.example/uuid", courier, Scrubber([SECRET]))
    drills = (DRILLING, PASSED, DRILLING, NOT_PROVEN)  # of which it hears nothing
    for event in (ATTEMPTED, events.BackupStarted(NAME), SUCCEEDED, *drills, ATTEMPTED, FAILED):
        ping(event)
    assert [(request.method, request.url) for request in courier.requests] == [
        ("GET", "https://hc.example/uuid/start"),
        ("GET", "https://hc.example/uuid"),
        ("GET", "https://hc.example/uuid/start"),
        ("POST", "https://hc.example/uuid/fail"),
    ]
    [body] = courier.bodies
    assert body.decode() == (f"Backup failed after 3.2s: {NAME}: pg_dump failed: ***\nLook at ***.")


def test_a_request_hides_its_url() -> None:
    assert "planted" not in repr(Request("GET", "https://hooks.example.com/planted"))


def test_a_copy_that_failed_is_posted() -> None:
    [payload] = report(ATTEMPTED, events.Warned("of the backup"), NOT_COPIED)
    assert payload["status"] == "failure"
    assert payload["message"] == f"{NAME} was not copied to offsite: down: {SECRET}"
    assert payload["extra"] == {
        "operation": "copy",
        "backup": NAME,
        "seconds": 2.0,
        "error": "StorageUnreachableError",
        "exit_code": 20,
        "hint": "Check it.",
        "copy": "offsite",
        "warnings": [],
    }


def test_a_backup_reports_the_copies_as_they_are_known() -> None:
    compared = events.CopyCompared("offsite", NAME, PROVEN, 2, "down")
    payload = report(compared, ATTEMPTED, SUCCEEDED)[0]
    extra = payload["extra"]
    assert isinstance(extra, dict)
    assert extra["copies"] == {
        "offsite": {
            "newest": NAME,
            "at": "2026-01-30T04:00:00Z",
            "missing": 2,
            "problem": "down",
        }
    }


def test_pruning_that_failed_after_a_backup_is_posted() -> None:
    [body] = posted(ATTEMPTED, events.Warned("of the backup"), NOT_PRUNED).bodies
    assert json.loads(body)["message"] == "Pruning failed: refused"
    assert json.loads(body)["extra"] == {
        "operation": "prune",
        "error": "StorageDeniedError",
        "exit_code": 21,
        "hint": "Check it.",
        "warnings": [],
    }
