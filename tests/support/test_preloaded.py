"""A run that is a fork behaves as a start of the command does."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.cli import COMMAND, PRELOADED, environment, run_pgstash, started_pgstash

SHOW = """
import os, sys, time
print(sys.argv[1:], os.getcwd(), sorted(os.environ), sys.stdin.read(), time.tzname[0])
sys.exit(7)
"""


def test_same_help_and_same_refusal() -> None:
    for arguments in (["--help"], ["restore", "--create"], ["once", "--unknown"]):
        forked, started = (
            run_pgstash(arguments, environment(), command=command) for command in ((), (COMMAND,))
        )
        assert (forked.returncode, forked.stdout, forked.stderr) == (
            started.returncode,
            started.stdout,
            started.stderr,
        )


def test_what_a_run_gets(tmp_path: Path) -> None:
    env = environment(STORAGE_URL="file:///x") | {"TZ": "Asia/Tokyo"}
    done = run_pgstash(["a b"], env, stdin="input", cwd=tmp_path, statements=[SHOW])
    names = sorted(env)
    assert done.stdout == f"['a b'] {tmp_path} {names} input JST\n"
    assert (done.returncode, done.stderr) == (7, "")


def test_a_run_changes_nothing_for_the_next() -> None:
    change = "import os, pgstash.cli; pgstash.cli.main = lambda: print('other'); os.chdir('/tmp')"
    assert run_pgstash([], environment(), statements=[change]).stdout == "other\n"
    show = "import os; print(os.getcwd())"
    done = run_pgstash(["--version"], environment(), statements=[show])
    assert done.stdout.startswith("/\npgstash ")


def test_a_status_by_signal() -> None:
    for signum in (signal.SIGKILL, signal.SIGTERM):
        die = f"import os; os.kill(os.getpid(), {int(signum)})"
        assert run_pgstash([], environment(), statements=[die]).returncode == -signum


def test_a_run_that_takes_too_long(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    slow = f"import os, pathlib, time; pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))"
    with pytest.raises(subprocess.TimeoutExpired):
        run_pgstash([], environment(), statements=[slow, "time.sleep(600)"], timeout=2)
    give_up = time.monotonic() + 60
    while Path(f"/proc/{pid.read_text()}").exists():  # until its parent has seen its end
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_runs_at_the_same_time() -> None:
    """Each waits for the other."""
    meet = "import os; {}; print(os.getpid())"
    reader, writer = os.pipe()
    with ThreadPoolExecutor() as threads:
        path = f"/proc/{os.getpid()}/fd"
        first = threads.submit(
            run_pgstash,
            ["--version"],
            environment(),
            statements=[meet.format(f"open('{path}/{reader}').read(1)")],
        )
        second = threads.submit(
            run_pgstash,
            ["--version"],
            environment(),
            statements=[meet.format(f"open('{path}/{writer}', 'w').write('x')")],
        )
        pids = {done.result().stdout.split()[0] for done in (first, second)}
    os.close(reader)
    os.close(writer)
    assert len(pids) == 2


@pytest.mark.parametrize("name", ["LC_ALL", "PYTHONOPTIMIZE", "LD_PRELOAD", "NO_COLOR"])
def test_what_only_a_start_reads(name: str) -> None:
    assert not PRELOADED.can_run(environment() | {name: "x"})
    assert PRELOADED.can_run(environment() | {"PGHOST": "x", "AWS_REGION": "x", "HOME": "/x"})


def test_statements_come_first_in_a_start_too() -> None:
    env = environment() | {"PYTHONOPTIMIZE": "1"}
    done = run_pgstash(["--version"], env, statements=["print(__debug__)"])
    assert done.stdout.startswith("False\n")


# A run that goes on.


def test_it_is_a_process_that_was_started(tmp_path: Path) -> None:
    wait = ["import os, time", "print(os.getcwd(), os.getsid(0) == os.getpid(), flush=True)"]
    with started_pgstash(
        [], environment(), cwd=tmp_path, statements=[*wait, "time.sleep(600)"]
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == f"{tmp_path} True\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        process.terminate()
        assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == -signal.SIGTERM


def test_what_it_says_and_its_status() -> None:
    with started_pgstash(["once", "--unknown"], environment()) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "--unknown" in err


def test_whoever_is_left_is_killed() -> None:
    with started_pgstash([], environment(), statements=["import time; time.sleep(600)"]) as process:
        pass
    assert process.returncode == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_signal_by_one_thread_while_another_waits() -> None:
    wait = "import time; print('runs', flush=True); time.sleep(600)"
    with (
        started_pgstash([], environment(), statements=[wait]) as process,
        ThreadPoolExecutor() as threads,
    ):
        assert process.stdout
        process.stdout.readline()
        waiting = threads.submit(process.wait)
        time.sleep(0.2)
        process.terminate()
        assert waiting.result(timeout=60) == -signal.SIGTERM
