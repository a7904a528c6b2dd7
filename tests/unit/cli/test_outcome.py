"""What a restore or a drill reports becomes one line of JSON, without secrets."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from pgstash import events
from pgstash.cli.outcome import reporting
from pgstash.settings import load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

NAME = "backup_20260131_020000.sql.gz"
STARTED = events.RestoreStarted(NAME, "db", "shop", dry_run=False)
RESTORED = events.RestoreSucceeded(NAME, 1.2345, "db", "shop", 7, verified=True, kept="kept so")
PLANNED = events.RestorePlanned(
    name=NAME,
    host="db",
    database="shop",
    created=True,
    server="18.1",
    client="18.1",
    verified=False,
    raw_bytes=None,
    tables=None,
    rows=None,
)
FAILED = events.RestoreFailed(NAME, 2.0, "no PLANTEDSECRET", "try", "nothing", "StorageError", 20)
DRILLED = events.DrillSucceeded(
    NAME, 9.0, 8.0, "s3://b/p", datetime(2026, 1, 31, tzinfo=UTC), 7, 2, 5, "db", "shop"
)
DRILL_FAILED = events.DrillFailed(NAME, 9.0, "no", "try", "db", "shop", "DrillFailedError", 42)
OF_RESTORE = {"operation": "restore", "backup": NAME}
OF_DRILL = {
    "operation": "drill",
    "backup": NAME,
    "database": {"host": "db", "name": "shop"},
    "seconds": 9.0,
}


@pytest.fixture
def printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STORAGE_URL", tmp_path.as_uri())
    monkeypatch.setenv("BACKUP_ENCRYPTION_KEY", "PLANTEDSECRET of more than 32 characters, is it")

    def run(heard: Sequence[events.Event], *, as_json: bool = True) -> list[dict[str, Any]]:
        settings = load(needs=["storage"])
        passed_on: list[events.Event] = []
        with reporting(settings, passed_on.append, as_json=as_json) as emit:
            for event in heard:
                emit(event)
        assert passed_on == list(heard)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        (
            [STARTED, RESTORED],
            OF_RESTORE
            | {"status": "success", "database": {"host": "db", "name": "shop"}, "exit_code": 0}
            | {"seconds": 1.234, "raw_bytes": 7, "verified": True, "kept": "kept so"},
        ),
        (
            [STARTED, PLANNED],
            OF_RESTORE
            | {"status": "planned", "database": {"host": "db", "name": "shop"}, "exit_code": 0}
            | {"created": True, "server": "18.1", "client": "18.1", "verified": False}
            | {"raw_bytes": None, "tables": None, "rows": None},
        ),
        (
            [FAILED],
            OF_RESTORE
            | {"status": "failure", "database": None, "seconds": 2.0, "exit_code": 20}
            | {"message": "no PLANTEDSECRET", "hint": "try", "error": "StorageError"}
            | {"target": "nothing"},
        ),
        (
            [DRILLED],
            OF_DRILL
            | {"status": "success", "restore_seconds": 8.0, "location": "s3://b/p", "checks": 7}
            | {"tables": 2, "rows": 5, "exit_code": 0},
        ),
        (
            [DRILL_FAILED],
            OF_DRILL
            | {"status": "failure", "message": "no", "hint": "try", "error": "DrillFailedError"}
            | {"exit_code": 42},
        ),
    ],
    ids=["restored", "planned", "failed", "drilled", "drill failed"],
)
def test_each_end(printed: Any, heard: list[events.Event], expected: dict[str, object]) -> None:
    assert printed(heard) == [expected | {"to_do": [], "warnings": []}]


def test_warnings_and_what_is_left_to_do(printed: Any) -> None:
    earlier = [events.Warned("before the start")]
    heard = [STARTED, events.Warned("odd"), RESTORED, events.Warned("run this", to_do=True)]
    [found] = printed([*earlier, *heard])
    assert (found["warnings"], found["to_do"]) == (["odd"], ["run this"])


def test_no_secret(printed: Any) -> None:
    secret = "PLANTEDSECRET of more than 32 characters, is it"
    [found] = printed([STARTED, events.Warned(f"a {secret}"), FAILED])
    assert found["warnings"] == ["a ***"]


def test_nothing_without_an_end_or_unless_it_is_wanted(printed: Any) -> None:
    assert printed([events.Warned("odd")]) == []
    assert printed([STARTED, RESTORED], as_json=False) == []
