"""A password comes from a command: one line of its output, and nothing else."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import settings
from pgstash.commands import health
from pgstash.errors import DatabaseLoginError
from pgstash.processes.password_command import PasswordCommand

if TYPE_CHECKING:
    from collections.abc import Sequence


def command(script: str, learnt: list[str] | None = None) -> PasswordCommand:
    learn = [] if learnt is None else learnt
    words = ["/bin/sh", "-c", script]
    return PasswordCommand("THE_COMMAND", words, {"PATH": os.environ["PATH"]}, learn.extend)


def forgotten(_passwords: Sequence[str]) -> None:
    """Learn nothing."""


@pytest.mark.parametrize(
    ("script", "password"),
    [
        ("echo secret", "secret"),
        ("printf 'no end'", "no end"),
        (r"printf 'with CR\r\n'", "with CR"),
        ("echo ' p@ss %\\ \"é '", ' p@ss %\\ "é '),
        ("echo noise >&2; echo secret", "secret"),
    ],
)
def test_its_output_is_the_password(script: str, password: str) -> None:
    learnt: list[str] = []
    assert command(script, learnt)() == password
    assert learnt == [password]


def test_each_call_runs_it_again(tmp_path: Path) -> None:
    asked = command(f"echo x >> {tmp_path / 'calls'}; wc -l < {tmp_path / 'calls'} | tr -d ' '")
    assert [asked(), asked(), asked()] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "THE_COMMAND failed with exit status 3"),
        (
            "echo 'not logged in' >&2; exit 3",
            "THE_COMMAND failed with exit status 3: not logged in",
        ),
        ("true", "THE_COMMAND did not print one line with a password"),
        ("echo", "THE_COMMAND did not print one line with a password"),
        ("echo a; echo b", "THE_COMMAND did not print one line with a password"),
        (r"printf 'a\033b'", "THE_COMMAND did not print one line with a password"),
        (r"printf 'a\377b'", "THE_COMMAND did not print one line with a password"),
        ("kill -9 $$", "THE_COMMAND failed with exit status -9"),
    ],
)
def test_anything_else_is_an_error(script: str, message: str) -> None:
    with pytest.raises(DatabaseLoginError) as raised:
        command(script)()
    assert raised.value.message == message
    assert raised.value.retryable
    assert "by hand" in raised.value.hint


def test_what_was_printed_before_a_failure_is_secret_too() -> None:
    learnt: list[str] = []
    with pytest.raises(DatabaseLoginError):
        command("echo half; echo other; exit 1", learnt)()
    assert learnt == ["half", "other"]


def test_it_cannot_be_started() -> None:
    asked = PasswordCommand("THE_COMMAND", ["/nonexistent"], {}, forgotten)
    with pytest.raises(DatabaseLoginError, match="THE_COMMAND cannot be started: No such file"):
        asked()


@pytest.mark.parametrize("script", ["sleep 1000 & sleep 1000", "yes"])
def test_it_has_an_end(script: str) -> None:
    with pytest.raises(DatabaseLoginError, match="THE_COMMAND did not end in time"):
        replace(command(script), seconds=0.3)()


def test_what_it_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    left = tmp_path / "pid"
    assert command(f"sleep 1000 & echo $! > {left}; echo secret")() == "secret"
    stat = Path(f"/proc/{left.read_text().strip()}/stat")
    give_up = time.monotonic() + 60
    # A process that ended may wait for its parent.
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_it_shows_nothing() -> None:
    words = [sys.executable, "-c", "1"]
    shown = repr(PasswordCommand("THE_COMMAND", words, {"TOKEN": "planted"}, forgotten))
    assert "planted" not in shown


def test_a_long_message_shows_no_half_of_a_password() -> None:
    """Redaction knows the whole token, and would not recognise its beginning."""
    token = "planted" * 300
    with pytest.raises(DatabaseLoginError) as raised:
        command(f"set -x; echo {token}; exit 1")()
    assert "planted" not in raised.value.message.replace(token, "")
    assert raised.value.message.startswith("THE_COMMAND failed with exit status 1")
    assert len(raised.value.message) < 1100


def test_the_check_of_health_does_not_wait_as_long_as_a_backup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container's check is killed after 30 seconds, and would leave the command behind."""
    assert health.PASSWORD_SECONDS < 30
    monkeypatch.setattr(health, "PASSWORD_SECONDS", 0.3)
    values = {
        "DATABASE_URL": "postgresql://backup@127.0.0.1:1/shop",
        "DATABASE_PASSWORD_COMMAND": "sleep 30",
        "STORAGE_URL": "file:///nonexistent",
    }
    began = time.monotonic()
    with pytest.raises(DatabaseLoginError, match="DATABASE_PASSWORD_COMMAND did not end in time"):
        health.healthcheck(settings.load(values, Path("/nonexistent/.env")))
    assert time.monotonic() - began < 20
