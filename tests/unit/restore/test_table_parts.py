"""What comes back with a table, what it needs, and what cannot exist without it."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pgstash.postgres.tools.toc import Contents, Entry, Section
from pgstash.restore.table_parts import Parts, name_of_constraint, of_tables
from pgstash.restore.table_rows import _runs

PRE, ROWS, POST, NONE = Section.PRE_DATA, Section.DATA, Section.POST_DATA, Section.NONE


def entry(number: int, kind: str, tag: str, section: int, *depends_on: int) -> Entry:
    return Entry(number, 0, kind.encode(), section, tag.encode(), b"s", b"", frozenset(depends_on))


ENTRIES = (
    entry(1, "SCHEMA", "s", PRE),
    entry(2, "TYPE", "status", PRE, 1),
    entry(3, "TABLE", "t", PRE, 1, 2),
    entry(4, "COMMENT", "TABLE t", NONE, 3),
    entry(5, "ACL", "TABLE t", NONE, 3),
    entry(6, "ACL", "COLUMN t.a", NONE, 3, 5),
    entry(7, "TABLE", "t b", PRE, 1),
    entry(8, "SEQUENCE", "t_id_seq", PRE, 1, 3),
    entry(9, "SEQUENCE OWNED BY", "t_id_seq", PRE, 8),
    entry(10, "ACL", "SEQUENCE t_id_seq", NONE, 8),
    entry(11, "SEQUENCE", "free", PRE, 1),
    entry(12, "VIEW", "v", PRE, 1, 3),
    entry(13, "VIEW", "of v", PRE, 1, 12),
    entry(14, "FUNCTION", "f(s.t)", PRE, 1, 3),
    entry(15, "TABLE", "whole", PRE, 1),
    entry(16, "TABLE", "part", PRE, 1, 15),
    entry(17, "TABLE ATTACH", "part", PRE, 15, 16),
    entry(18, "DEFAULT", "t id", PRE, 3, 8),
    entry(19, "SEQUENCE SET", "t_id_seq", ROWS, 8),
    entry(20, "SEQUENCE SET", "free", ROWS, 11),
    entry(30, "CONSTRAINT", "t t_pkey", POST, 3),
    entry(31, "COMMENT", "CONSTRAINT t_pkey ON t", NONE, 30),
    entry(32, "CONSTRAINT", "t b k", POST, 7),
    entry(33, "CONSTRAINT", "whole whole_pkey", POST, 15),
    entry(34, "CONSTRAINT", "part part_pkey", POST, 16, 33),
    entry(35, "INDEX ATTACH", "part_pkey", POST, 15, 16, 33, 34),
    entry(36, "INDEX", "i", POST, 3),
    entry(37, "STATISTICS", "st", POST, 1, 3),
    entry(40, "FK CONSTRAINT", "t k", POST, 3, 7, 32),
    entry(41, "COMMENT", "CONSTRAINT k ON t", NONE, 40),
    entry(42, "FK CONSTRAINT", "t b k", POST, 3, 7, 30),
    entry(43, "FK CONSTRAINT", "t b own", POST, 7, 32),
    entry(44, "POLICY", "t p", POST, 3, 7),
    entry(45, "POLICY", "t b p", POST, 3, 7),
    entry(46, "PUBLICATION TABLE", "pub t", POST, 3, 99),
)
CONTENTS = Contents(b"", ENTRIES)


def numbers(entries: list[Entry]) -> list[int]:
    return [each.number for each in entries]


def of(*chosen: int) -> Parts:
    return of_tables(CONTENTS, chosen)


def test_what_belongs_to_a_table() -> None:
    parts = of(3)
    assert numbers(parts.tables) == [3]
    assert numbers(parts.before) == [3, 4, 8, 9, 18, 19]
    assert numbers(parts.after) == [30, 31, 36, 37, 44]
    assert numbers(parts.privileges) == [5, 6, 10]
    attempts = [(each.entry.number, numbers(each.comments)) for each in parts.attempts]
    assert attempts == [(40, [41]), (42, []), (46, [])]


def test_what_a_table_needs() -> None:
    """A policy needs the table that it reads. Foreign keys need nothing: they are only tried."""
    assert numbers(of(3).needed) == [1, 2, 7]
    assert numbers(of(7).needed) == [1, 3]


def test_what_cannot_exist_without_a_table() -> None:
    assert numbers(of(3).dependents) == [12, 13, 14, 45]


def test_a_name_that_begins_like_another_one() -> None:
    parts = of(7)
    assert numbers(parts.after) == [32, 45]
    assert [each.entry.number for each in parts.attempts] == [40, 42, 43]
    tables = {each.number: each for each in (ENTRIES[2], ENTRIES[6])}
    assert name_of_constraint(entry(0, "CONSTRAINT", "t b k", POST, 7), tables) == b"k"
    assert name_of_constraint(entry(0, "CONSTRAINT", "t b k", POST, 3), tables) == b"b k"


def test_a_partition_alone_is_attached_if_that_is_possible() -> None:
    parts = of(16)
    assert numbers(parts.before) == [16]
    assert numbers(parts.after) == [34]
    assert [each.entry.number for each in parts.attempts] == [17]
    assert numbers(parts.needed) == [1]


def test_a_partitioned_table_has_its_partitions_at_once() -> None:
    parts = of(15, 16)
    assert numbers(parts.before) == [15, 16, 17]
    assert numbers(parts.after) == [33, 34, 35]
    assert (parts.attempts, parts.dependents) == ([], [])


def test_the_names_that_must_be_free() -> None:
    found = of(3).objects
    assert found.tables == [(b"s", b"t")]
    assert found.sequences == [(b"s", b"t_id_seq")]
    assert found.indexes == [(b"s", b"t_pkey"), (b"s", b"i")]
    assert found.statistics == [(b"s", b"st")]


@given(st.sets(st.integers(0, 300)), st.sets(st.integers(0, 300)))
def test_runs_are_the_same_numbers(chosen: set[int], ends: set[int]) -> None:
    wanted = sorted(chosen)
    runs = list(_runs(wanted, ends))
    assert [number for run in runs for number in run] == wanted
    for one, other in itertools.pairwise(runs):
        assert one.stop != other.start or one[-1] in ends


def test_a_run_has_a_limit() -> None:
    every = range(1000)
    assert len(list(_runs(every, set(every)))) > 10
