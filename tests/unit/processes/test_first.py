"""Process 1 of a container: it reaps orphans, passes signals on, and exits as pgstash does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.postgres import clean_environment

# The test is no process 1, but as a "child subreaper" it gets the orphans of its children.
BEGINNING = """
import ctypes, os, signal, subprocess, sys, time
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0
from pgstash.processes import first
parent = os.getpid()
first.continue_as_child()
assert os.getppid() == parent
"""


@contextmanager
def started(script: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BEGINNING + script],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as process:
        try:
            yield process
        finally:
            left = [] if process.returncode is not None else [*children(process.pid), process.pid]
            for pid in left:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("", 0),
        ("sys.exit(13)", 13),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137),
        ("signal.raise_signal(signal.SIGTERM)", 143),
    ],
)
def test_the_status_is_that_of_pgstash(script: str, status: int) -> None:
    with started(script) as process:
        assert process.wait(20) == status


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_pgstash(signum: signal.Signals) -> None:
    script = """
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
print(flush=True)
sys.exit(signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGHUP}))
"""
    with started(script) as process:
        assert process.stdout
        process.stdout.readline()
        process.send_signal(signum)
        assert process.wait(20) == signum


def test_orphans_leave_no_zombies() -> None:
    script = """
for _ in range(3):
    subprocess.run(["sh", "-c", "sleep 0.1 & sleep 0.1 &"], check=True)
assert subprocess.run(["sh", "-c", "exit 7"]).returncode == 7  # its status is still its own
print(flush=True)
time.sleep(60)
"""
    with started(script) as process:
        assert process.stdout
        process.stdout.readline()
        give_up = time.monotonic() + 10
        while len(children(process.pid)) > 1 and time.monotonic() < give_up:
            time.sleep(0.05)
        [left] = children(process.pid)
        os.kill(left, signal.SIGKILL)
        assert process.wait(20) == 137


def test_process_1_is_not_the_program_itself() -> None:
    """In a new namespace of processes, as in a container."""
    command = ["unshare", "--pid", "--fork", "--mount-proc"]
    if os.getuid() != 0 or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("no namespace of processes can be made here")
    script = f"import os, sys; from pgstash import __main__, cli; {SHOW}; __main__.main()"
    ended = subprocess.run(
        [*command, sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("2 1\n", 5)


SHOW = "cli.main = lambda: (print(os.getpid(), os.getppid()), sys.exit(5))"


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
