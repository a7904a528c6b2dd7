"""Children that run jobs: how they end is known, whatever they do, and none stays behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgstash.errors import Interrupted
from pgstash.processes import left_behind, outcome
from pgstash.processes.children import Children, Command, Ended
from pgstash.processes.outcome import Outcome
from pgstash.signals import Interruption

REPORT = """
import json, os, signal, sys, time
descriptor = int(sys.argv[-1].partition("=")[2])
def report(text):
    os.write(descriptor, text.encode())
"""
ENOUGH = 60.0  # seconds, on any machine


@contextmanager
def running(*scripts: str, grace: float = 5.0) -> Iterator[Children[str]]:
    children: Children[str] = Children(
        dict(os.environ), [sys.executable, "-c", f"{REPORT}\nexec(sys.argv[1])"]
    )
    with children.ending(grace):
        for number, script in enumerate(scripts):
            children.start(str(number), Command([script]))
        yield children


def ends(children: Children[str]) -> list[Ended[str]]:
    found: list[Ended[str]] = []
    give_up = time.monotonic() + ENOUGH
    while children and time.monotonic() < give_up:
        found += children.wait(ENOUGH)
    return sorted(found, key=lambda each: each.key)


def test_each_end_is_known() -> None:
    failing = json.dumps({"message": "no server", "retryable": True, "error": "XError"})
    with running("", f"report({failing!r}); sys.exit(10)", "sys.exit(70)") as children:
        assert ends(children) == [
            Ended("0", 0, None),
            Ended("1", 10, Outcome("no server", retryable=True, error="XError")),
            Ended("2", 70, None),
        ]


@pytest.mark.parametrize(
    "script",
    [
        "report('garbage'); sys.exit(13)",
        'report(\'{"message": 1, "retryable": true, "error": ""}\'); sys.exit(13)',
        "report('[' * 100_000); sys.exit(13)",
        "report('\"' + 'x' * 300_000 + '\"'); sys.exit(13)",
        "os.write(descriptor, bytes(range(256))); sys.exit(13)",
    ],
    ids=["no json", "other types", "deep", "long", "no text"],
)
def test_garbage_is_no_outcome(script: str) -> None:
    with running(script) as children:
        assert ends(children) == [Ended("0", 13, None)]


def test_a_child_that_is_killed() -> None:
    with running("os.kill(os.getpid(), signal.SIGKILL)") as children:
        assert ends(children) == [Ended("0", -signal.SIGKILL, None)]


def test_a_child_that_closes_its_pipe_early_is_waited_for() -> None:
    with running("os.close(descriptor); time.sleep(1); sys.exit(5)") as children:
        assert ends(children) == [Ended("0", 5, None)]


def test_a_pipe_that_somebody_else_keeps_open() -> None:
    script = "os.fork() or (time.sleep(3), os._exit(0)); os._exit(6)"
    with running(script) as children:
        found: list[Ended[str]] = []
        give_up = time.monotonic() + ENOUGH
        while not found and time.monotonic() < give_up:
            found = children.wait(0.1)
        assert found == [Ended("0", 6, None)]


def test_the_wait_ends_in_time() -> None:
    with running("time.sleep(100)") as children:
        assert children.wait(0.1) == []
        assert len(children) == 1


def test_the_end_of_the_block_ends_all_children(tmp_path: Path) -> None:
    """Also the one that ignores SIGTERM."""
    ready = tmp_path / "ready"
    deaf = (
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(100)"
    )
    with running("time.sleep(100)", deaf, grace=2) as children:
        while not ready.exists():
            children.wait(0.1)
        began = time.monotonic()
    assert not children
    assert 2 <= time.monotonic() - began < ENOUGH


def test_a_signal_ends_the_wait() -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    with Interruption().installed(), running("time.sleep(100)") as children:
        timer.start()
        with pytest.raises(Interrupted):
            children.wait(ENOUGH)
    assert not children


def test_a_program_that_is_missing() -> None:
    children: Children[str] = Children({}, ["/nonexistent"])
    with children.ending():
        with pytest.raises(FileNotFoundError):
            children.start("a", Command([]))
        assert not children
        assert children.wait(0) == []


def test_a_child_that_is_stopped_is_killed_if_it_goes_on(tmp_path: Path) -> None:
    """The others go on."""
    ready = tmp_path / "ready"
    deaf = (
        f"signal.signal(signal.SIGTERM, signal.SIG_IGN); open({str(ready)!r}, 'w'); time.sleep(100)"
    )
    with running(deaf, "time.sleep(100)", "time.sleep(100)") as children:
        while not ready.exists():
            children.wait(0.1)
        children.stop("0", grace=0.5)
        children.stop("1")
        children.stop("not there")
        found: list[Ended[str]] = []
        while len(found) < 2:
            found += children.wait(ENOUGH)
        assert found == [
            Ended("1", -signal.SIGTERM, None, was_stopped=True),
            Ended("0", -signal.SIGKILL, None, was_stopped=True),
        ]
        assert {*children.ages()} == {"2"}


def test_what_a_killed_child_leaves_behind_is_ended(tmp_path: Path) -> None:
    """Also what leads a session of its own and ignores SIGTERM; but nothing of another child."""
    script = f"""
import subprocess
for name, ignores in (("leaves", False), ("deaf", True)):
    code = "import pathlib, signal, sys, time; "
    code += "signal.signal(signal.SIGTERM, signal.SIG_IGN); " if ignores else ""
    path = {str(tmp_path)!r} + "/" + name + sys.argv[-1].partition("=")[2]
    code += f"pathlib.Path({{path!r}}).touch(); time.sleep(100)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
time.sleep(100)
"""
    with running(script, script) as children:
        while len(list(tmp_path.iterdir())) < 4:
            children.wait(0.1)
        killed, other = _holding(str(tmp_path), children)
        os.kill(killed[0], signal.SIGKILL)
        assert [each.status for each in children.wait(ENOUGH)] == [-signal.SIGKILL]
        assert [pid for pid in killed if _runs(pid)] == []
        assert [pid for pid in other if _runs(pid)] == other
        assert len(other) == 3
        os.kill(other[0], signal.SIGKILL)
    assert [pid for pid in other if _runs(pid)] == []


def _holding(text: str, children: Children[str]) -> list[list[int]]:
    """Return the processes of each child that have this in their command line; it is the first."""
    found: dict[str, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line, environ = (folder / "cmdline").read_text(), (folder / "environ").read_text()
        except OSError:
            continue
        marks = [each for each in environ.split("\0") if each.startswith(left_behind.VARIABLE)]
        if text in line and marks:
            found.setdefault(marks[0], []).append(int(folder.name))
    assert len(found) == len(children)
    return [sorted(each) for each in found.values()]


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_another_thread_ends_the_wait() -> None:
    with running("time.sleep(100)") as children:
        threading.Timer(0.3, children.wake).start()
        began = time.monotonic()
        assert children.wait(ENOUGH) == []
        assert time.monotonic() - began < ENOUGH / 2


def test_children_share_a_descriptor() -> None:
    lines: list[str] = []
    reading, writing = os.pipe()
    os.write(writing, b"content")
    script = "sys.stderr.write(os.read(int(os.environ['NUMBER']), 7).decode())"
    with running() as children:
        children.share("NUMBER", reading)
        children.start("a", Command([script], on_line=lines.append))
        assert [each.status for each in ends(children)] == [0]
    os.close(reading)
    os.close(writing)
    assert lines == ["content"]


def test_what_is_captured_of_a_child() -> None:
    lines: list[str] = []
    script = "print('out', flush=True); print('one', file=sys.stderr); sys.stderr.write('two')"
    children: Children[str] = Children(
        dict(os.environ), [sys.executable, "-c", f"{REPORT}\nexec(sys.argv[1])"]
    )
    with children.ending():
        children.start("a", Command([script], on_line=lines.append, more={"X": "y"}))
        [ended] = ends(children)
    assert (ended.output, ended.last_lines, lines) == ("out\n", ["one", "two"], ["one", "two"])
    assert ended.seconds > 0


def test_an_outcome_is_read_as_it_was_reported() -> None:
    reading, writing = os.pipe()
    outcome.report(writing, Outcome("x" * 5000, retryable=False))
    assert outcome.read(os.read(reading, 65536)) == Outcome("x" * 2000, retryable=False)
    os.close(reading)
    outcome.report(writing, Outcome("nobody reads it", retryable=True))
    os.close(writing)
