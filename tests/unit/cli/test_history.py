"""How `pgstash history` prints runs: for people, in a narrow terminal, and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from pgstash.cli import history
from pgstash.commands.history import Entry
from pgstash.format.failure_record import Facts, Failure
from pgstash.monitoring.log import LOGGER

AT = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
NAME = "backup_20260131_020000.sql.gz"
SOURCE = {"database": "shop", "system": "7"}
BACKUP = Entry(
    AT, "backup", NAME, SOURCE | {"tables": "1", "rows": "1200", "raw-bytes": "5000"}, 7.5, 1000
)
DRILL = Entry(AT, "drill", NAME, SOURCE, 61.0)
FACTS = Facts("backup", "DumpError", 13, "dumping", 10.0, "")
REASON = Failure(
    1, "t", "backup", "0" * 16, "", 10.0, "dumping", "DumpError", 13, "pg_dump\nfailed", "Do it.",
    "", "worker-1",
)  # fmt: skip
FAILED = Entry(AT, "backup", "", SOURCE, 10.0, failed=FACTS, reason=REASON)
# Its metadata were written by someone else, or lost.
ODD = Entry(
    AT, "backup", "", {"rows": "9" * 5000}, None, failed=Facts("backup", "", None, "", None, "")
)


def test_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    found = [("", entry) for entry in (BACKUP, DRILL, FAILED, ODD)]
    history.show(found, 30, as_json=False)
    lines = [line.split(maxsplit=6) for line in capsys.readouterr().out.splitlines()]
    time = "2026-01-31T02:00:00Z"
    assert lines == [
        ["TIME", "RUN", "RESULT", "TOOK", "DATABASE", "BACKUP", "DETAILS"],
        [time, "backup", "ok", "7.5s", "shop", NAME, "1.0KB, 1 table, 1,200 rows"],
        [time, "drill", "ok", "61s", "shop", NAME, "restored, and passed all checks"],
        [time, "backup", "FAILED", "10s", "shop", "-",
         "exit status 13, while dumping: pg_dump failed"],
        [time, "backup", "FAILED", "-", "-", "-",
         "exit status unknown, while running:"],
    ]  # fmt: skip


def test_a_narrow_terminal_cuts_the_details(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    history.show([("eu/shop", FAILED)], 30, as_json=False)
    head, line = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["TIME", "JOB"]
    assert len(line) <= 110
    assert "eu/shop" in line
    monkeypatch.setenv("COLUMNS", "20")
    history.show([("", FAILED)], 30, as_json=False)
    assert capsys.readouterr().out.splitlines()[1].endswith("exit status 13, whi…")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    history.show([("eu/shop", BACKUP), ("", FAILED), ("", ODD)], 30, as_json=True)
    backup, failed, odd = json.loads(capsys.readouterr().out)
    assert backup["job"] == "eu/shop"
    assert {key: backup[key] for key in ("size", "raw_bytes", "tables", "rows", "source")} == {
        "size": 1000,
        "raw_bytes": 5000,
        "tables": 1,
        "rows": 1200,
        "source": "shop@7",
    }
    assert (failed["message"], failed["exit_code"], failed["machine"]) == (
        "pg_dump\nfailed",
        13,
        "worker-1",
    )
    assert (odd["rows"], odd["error"], odd["exit_code"], odd["source"]) == (None, None, None, None)


def test_nothing_in_these_days(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOGGER, "handlers", [])  # another test may have let it log to stdout
    history.show([], 7, as_json=False)
    assert capsys.readouterr().out == ""
    history.show([], 7, as_json=True)
    assert json.loads(capsys.readouterr().out) == []
