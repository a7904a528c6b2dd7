"""Runs of pgstash itself: some at a time, each with its outcome, and none outlives the caller."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import __version__, events
from pgstash.processes import own_commands
from pgstash.processes.children import Command
from support.postgres import clean_environment

if TYPE_CHECKING:
    import pytest

ENVIRONMENT = clean_environment() | {"HOME": "/"}


def command(*arguments: str, **more: str) -> Command:
    return Command(arguments, reports=False, more=ENVIRONMENT | more)


def test_each_outcome_is_returned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pgstash").mkdir()  # no module of the working directory is imported
    (tmp_path / "pgstash" / "__init__.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    seen: list[events.Event] = []
    commands = {"good": command("--version"), "bad": command("list")}
    found = {each.key: each for each in own_commands.run(commands, 2, seen.append)}
    assert (found["good"].status, found["good"].output) == (0, f"pgstash {__version__}\n")
    assert found["bad"].status == 1
    assert "S3_BUCKET" in "\n".join(found["bad"].last_lines)
    logged = [each.message for each in seen if isinstance(each, events.Notice)]
    assert any(each.startswith("bad: ") and "S3_BUCKET" in each for each in logged)


def test_no_more_run_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_commands, "_SECONDS_BETWEEN_REPORTS", 0.0)
    seen: list[events.Event] = []
    commands = {name: command("--version") for name in "ab"}
    assert [each.key for each in own_commands.run(commands, 1, seen.append)] == ["a", "b"]
    reports = [each.message for each in seen if isinstance(each, events.Informed)]
    assert reports
    assert not any("a (" in each and "b (" in each for each in reports)


def test_none_outlives_the_caller(tmp_path: Path) -> None:
    """The runs get SIGTERM, and report which signal ended them."""
    fifo = tmp_path / "key"
    os.mkfifo(fifo)  # whoever opens it waits
    waiting = command(
        "list",
        STORAGE_URL=tmp_path.as_uri(),
        BACKUP_ENCRYPTION_KEY_FILE=str(fifo),
    )
    seen: list[events.Event] = []
    began = time.monotonic()
    with contextlib.closing(
        own_commands.run({"first": command("--version"), "waiting": waiting}, 2, seen.append)
    ) as runs:
        assert next(runs).key == "first"
        time.sleep(1.0)
        [pid] = [
            int(path.parent.name)
            for path in Path("/proc").glob("[0-9]*/environ")
            if _environment_of(path).find(str(fifo).encode()) >= 0
        ]
    assert time.monotonic() - began < 20
    assert not Path(f"/proc/{pid}").exists()


def test_a_signal_is_a_status_below_zero(tmp_path: Path) -> None:
    fifo = tmp_path / "key"
    os.mkfifo(fifo)
    waiting = command("list", STORAGE_URL=tmp_path.as_uri(), BACKUP_ENCRYPTION_KEY_FILE=str(fifo))
    runs = own_commands.run({"first": command("--version"), "waiting": waiting}, 2, events.ignore)
    assert next(runs).status == 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        if str(fifo).encode() in _environment_of(path):
            os.kill(int(path.parent.name), signal.SIGKILL)
    assert next(runs).status == -signal.SIGKILL


def test_what_cannot_be_started_stops_nothing_else() -> None:
    long = command("--version", TOO_LONG="x" * 4_000_000)
    commands = {"long": long, "good": command("--version")}
    found = list(own_commands.run(commands, 1, events.ignore))
    assert [(each.key, each.status) for each in found] == [("long", 70), ("good", 0)]
    assert "cannot be started" in found[0].last_lines[0]


def _environment_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
