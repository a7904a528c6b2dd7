"""What a client tool writes is read up to a mark, wherever the pipe cuts it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgstash.errors import DumpError
from pgstash.postgres.server.connection import Connection
from pgstash.postgres.tools import process
from pgstash.postgres.tools.environment import in_memory
from pgstash.postgres.tools.process import CHUNK_BYTES, Child, Command, _overlap

NOWHERE = Connection({"application_name": "pgstash"}, {})
MARK = b"abab0abac\n"


def shell(script: str, *, inherited: Sequence[int] = (), fed: bool = False) -> Child:
    """Run a script of the shell as if it were a client tool."""
    command = Command(["/bin/sh", "-c", script, "sh"], {}, inherited=inherited, fed=fed)
    return Child(command, NOWHERE, lambda _line: None)


def writing(*pieces: bytes) -> str:
    """Return a script that writes these pieces, each after the one before was read."""
    commands = (
        "printf '" + "".join(f"\\{byte:03o}" for byte in piece) + "'" for piece in pieces if piece
    )
    return "; sleep 0.02; ".join(commands)


def until_mark(child: Child) -> bytes:
    pieces = list(child.read_until(MARK, 10))
    assert all(pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("before", [b"", b"a row\n", b"abab\nabab0aba"])
def test_the_mark_is_found_wherever_it_is_cut(before: bytes) -> None:
    text = before + MARK
    for position in range(1, len(text)):
        with shell(writing(text[:position], text[position:])) as child:
            assert until_mark(child) == before, position
            assert child.wait() == 0


def test_the_mark_is_found_byte_by_byte() -> None:
    text = b"ab" + MARK
    with shell(writing(*(text[i : i + 1] for i in range(len(text))))) as child:
        assert until_mark(child) == b"ab"


def test_what_only_begins_like_the_mark_is_read() -> None:
    pieces = [MARK[:end] for end in range(1, len(MARK))]
    with shell(writing(*pieces, b"x", MARK)) as child:
        assert until_mark(child) == b"".join(pieces) + b"x"


def test_one_mark_after_the_other() -> None:
    """As psql answers one statement after the other."""
    with shell("cat", fed=True) as child:
        for text in (b"first\n", b"", b"ab" * 1000, MARK[:-1]):
            child.queue(text + MARK)
            assert until_mark(child) == text
        child.close_stdin()
        assert child.wait() == 0


@pytest.fixture
def small_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel gives them to a user who has many already."""
    monkeypatch.setattr(process, "_PIPE_BYTES", 4096)


@pytest.mark.usefixtures("small_pipes")
@pytest.mark.parametrize("pieces", [1, 7])
def test_what_a_tool_writes_while_it_is_fed_is_kept(pieces: int) -> None:
    """Neither waits for the other, although their pipes hold a fraction of it."""
    text = bytes(range(48, 58)) * 20_000
    with shell("cat", fed=True) as child:
        for start in range(pieces):
            child.queue(text[start::pieces])
        child.queue(MARK)
        assert until_mark(child) == b"".join(text[start::pieces] for start in range(pieces))
        child.queue(b"a line\n")
        assert child.read_line() == b"a line"
        child.close_stdin()
        assert child.wait() == 0


@pytest.mark.usefixtures("small_pipes")
def test_what_a_tool_writes_is_discarded_if_its_caller_says_so() -> None:
    with shell("cat >/dev/null; echo end", fed=True) as child:
        assert child.feed_and_discard(b"a line\n" * 20_000)
        child.close_stdin()
        assert child.read_line() == b"end"
    with shell("read -r line; echo $line; cat", fed=True) as child:
        child.queue(b"first\nsecond\n")
        assert child.read_line() == b"first"
        fed = b"a line\n" * 20_000
        assert child.feed_and_discard(fed)
        child.close_stdin()
        left = b"".join(child.read(10))
        assert fed.endswith(left)
        assert len(left) < len(fed) // 2
        assert child.wait() == 0


def test_what_a_tool_does_not_read_is_dropped() -> None:
    with shell("echo end; exit 3", fed=True) as child:
        child.queue(b"a line\n" * 1_000_000)
        assert b"".join(child.read(10)) == b"end\n"
        assert child.wait() == 3
    with shell("exec 0<&-; echo end; sleep 60", fed=True) as child:
        assert child.read_line() == b"end"
        assert not child.feed_and_discard(b"a line\n")


@pytest.mark.parametrize("size", [CHUNK_BYTES - 5, CHUNK_BYTES, 10 * CHUNK_BYTES + 3])
def test_the_mark_is_found_after_much(size: int) -> None:
    script = f"head -c {size} /dev/zero | tr '\\0' a; {writing(MARK)}"
    with shell(script) as child:
        assert until_mark(child) == b"a" * size


@pytest.mark.parametrize("text", [b"", b"a row\n", MARK[:-1], b"a row\n" + MARK[:3]])
def test_an_end_without_the_mark_is_told(text: bytes) -> None:
    with shell(writing(text) + "\nexit 3") as child:
        with pytest.raises(EOFError):
            list(child.read_until(MARK, 10))
        assert child.wait() == 3


def test_a_tool_that_falls_silent_before_the_mark_is_given_up() -> None:
    with shell(writing(MARK[:4]) + "; sleep 60") as child, pytest.raises(DumpError, match="0 s"):
        list(child.read_until(MARK, 0.2))


@given(st.text("ab0c\n", max_size=30), st.text("ab0c", min_size=1, max_size=8))
@example("abab", "abab0abac")
@example("", "a")
def test_as_much_is_held_back_as_may_begin_the_mark(text: str, mark: str) -> None:
    data, wanted = text.encode(), mark.encode()
    longest = max(length for length in range(len(wanted)) if data.endswith(wanted[:length]))
    assert _overlap(data, wanted) == longest


def test_a_file_in_memory_is_read_by_who_keeps_it() -> None:
    content = b"one;\ntwo\0;\n"
    with in_memory("list", content) as (descriptor, path):
        with shell(f"cat {path}; cat {path}", inherited=[descriptor]) as child:
            assert b"".join(child.read(10)) == content * 2
        with shell(f"cat {path}") as child:
            assert b"".join(child.read(10)) == b""
            assert child.wait() != 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
