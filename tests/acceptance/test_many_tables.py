"""A table costs one COPY, and no request or hand-over of its own: counted, not timed."""

from __future__ import annotations

import ast
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from support import backups, pieces
from support.cli import environment, run_pgstash
from support.postgres import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, MakeDatabase

TABLES = 250
ROW_BYTES = 4000
STATEMENTS_OF_OWNERS = 30  # of the two sessions that give owners and privileges
STATEMENTS_OF_ALL = 200  # of sessions, of pg_dump for all tables at once, of the checks
OBJECTS = f"""
    DO $$ BEGIN FOR n IN 1..{TABLES} LOOP
        EXECUTE pg_catalog.format('CREATE TABLE many_%s (id int PRIMARY KEY, t text)', n);
        EXECUTE pg_catalog.format('INSERT INTO many_%s VALUES (1, repeat(''x'', {ROW_BYTES}))', n);
    END LOOP; END $$
"""
STATEMENT = re.compile(r"\[(\d+)\] LOG:  (?:statement|execute [^:]*): (\S+)")
# How many statements this session makes depends on the time: it asks once a second.
REPORTER = re.compile(r"\[(\d+)\] LOG:  statement:\s+SELECT s\.is_index,")

# Counts what is done in a command, and writes that down at its end.
COUNTING = """
import atexit, collections
from pgstash.backup import dump_workers
from pgstash.postgres.tools import toc
from pgstash.storage.directory import storage, upload
counts = collections.Counter()
def counted(owner, name):
    function = getattr(owner, name)
    def counting(*args, **kwargs):
        counts[name] += 1
        return function(*args, **kwargs)
    setattr(owner, name, counting)
counted(storage.DirectoryStorage, "read")
counted(upload.DirectoryUpload, "write")
counted(toc, "Entry")
atexit.register(lambda: pathlib.Path({path!r}).write_text(repr(dict(counts))))
"""
# As by default: no table is big.
DEFAULTS = "snapshot._SMALLEST = 1 << 20"


@pytest.fixture
def talkative(newest_cluster: Cluster) -> Iterator[Cluster]:
    """A server that logs each statement."""
    sql = newest_cluster.maintenance.run_sql
    sql("ALTER SYSTEM SET log_statement = 'all'")
    sql("SELECT pg_reload_conf()")
    yield newest_cluster
    sql("ALTER SYSTEM RESET log_statement")
    sql("SELECT pg_reload_conf()")


def run(
    arguments: list[str], env: dict[str, str], server: Cluster, folder: Path
) -> tuple[Counter[str], Counter[str]]:
    """Run pgstash; return how often it did what is counted, and the statements by first word."""
    counts = folder / "counts"
    before = len(server.log)
    statements = pieces.statements(DEFAULTS, COUNTING.format(path=str(counts)))
    done = run_pgstash(arguments, env, statements=statements)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    log = server.log[before:]
    reporters = REPORTER.findall(log)
    return Counter(ast.literal_eval(counts.read_text())), Counter(
        word for session, word in STATEMENT.findall(log) if session not in reporters
    )


def test_what_a_table_costs(
    talkative: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database(on=talkative)
    source.run_sql(OBJECTS)
    (folder := tmp_path / "store").mkdir()
    env = environment(
        source.bin_dir,
        **backups.settings(source, folder),
        DUMP_JOBS="2",
        RESTORE_URL=talkative.maintenance.uri,
    )

    did, statements = run(["once"], env, talkative, tmp_path)
    [stored] = backups.stored(folder)
    assert len(stored.manifest["members"]["rows"]) > TABLES
    # One pg_dump reads the rows. The other, which says what there is, is stopped before long.
    assert TABLES <= statements["COPY"] < TABLES * 1.5
    assert statements.total() - statements["COPY"] < STATEMENTS_OF_ALL
    # The table, its rows, its primary key: each is read once.
    assert TABLES * 3 <= did["Entry"] < TABLES * 3 + STATEMENTS_OF_ALL
    assert did["write"] < TABLES // 5

    name = f"{source.name}_again"
    try:
        did, statements = run(["restore", "--create", name], env, talkative, tmp_path)
        assert Database(talkative, name).run_sql("SELECT * FROM many_7").startswith("1|xxx")
    finally:
        talkative.drop_database(name)
    assert statements["COPY"] == TABLES
    assert 0 < statements["ANALYZE"] < TABLES // 20
    # Each is created, loaded, indexed, and given its owner.
    assert statements.total() < TABLES * 4 + STATEMENTS_OF_ALL + STATEMENTS_OF_OWNERS
    assert did["read"] < TABLES // 5
