"""How the members with rows are shared out among requests and sessions."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.errors import CorruptedError
from pgstash.format.manifest import Member, Section
from pgstash.repository import script
from pgstash.repository.members import Seeker
from pgstash.restore.member_runs import _RUN_BYTES, _SHARES, MemberRuns
from pgstash.storage.memory import MemoryStorage
from support.stored import make

MIB = 1024 * 1024


def member(section: Section, stored: int, table: int | None, rows: int | None) -> Member:
    return Member(0, stored, stored, "0" * 64, section, table, rows)


ROWS = st.builds(
    member,
    st.just("data"),
    st.integers(1, 40 * MIB),
    st.integers(0, 3),
    st.none() | st.integers(0, 9),
)
OTHERS = st.builds(
    member, st.sampled_from(["data", "sequences"]), st.integers(1, MIB), st.none(), st.none()
)


@given(st.lists(ROWS | OTHERS, max_size=60), st.integers(1, 8))
def test_every_member_with_rows_is_read_once_by_requests_of_bounded_size(
    members: list[Member], jobs: int
) -> None:
    # A block that goes on is followed by what it goes on in.
    for number, each in enumerate(members):
        follower = members[number + 1] if number + 1 < len(members) else None
        if each.table is not None and each.rows is None and (not follower or not follower.table):
            members[number] = replace(each, rows=1)
    manifest = replace(make(b"").manifest, members=members)
    parts = MemberRuns(manifest)
    runs = parts.runs(jobs)
    with_rows = [n for n, each in enumerate(members) if each.table is not None]
    assert [n for run in runs for n in run] == with_rows
    for run in runs:
        assert members[run.stop - 1].rows is not None
        blocks = [block for block in parts.rows if block.start in run]
        sizes = [sum(members[n].stored for n in block) for block in blocks]
        # The last block is one more, begun while there was room.
        assert sum(sizes[:-1]) < _RUN_BYTES
        shares = sum(members[n].stored for n in with_rows) // (_SHARES * jobs)
        assert sum(sizes[:-1]) <= shares


def test_the_last_runs_are_the_shortest() -> None:
    members = [member("data", MIB, 0, 1) for _ in range(400)]
    runs = MemberRuns(replace(make(b"").manifest, members=members)).runs(2)
    lengths = [len(run) for run in runs]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (32, 1)


@pytest.mark.parametrize("passphrase", [None, "correct horse battery staple"])
def test_members_that_follow_each_other_are_one_request(passphrase: str | None) -> None:
    made = make(b"SELECT 'a line of a script';\n" * 500, passphrase=passphrase)
    storage = MemoryStorage()
    made.store(storage)
    asked: list[tuple[int, int | None]] = []

    def read(*, start: int = 0, length: int | None = None):  # type: ignore[no-untyped-def] # noqa: ANN202
        asked.append((start, length))
        return storage.read(made.key, start=start, length=length)

    seeker = Seeker(made.manifest, read, passphrase, lambda _count: None)
    numbers = range(2, len(made.manifest.members))
    assert len(numbers) > 3
    single = [b"".join(seeker.member(number)) for number in numbers]
    asked.clear()
    assert [b"".join(pieces) for pieces in seeker.members(numbers)] == single
    assert len(asked) == 1


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"SELECT 1;\n"], id="another statement"),
        pytest.param([b"COPY t (a) FROM ", b"stdin"], id="cut off"),
        pytest.param([b"x" * 600_000] * 3, id="too long"),
        pytest.param([], id="nothing"),
    ],
)
def test_what_is_no_block_is_not_loaded(pieces: list[bytes]) -> None:
    with pytest.raises(CorruptedError, match="as rows that has no COPY statement"):
        script.take_statement(deque(pieces))


@given(st.integers(1, 60))
def test_the_statement_is_found_however_it_is_cut(step: int) -> None:
    statement = b'COPY public."a\nb" ("c;d", e) FROM stdin;\n'
    block = statement + b"1\t2\n\\.\n\n\n"
    pieces = deque(block[at : at + step] for at in range(0, len(block), step))
    assert script.take_statement(pieces) == statement
    assert b"".join(pieces) == block[len(statement) :]
