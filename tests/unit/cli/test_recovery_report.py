"""The report of a recovery, for people and for programs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pgstash.cli import recovery_report
from pgstash.commands.recovery_results import Report, Result

if TYPE_CHECKING:
    import pytest

STARTED = datetime(2026, 1, 31, 2, tzinfo=UTC)
NAME = "backup_20260131_020000.sql.gz"
GOOD = Result("crm", "restored", NAME, STARTED, 7_000, 1234, 61.0, to_do=["look at it"])
BAD = Result("shop", "failed", message="no room", hint="Make some.", exit_code=62)


def test_a_report_names_what_is_missing_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report([GOOD, BAD], ["a role"], ["app"])
    assert not report.is_whole
    recovery_report.show(report, str, dry_run=False)
    shown = capsys.readouterr().out
    assert "DATABASE  STATE" in shown
    assert "crm       restored      backup_20260131_020000  2026-01-31T02:00:00Z" in shown
    assert "1,234" in shown
    assert "shop (62): no room\nMake some." in shown
    assert "- a role\n- crm: look at it" in shown
    facts = recovery_report.facts(report, dry_run=False)
    assert (facts["status"], facts["exit_code"]) == ("failure", 55)
    assert [each["state"] for each in facts["databases"]] == ["restored", "failed"]
    error = recovery_report.failure(report, dry_run=False)
    assert error.message == "1 of 2 databases and 1 role not restored"
    assert recovery_report.failure(Report([], [], ["a", "b"]), dry_run=True).message == (
        "2 roles cannot be restored"
    )


def test_all_is_back_only_with_all_roles() -> None:
    assert Report([GOOD], []).is_whole
    assert recovery_report.facts(Report([GOOD], []), dry_run=False)["exit_code"] == 0
    assert not Report([GOOD], [], ["app"]).is_whole
    assert not Report([GOOD, BAD], []).is_whole
