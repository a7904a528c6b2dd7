"""The first signal unwinds, a commit is let finish, and a second signal ends the process."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from pgstash import signals
from pgstash.errors import Interrupted
from pgstash.signals import Interruption

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # where Python runs the handler at the latest


def handlers() -> list[object]:
    return [signal.getsignal(signum) for signum in (*SIGNALS, signal.SIGALRM)]


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_unwinds_and_the_handlers_are_given_back(signum: int) -> None:
    before = handlers()
    unwound = []
    with pytest.raises(Interrupted) as caught, Interruption().installed():  # noqa: PT012
        try:
            send(signum)
            pytest.fail("the signal was not heard")
        finally:
            unwound.append(True)
    assert caught.value.signum == signum
    assert unwound
    assert handlers() == before


def test_without_a_signal_nothing_happens() -> None:
    before = handlers()
    interruption = Interruption()
    with interruption.installed():
        assert handlers()[:2] != before[:2]
        with interruption.defer_signals():
            pass
    assert handlers() == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_commit_finishes_first(signum: int) -> None:
    before = handlers()
    interruption = Interruption()
    steps = []
    with pytest.raises(Interrupted) as caught, interruption.installed():  # noqa: PT012
        with interruption.defer_signals():
            send(signum)
            steps.append("committed")
        steps.append("told of the success")
        interruption.raise_if_interrupted()
        steps.append("never reached")
    assert caught.value.signum == signum
    assert steps == ["committed", "told of the success"]
    assert handlers() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_commit_that_takes_too_long_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "COMMIT_SECONDS", 0.05)
    before = handlers()
    interruption = Interruption()
    cut_off = pytest.raises(Interrupted)
    with cut_off as caught, interruption.installed(), interruption.defer_signals():
        send(signal.SIGTERM)
        time.sleep(5)
        pytest.fail("the commit was not cut off")
    assert caught.value.signum == signal.SIGTERM
    assert handlers() == before


def test_an_error_in_the_commit_is_not_hidden() -> None:
    interruption = Interruption()
    refused = pytest.raises(ValueError, match="refused")
    with refused, interruption.installed(), interruption.defer_signals():
        send(signal.SIGTERM)
        raise ValueError("refused")


def test_an_alarm_that_is_not_ours_interrupts_nothing() -> None:
    interruption = Interruption()
    with interruption.installed(), interruption.defer_signals():
        send(signal.SIGALRM)


def run(body: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import os, signal, time\n"
        "from pgstash.errors import Interrupted\n"
        "from pgstash.signals import Interruption, end_by\n"
        "def send(signum):\n"
        "    os.kill(os.getpid(), signum)\n"
        "    time.sleep(0.01)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program + body],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


IMPATIENT = "from pgstash import signals; signals._ECHO_SECONDS = 0.1\n"


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(second: int) -> None:
    done = run(
        IMPATIENT + "interruption = Interruption()\n"
        "with interruption.installed():\n"
        "    try:\n"
        f"        send({int(signal.SIGINT)})\n"
        "    finally:\n"
        "        print('cleaning up', flush=True)\n"
        "        time.sleep(0.2)\n"
        f"        send({int(second)})\n"
        "        print('not reached', flush=True)\n"
    )
    assert done.returncode == -second
    assert done.stdout == "cleaning up\n"


def test_an_echo_of_the_signal_cuts_no_cleaning_short() -> None:
    """``timeout`` signals the child and then its group, a terminal all that run in it."""
    done = run(
        "interruption = Interruption()\n"
        "try:\n"
        "    with interruption.installed():\n"
        "        try:\n"
        f"            send({int(signal.SIGTERM)})\n"
        "        finally:\n"
        f"            send({int(signal.SIGTERM)})\n"
        f"            send({int(signal.SIGINT)})\n"
        "            print('cleaned up', flush=True)\n"
        "except Interrupted as interrupted:\n"
        "    end_by(interrupted.signum)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "cleaned up\n")


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    done = run(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with Interruption().installed():\n"
        f"    send({int(signal.SIGHUP)})\n"
        "print('still here', flush=True)\n"
    )
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_a_service_reads_its_file_again_on_sighup() -> None:
    """Inside the block; after it, SIGHUP ends the process again."""
    done = run(
        "interruption = Interruption()\n"
        "try:\n"
        "    with interruption.installed():\n"
        "        with interruption.hangup_calls(lambda: print('again', flush=True)):\n"
        f"            send({int(signal.SIGHUP)})\n"
        f"            send({int(signal.SIGHUP)})\n"
        f"        send({int(signal.SIGHUP)})\n"
        "except Interrupted as interrupted:\n"
        "    end_by(interrupted.signum)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGHUP, "again\nagain\n")


def test_sighup_of_a_terminal_that_is_gone_ends_the_service() -> None:
    program = (
        "import os, sys, time\n"
        "from pgstash.errors import Interrupted\n"
        "from pgstash.signals import Interruption\n"
        "out = os.dup(3)\n"
        "try:\n"
        "    interruption = Interruption()\n"
        "    again = interruption.hangup_calls(lambda: os.write(out, b'h'))\n"
        "    with interruption.installed(), again:\n"
        "        os.write(out, b'r')\n"
        "        time.sleep(30)\n"
        "except Interrupted as interrupted:\n"
        "    os.write(out, str(interrupted.signum).encode())\n"
    )
    reading, writing = os.pipe()
    pid, terminal = pty.fork()
    if not pid:
        os.dup2(writing, 3)
        os.set_inheritable(3, True)  # noqa: FBT003 - it takes no name
        os.execv(sys.executable, [sys.executable, "-c", program])  # noqa: S606 - the interpreter itself
    os.close(writing)
    assert os.read(reading, 1) == b"r"
    os.kill(pid, signal.SIGHUP)  # by hand: the terminal is still there
    assert os.read(reading, 1) == b"h"
    os.close(terminal)
    assert os.read(reading, 9) == b"1"
    os.close(reading)
    os.waitpid(pid, 0)


def test_process_1_cannot_be_ended_by_a_signal_and_says_the_same() -> None:
    """The first process of a container ignores what it does not handle."""
    program = f"import signal; from pgstash.signals import end_by; end_by({int(signal.SIGTERM)})"
    command = ["unshare", "--user", "--pid", "--fork", sys.executable, "-c", program]
    if os.geteuid() == 0:
        command.remove("--user")
    done = subprocess.run(command, timeout=30, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def test_a_second_signal_ends_a_commit_too() -> None:
    done = run(
        IMPATIENT + "interruption = Interruption()\n"
        "with interruption.installed(), interruption.defer_signals():\n"
        f"    send({int(signal.SIGTERM)})\n"
        "    print('still here', flush=True)\n"
        "    time.sleep(0.2)\n"
        f"    send({int(signal.SIGTERM)})\n"
        "    print('not reached', flush=True)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_caller_sees_the_signal_that_ended_us(signum: int) -> None:
    done = run(
        "try:\n"
        "    with Interruption().installed():\n"
        f"        send({int(signum)})\n"
        "except Interrupted as interrupted:\n"
        "    end_by(interrupted.signum)\n"
    )
    assert (done.returncode, done.stderr) == (-signum, "")


def test_a_signal_that_a_finalizer_swallows_is_heard_all_the_same() -> None:
    """Python ignores exceptions there: a dump would go on, and the signal be forgotten."""
    done = run(
        "import weakref\n"
        "class Thing: pass\n"
        "try:\n"
        "    with Interruption().installed():\n"
        "        thing = Thing()\n"
        f"        weakref.finalize(thing, send, {int(signal.SIGTERM)})\n"
        "        del thing\n"
        "        print('went on', flush=True)\n"
        "        time.sleep(20)\n"
        "except Interrupted as interrupted:\n"
        "    print('heard', interrupted.signum, flush=True)\n"
    )
    assert "Interrupted" in done.stderr, "where it was swallowed"
    assert done.stdout == f"went on\nheard {int(signal.SIGTERM)}\n"


def test_what_cleans_up_is_not_interrupted_again() -> None:
    done = run(
        "import contextlib\n"
        "@contextlib.contextmanager\n"
        "def upload():\n"
        "    try:\n"
        "        yield\n"
        "    finally:\n"
        "        try:\n"
        "            raise ValueError('on the way out')\n"
        "        except ValueError:\n"
        "            time.sleep(1)\n"
        "        print('cleaned up', flush=True)\n"
        "try:\n"
        "    with Interruption().installed(), upload():\n"
        f"        send({int(signal.SIGTERM)})\n"
        "except Interrupted as interrupted:\n"
        "    time.sleep(0.5)\n"
        "    end_by(interrupted.signum)\n"
    )
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "cleaned up\n"), done.stderr
