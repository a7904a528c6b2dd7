"""Commands of the user's, run for real: they may hang, flood, leave children, or look away."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgstash.errors import HookError
from pgstash.events import Event, ToolSaid
from pgstash.processes import hooks
from pgstash.processes.hooks import Hook

MIB = 1024 * 1024
CHUNK = b"x" * 100_000
# Stands in the argument list of what a test leaves behind, to find it by.
MARK = f"86399.{os.getpid()}"


def hook(*command: str, timeout: float = 60) -> Hook:
    path = {"PATH": os.environ["PATH"]}
    return Hook("HOOK_VERIFY", command, timeout, path, ["a planted secret"])


def shell(script: str, timeout: float = 60) -> Hook:
    return hook("sh", "-c", script, timeout=timeout)


class Said:
    """Listens, and keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, event: Event) -> None:
        assert isinstance(event, ToolSaid)
        assert event.tool == "HOOK_VERIFY"
        self.lines.append(event.line)


def run(what: Hook, **facts: str) -> list[str]:
    said = Said()
    hooks.run(what, facts, said)
    return said.lines


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield CHUNK


def verify(what: Hook, count: int = 50) -> int:
    """Show so many chunks to a hook, and return how many came through."""
    through = 0
    with hooks.verifying(what, {}, Said()) as verified:
        for chunk in verified(chunks(count)):
            assert chunk == CHUNK
            through += 1
    return through


def left_behind() -> list[int]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if MARK.encode() in (process / "cmdline").read_bytes() and state != "Z":
                found.append(int(process.name))
    return found


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_it_is_told_the_facts_and_both_its_outputs_are_heard() -> None:
    script = 'echo "$PGSTASH_HOOK"; echo to stderr >&2; pwd; cat; printf "no newline"'
    said = run(shell(script), PGSTASH_HOOK="before")
    assert said == ["before", "to stderr", str(Path.cwd()), "no newline"]


def test_no_shell_is_in_between() -> None:
    words = hooks.words("""echo '$HOME' "a;b" * | cat && x #y""")
    assert run(hook(*words)) == ["$HOME a;b * | cat && x #y"]


@pytest.mark.parametrize(
    ("script", "how"),
    [
        ("echo why; exit 3", "HOOK_VERIFY failed with exit status 3:\nwhy"),
        ("kill -9 $$", "HOOK_VERIFY was killed by signal 9"),
    ],
)
def test_a_bad_end(script: str, how: str) -> None:
    with pytest.raises(HookError) as caught:
        run(shell(script))
    assert str(caught.value) == how
    assert caught.value.hint


@pytest.mark.parametrize("command", ["/nonexistent", "/etc/passwd", "/etc"])
def test_it_cannot_be_started(command: str) -> None:
    with pytest.raises(HookError, match="HOOK_VERIFY cannot be started: ") as caught:
        run(hook(command))
    assert caught.value.__cause__ is not None


def test_one_that_takes_too_long_may_tidy_up() -> None:
    script = f"trap 'echo tidied up; exit 0' TERM; echo begun; sleep {MARK} & wait"
    with pytest.raises(
        HookError, match=r"did not end within 1 s and was stopped:\nbegun\ntidied up"
    ):
        run(shell(script, timeout=1))
    until(lambda: not left_behind())


def test_one_that_ignores_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_SECONDS_TO_TIDY_UP", 0.2)
    script = f"trap '' TERM; while :; do sleep {MARK}; done"
    with pytest.raises(HookError, match="was stopped"):
        run(shell(script, timeout=1))
    until(lambda: not left_behind())


def test_a_child_in_the_background_ends_with_it() -> None:
    assert run(shell(f"sleep {MARK} & echo done")) == ["done"]
    until(lambda: not left_behind())


def test_a_daemon_that_holds_the_pipe_is_left_alone_and_not_waited_for() -> None:
    try:
        assert run(shell(f"setsid sh -c 'sleep {MARK}; :' & sleep 0.3; echo done")) == ["done"]
        assert left_behind()
    finally:
        for process in left_behind():
            os.kill(process, signal.SIGKILL)


def test_a_flood_is_read_and_not_told() -> None:
    said = run(shell(f"yes flood | head -c {20 * MIB}; echo the last one >&2", 300))
    assert said[:200] == ["flood"] * 200
    assert len(said) == 201
    assert said[200].endswith("more lines were left out)")


def test_of_a_long_line_the_beginning_is_told_without_half_a_secret() -> None:
    [line] = run(shell("printf 'a planted secret %09000d' 1"))
    assert len(line) < 5000
    before = "x " * 2045
    [line] = run(shell(f"printf '{before}a planted secret'"))
    assert line.endswith("x  ...")


def test_all_of_the_stream_is_shown() -> None:
    said = Said()
    with hooks.verifying(hook("wc", "-c"), {}, said) as verified:
        assert sum(map(len, verified(chunks(50)))) == 50 * len(CHUNK)
    assert said.lines == [str(50 * len(CHUNK))]


@pytest.mark.parametrize(
    "script", ["head -1 >/dev/null", "exit 0", "exec <&-; sleep 0.2", "grep -q x"]
)
def test_one_that_has_seen_enough_is_shown_no_more(script: str) -> None:
    assert verify(shell(script)) == 50


@pytest.mark.parametrize("script", ["cat >/dev/null; exit 7", "exec <&-; sleep 0.5; exit 7"])
def test_a_bad_end_takes_the_place_of_the_end_of_the_stream(script: str) -> None:
    with hooks.verifying(shell(script), {}, Said()) as verified:
        stream = verified(chunks(50))
        for _ in range(50):
            assert next(stream) == CHUNK
        with pytest.raises(HookError, match="status 7"):
            next(stream)


@pytest.mark.parametrize("script", ["exit 7", "head -c 1000000 >/dev/null; exit 7"])
def test_a_bad_end_on_the_way_ends_the_stream_at_once(script: str) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield CHUNK
            time.sleep(0.01)

    with (
        pytest.raises(HookError, match="status 7"),
        hooks.verifying(shell(script), {}, Said()) as verified,
    ):
        for _ in verified(endless()):
            pass


def test_one_that_stalls() -> None:
    with pytest.raises(HookError, match="read nothing for 1 s and was stopped"):
        verify(shell(f"head -c 10 >/dev/null; sleep {MARK}", timeout=1))
    until(lambda: not left_behind())


def test_one_that_does_not_end_after_the_last_byte() -> None:
    with pytest.raises(HookError, match="did not end within 3 s"):
        verify(shell(f"cat >/dev/null; sleep {MARK}", timeout=3))
    until(lambda: not left_behind())


def test_slow_is_not_stalled() -> None:
    """One chunk takes longer than the timeout, and moves all the time."""
    reader = (
        "import os, time\n"
        "for _ in range(6): os.read(0, 100000); time.sleep(0.4)\n"
        "while os.read(0, 1000000): pass"
    )
    sizes = [MIB, 500_000]  # the first fills the pipe
    with hooks.verifying(hook(sys.executable, "-c", reader, timeout=2), {}, Said()) as verified:
        assert [len(chunk) for chunk in verified(bytes(size) for size in sizes)] == sizes


def test_one_that_floods_while_it_reads() -> None:
    assert verify(hook("cat"), 200) == 200


def test_a_stream_that_breaks_off_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole"

    def broken() -> Iterator[bytes]:
        yield CHUNK
        raise ConnectionError

    with (
        pytest.raises(ConnectionError),
        hooks.verifying(shell(f"cat >/dev/null; touch '{whole}'"), {}, Said()) as verified,
    ):
        for _ in verified(broken()):
            pass
    time.sleep(0.2)
    assert not whole.exists()


def test_without_a_hook_the_stream_is_the_same() -> None:
    stream = chunks(1)
    with hooks.verifying(None, {}, Said()) as verified:
        assert verified(stream) is stream


def test_what_a_hook_may_see() -> None:
    environment = {
        "PATH": "/opt/planted/bin",
        "EDITOR": "vi",
        "S3_SECRET_ACCESS_KEY": "x",
        "PGPASSWORD": "x",
        "PGHOST": "db",
        "PGSTASH_HOOK": "spoofed",
        "COPY": "postgresql://u:planted@h/d",
    }
    seen = hooks.visible(environment, {"S3_SECRET_ACCESS_KEY"}, lambda value: "planted" in value)
    assert seen == {"PATH": "/opt/planted/bin", "EDITOR": "vi"}


@pytest.mark.parametrize("line", ["'", '"a', "a\\", "", "  ", "''"])
def test_a_command_line_that_is_none(line: str) -> None:
    with pytest.raises(ValueError, match=r"lacks a closing quote|names no program"):
        hooks.words(line)
