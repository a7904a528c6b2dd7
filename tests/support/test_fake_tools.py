"""The fakes do what their names say."""

from __future__ import annotations

import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from support import fake_tools
from support.fake_tools import MIB, FakePgDump, install_pg_dump, recorded_calls

if TYPE_CHECKING:
    from pathlib import Path

COMPLETE = b"\\.\n\n\n--\n-- PostgreSQL database dump complete\n--\n\n"


def run(folder: Path, behaviour: FakePgDump) -> subprocess.CompletedProcess[bytes]:
    tools = install_pg_dump(folder, behaviour)
    return subprocess.run(
        [tools / "pg_dump", "--format=plain"],
        env={"PATH": "/usr/bin:/bin", "PGPASSWORD": "geheim"},
        capture_output=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("behaviour", "status", "complete"),
    [
        (FakePgDump(), 0, True),
        (fake_tools.dies_midway(2 * MIB), 1, False),
        (fake_tools.fails_after_complete_dump(), 1, True),
        (fake_tools.truncated_but_status_zero(), 0, False),
        (fake_tools.writes_nothing(), 0, False),
        (fake_tools.floods_stderr(), 0, True),
        (fake_tools.killed(by="SIGSEGV"), -signal.SIGSEGV, False),
    ],
)
def test_status_and_end(
    tmp_path: Path, behaviour: FakePgDump, status: int, *, complete: bool
) -> None:
    done = run(tmp_path, behaviour)
    assert done.returncode == status
    assert done.stdout.endswith(COMPLETE) is complete


def test_version(tmp_path: Path) -> None:
    tools = install_pg_dump(tmp_path, FakePgDump(version="14.23"))
    command = [str(tools / "pg_dump"), "--version"]
    assert subprocess.check_output(command) == b"pg_dump (PostgreSQL) 14.23\n"
    assert recorded_calls(tools) == []


def test_a_call_is_recorded(tmp_path: Path) -> None:
    run(tmp_path, FakePgDump())
    (call,) = recorded_calls(tmp_path)
    assert call["arguments"] == ["--format=plain"]
    assert call["environment"]["PGPASSWORD"] == "geheim"


def test_the_password_leaks(tmp_path: Path) -> None:
    assert b"password=geheim" in run(tmp_path, fake_tools.leaks_password()).stderr


def test_a_flood_may_be_one_line(tmp_path: Path) -> None:
    stderr = run(tmp_path, fake_tools.floods_stderr(4 * MIB, newlines=False)).stderr
    assert len(stderr) > 3 * MIB
    assert b"\n" not in stderr


def test_it_ignores_sigterm(tmp_path: Path) -> None:
    tools = install_pg_dump(tmp_path, fake_tools.ignores_sigterm())
    with subprocess.Popen([tools / "pg_dump"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(MIB // 2)
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.kill()
