"""Progress: lines now and then in a log, a bar on a terminal that leaves stdout alone."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
import time

import pytest

from pgstash import events
from pgstash.monitoring import progress
from pgstash.monitoring.progress import Lines

NAME = "backup_20260131_020000.sql.gz"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_line_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgstash")
    clock = Clock()
    lines = Lines(every=30, clock=clock)
    clock.now += 1000  # what came before the backup does not count
    lines(events.BackupStarted(NAME))
    for second in range(1, 76):
        clock.now += 1
        lines(events.Progressed(NAME, second * 25_000_000, second * 1_000_000))
    assert messages(caplog) == [
        "In progress: 750MB read, 30MB stored, 25MB/s, 30s elapsed",
        "In progress: 1.5GB read, 60MB stored, 25MB/s, 1m elapsed",
    ]


def test_lines_also_while_no_event_comes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "pgstash")
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LOOKS", 0.01)
    with progress.listen() as listener:
        listener(events.DrillStarted(NAME, "a throwaway server"))
        listener(events.PhaseStarted("checks"))
        give_up = time.monotonic() + 60
        while len(messages(caplog)) < 3 and time.monotonic() < give_up:
            time.sleep(0.01)
    assert set(messages(caplog)) == {"In progress: checks: 0s elapsed"}
    assert len(messages(caplog)) >= 3


def test_no_line_for_a_short_backup(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgstash")
    clock = Clock()
    lines = Lines(every=30, clock=clock)
    lines(events.BackupStarted(NAME))
    clock.now += 29.9
    lines(events.Progressed(NAME, 1, 1))
    clock.now += 100
    lines(events.UploadFinished(NAME, 1, 1))
    assert messages(caplog) == []


def test_without_a_terminal_there_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.listen() as listener:
        assert isinstance(listener, Lines)
        listener(events.BackupStarted(NAME))
    assert capsys.readouterr() == ("", "")


PROGRAM = """
import sys
from pgstash import events
from pgstash.monitoring import event_log, log, progress
from pgstash.monitoring.redaction import Scrubber
log.start(Scrubber(["PlantedSecret1"]), layout="text", debug=False)
name = "backup_20260131_020000.sql.gz"
with progress.listen() as show:
    event_log.listen(events.BackupStarted(name))
    for done in range(4):
        show(events.Progressed(name, done * 1_000_000, done))
        __import__("time").sleep(0.15)
    log.LOGGER.warning("a warning of PlantedSecret1")
    show(events.DumpFinished(name, 1, 3_000_000))
"""


def run(
    *, terminal: tuple[str, ...], columns: int = 200, program: str = PROGRAM
) -> tuple[str, str, str]:
    """Run the program; return what reached the terminal, stdout and stderr."""
    ours, theirs = pty.openpty()
    streams = {
        name: theirs if name in terminal else subprocess.PIPE for name in ("stdout", "stderr")
    }
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": str(columns)},
        stdout=streams["stdout"],
        stderr=streams["stderr"],
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            more = os.read(ours, 65536)
        except OSError:  # how a pty says that the other end is closed
            break
        shown += more
    os.close(ours)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0
    return shown.decode(), (out or b"").decode(), (err or b"").decode()


def test_a_bar_on_a_terminal_and_the_log_in_its_file() -> None:
    shown, out, _ = run(terminal=("stderr",))
    assert "3.0MB read" in shown
    assert "a warning of ***" in shown
    assert "Starting backup" not in shown
    assert out.endswith(f"INFO Starting backup: {NAME}\n")
    assert len(out.splitlines()) == 1


def test_log_and_bar_share_a_terminal() -> None:
    shown, _, _ = run(terminal=("stdout", "stderr"))
    assert "MB" in shown
    assert f"Starting backup: {NAME}" in shown
    assert "PlantedSecret1" not in shown


@pytest.mark.parametrize("columns", [60, 25])
def test_a_line_that_is_longer_than_the_terminal_is_not_broken(columns: int) -> None:
    shown, _, _ = run(terminal=("stdout", "stderr"), columns=columns)
    assert f" INFO Starting backup: {NAME}\r\n" in shown
    assert " WARNING a warning of ***\x1b[0m\r\n" in shown
    assert "MB" in shown


def test_a_name_controls_no_terminal() -> None:
    program = PROGRAM.replace(
        "events.Progressed(name, done * 1_000_000, done)",
        "events.WorkingOn('index of t\\x1b]0;forged\\x9b2J\\nforged')",
    ).replace("events.BackupStarted(name))", "events.RestoreStarted(name, 'h', 'd', False))")
    program = program.replace("event_log.listen(", "show(")
    shown, _, _ = run(terminal=("stderr",), program=program)
    assert r"index of t\x1b]0;forged\x9b2J\nforged, " in shown


def test_no_bar_where_only_stdout_is_a_terminal() -> None:
    shown, _, err = run(terminal=("stdout",))
    assert "MB" not in shown
    assert err.count("\n") == 1


def test_a_process_started_without_stderr() -> None:
    shell = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, PROGRAM],
        stdout=subprocess.PIPE,
        timeout=30,
        check=False,
    )
    assert shell.returncode == 0
    assert b"Starting backup" in shell.stdout
