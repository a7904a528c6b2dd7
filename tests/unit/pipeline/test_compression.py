"""What compress writes opens with gunzip as a whole, and member by member with zlib."""

from __future__ import annotations

import gzip
import hashlib
import random
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgstash.errors import DumpError, PipelineError
from pgstash.format.manifest import Member, Section
from pgstash.pipeline import compression
from pgstash.pipeline.compression import Packing, compress, pack
from pgstash.pipeline.sections import Border

LEVELS = range(1, 10)
SQL = b"".join(b"INSERT INTO t VALUES (%d, 'row %d of many');\n" % (i, i % 7) for i in range(9000))
NOISE = random.Random(1).randbytes(300_000)  # noqa: S311 - the same each time
HASHES = b"".join(
    b"%d\t%s\n" % (i, hashlib.sha256(b"%d" % i).hexdigest().encode()) for i in range(4000)
)
WORDS = b" ".join(
    hashlib.sha256(b"%d" % (i * i % 997)).hexdigest()[:6].encode() for i in range(30000)
)
REPETITION = b"all work and no play makes jack a dull boy\n" * 8000
# By how far they shrink, the middle levels choose how to compress: a sample of each kind.
PLAINS = {
    "empty": b"",
    "byte": b"x",
    "sql": SQL,
    "noise": NOISE,
    "hashes": HASHES,
    "words": WORDS,
    "repetition": REPETITION,
}


def chunks_of(text: bytes, size: int) -> list[bytes]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def gunzip(archive: bytes) -> bytes:
    return subprocess.run(
        ["gunzip", "-c"], input=archive, stdout=subprocess.PIPE, check=True
    ).stdout


def sha256(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def check_members(archive: bytes, plain: bytes, members: list[Member]) -> None:
    """Decompress each member's byte range by itself and compare with what its entry says."""
    at = 0
    parts = []
    for member in members:
        assert member.offset == at
        at += member.stored
        stored = archive[member.offset : at]
        assert sha256(stored) == member.sha256
        decompressor = zlib.decompressobj(wbits=31)
        raw = decompressor.decompress(stored)
        assert decompressor.eof
        assert decompressor.unused_data == b""
        assert len(raw) == member.raw
        assert gzip.decompress(stored) == raw
        parts.append(raw)
    assert at == len(archive)
    assert b"".join(parts) == plain


def wait_for_threads(before: set[threading.Thread]) -> None:
    deadline = time.monotonic() + 10
    while leaked := set(threading.enumerate()) - before:
        assert time.monotonic() < deadline, leaked
        time.sleep(0.01)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("plain", PLAINS.values(), ids=PLAINS)
def test_gunzip_opens_every_level(level: int, plain: bytes) -> None:
    members: list[Member] = []
    archive = b"".join(
        compress(chunks_of(plain, 4096), level=level, record=members.append, member_bytes=100_000)
    )
    assert gunzip(archive) == plain
    check_members(archive, plain, members)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_compresses(level: int) -> None:
    archive = b"".join(compress([SQL], level=level, record=lambda _: None))
    assert len(archive) < len(SQL) / 4


def test_the_highest_level_is_smaller_than_the_lowest() -> None:
    sizes = [len(b"".join(compress([SQL], level=level, record=lambda _: None))) for level in (1, 9)]
    assert sizes[1] < sizes[0]


@given(
    st.lists(st.binary(max_size=100), max_size=50), st.integers(1, 200), st.sampled_from([1, 6, 9])
)
@example([b"x", b""], 1, 9)
def test_members_wherever_they_end(chunks: list[bytes], member_bytes: int, level: int) -> None:
    members: list[Member] = []
    archive = b"".join(
        compress(chunks, level=level, record=members.append, member_bytes=member_bytes)
    )
    plain = b"".join(chunks)
    check_members(archive, plain, members)
    assert gzip.decompress(archive) == plain
    assert all(member.raw >= member_bytes for member in members[:-1])
    assert len(members) == 1 or members[-1].raw > 0


def test_an_empty_stream_is_one_empty_member() -> None:
    members: list[Member] = []
    archive = b"".join(compress([], level=6, record=members.append))
    assert [member.raw for member in members] == [0]
    check_members(archive, b"", members)


def test_members_are_cut_at_16_mib_unless_told_otherwise() -> None:
    members: list[Member] = []
    megabyte = bytes(1024 * 1024)
    for _ in compress((megabyte for _ in range(17)), level=1, record=members.append):
        pass
    assert [member.raw for member in members] == [16 * 1024 * 1024, 1024 * 1024]


def test_a_member_is_recorded_before_its_last_byte_is_out() -> None:
    """Whoever stops to read after a chunk never finds a byte without its member."""
    members: list[Member] = []
    written = 0
    for chunk in compress(
        chunks_of(NOISE, 1000), level=1, record=members.append, member_bytes=10_000
    ):
        written += len(chunk)
        recorded = sum(member.stored for member in members)
        assert recorded >= written or written - recorded < 11_000
    assert sum(member.stored for member in members) == written


@pytest.mark.parametrize("level", [6, 9])
def test_an_error_of_the_source_comes_through_and_the_thread_ends(level: int) -> None:
    def source() -> Iterator[bytes]:
        yield from chunks_of(SQL, 4096)
        raise DumpError("pg_dump failed")

    before = set(threading.enumerate())
    members: list[Member] = []
    with pytest.raises(DumpError, match="pg_dump failed"):
        for _ in compress(source(), level=level, record=members.append):
            pass
    wait_for_threads(before)
    assert members == []


def test_the_thread_ends_with_the_stream_and_with_whoever_leaves_it() -> None:
    before = set(threading.enumerate())
    assert b"".join(compress([SQL], level=6, record=lambda _: None))
    wait_for_threads(before)

    abandoned = compress(chunks_of(NOISE, 1000) * 10, level=9, record=lambda _: None)
    next(abandoned)
    assert set(threading.enumerate()) - before
    del abandoned
    wait_for_threads(before)


def test_an_error_of_the_compressor_is_a_pipeline_error_and_the_thread_ends() -> None:
    before = set(threading.enumerate())
    not_bytes = "text"
    chunks: list[bytes] = [b"fine", not_bytes, *[b"more"] * 100]  # type: ignore[list-item]
    with pytest.raises(PipelineError, match="compression failed") as caught:
        list(compress(chunks, level=6, record=lambda _: None))
    assert isinstance(caught.value.__cause__, TypeError)
    wait_for_threads(before)


class FullOfErrors:
    """Stands in for zlib-ng where it runs out of memory."""

    DEFLATED = 8

    def compressobj(self, *_: object) -> FullOfErrors:
        return self

    def compress(self, _data: bytes) -> bytes:
        return b""

    def flush(self) -> bytes:
        raise MemoryError("no memory to finish the member")


@pytest.mark.parametrize("member_bytes", [1, 1000], ids=["within the stream", "at its end"])
def test_an_error_while_a_member_is_closed(
    monkeypatch: pytest.MonkeyPatch, member_bytes: int
) -> None:
    monkeypatch.setattr(compression, "zlib_ng", FullOfErrors())
    before = set(threading.enumerate())
    with pytest.raises(PipelineError, match="no memory to finish the member"):
        list(compress([b"a", b"b"], level=9, record=lambda _: None, member_bytes=member_bytes))
    wait_for_threads(before)


def test_the_source_is_not_read_far_ahead() -> None:
    """The dump may be far larger than memory: only a few chunks wait for a slow reader."""
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        for chunk in chunks_of(NOISE, 1000):
            read += 1
            yield chunk

    archive = compress(source(), level=1, record=lambda _: None, member_bytes=1000)
    next(archive)
    time.sleep(0.05)
    assert read < 30


def test_a_border_ends_a_member_and_names_the_next_ones() -> None:
    members: list[Member] = []
    chunks: list[bytes | Border] = [
        Border("header"),
        b"SET a = 1;",
        Border("drops"),
        *[b"DROP TABLE a;"] * 3,
        Border(None),
        b"the rest",
    ]
    archive = b"".join(compress(chunks, level=6, record=members.append, member_bytes=20))
    plain = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
    check_members(archive, plain, members)
    sections = [(member.section, member.raw) for member in members]
    assert sections == [("header", 10), ("drops", 26), ("drops", 13), (None, 8)]


@given(st.binary(max_size=5000), st.integers(1, 9), st.sampled_from(["header", "data", None]))
def test_a_text_is_packed_as_one_member(plain: bytes, level: int, section: Section | None) -> None:
    packed, member = pack(plain, level, section)
    assert gunzip(packed) == plain
    assert member == Member(0, len(packed), len(plain), sha256(packed), section)


@given(st.lists(st.binary(max_size=500), max_size=10), st.integers(1, 9))
def test_a_member_that_grows_knows_how_long_it_is(chunks: list[bytes], level: int) -> None:
    packing = Packing(level)
    packed = b""
    for number, chunk in enumerate(chunks, start=1):
        packed += packing.write(chunk)
        assert packing.stored == len(packed)
        assert packing.raw == sum(map(len, chunks[:number]))
    tail, member = packing.close("data")
    plain = b"".join(chunks)
    packed += tail
    assert gunzip(packed) == plain
    assert member == Member(0, len(packed), len(plain), sha256(packed), "data")
