"""What is read of pg_dump's custom format is what pg_restore reads of it, without the rows."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

import pytest

from pgstash.backup.parallel_dump import _before
from pgstash.events import ignore
from pgstash.pipeline.sql_scanner import SqlScanner
from pgstash.postgres.dump import schema_dump
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.toc import Contents, Section
from pgstash.postgres.tools.tool_run import ToolRun
from support import databases
from support.postgres import (
    Cluster,
    Database,
    MakeDatabase,
    bin_dir,
    clean_environment,
    temporary_database,
)

SAMPLES = (*databases.ROUND_TRIPPING, "breaks_under_clean")
WITHOUT_RIGHTS = ("--no-owner", "--no-acl")
CLEAN = ("--clean", "--if-exists")
NOT_DATA = ("--section=pre-data", "--section=post-data")


@dataclass(frozen=True)
class Dumped:
    """What pg_dump writes of a sample, as an archive and as plain SQL, and pg_dump's own tools."""

    tool_run: ToolRun
    archive: bytes
    rows: bytes
    rest: bytes

    @property
    def contents(self) -> Contents:
        contents = toc.read(self.archive)
        assert contents
        return contents


def dumped_of(database: Database, sample: str) -> Dumped:
    major = database.cluster.major
    options = (*WITHOUT_RIGHTS, *CLEAN, f"--encoding={databases.encoding(sample)}")
    return Dumped(
        ToolRun(ClientTools(bin_dir(major), major, f"{major}.0", 0), {}, ignore),
        archive=database.plain_dump("-Fc", "-Z0", *options),
        rows=database.plain_dump(*WITHOUT_RIGHTS, options[-1], "--section=data"),
        rest=database.plain_dump(*options, *NOT_DATA),
    )


@pytest.fixture(scope="module", params=SAMPLES)
def dumped(request: pytest.FixtureRequest, cluster: Cluster) -> Dumped:
    with temporary_database(cluster, request.param) as database:
        return dumped_of(database, request.param)


def comparable(script: bytes) -> bytes:
    """Leave out what differs from run to run: the key of \\restrict."""
    return re.sub(rb"^\\(un)?restrict \w+\n", b"", script, flags=re.MULTILINE)


def test_the_entries_are_those_that_pg_restore_lists(dumped: Dumped) -> None:
    contents = dumped.contents
    assert dumped.archive.startswith(contents.head)
    said = subprocess.run(
        [dumped.tool_run.client.pg_restore, "--list"],
        input=contents.head,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    count = re.search(rb"^;     TOC Entries: (\d+)$", said, re.MULTILINE)
    assert count
    assert len(contents.entries) == int(count[1])
    lines = re.findall(rb"^(\d+); \d+ (\d+) (.*)$", said, re.MULTILINE)
    listed = [int(number) for number, _oid, _rest in lines]
    found = {entry.number: entry for entry in contents.entries}
    assert len(found) == len(contents.entries)
    for number, oid, rest in lines:
        entry = found[int(number)]
        assert entry.oid == int(oid)
        assert rest.startswith(entry.description + b" ")
    assert [number for number in found if number in listed] == listed
    not_listed = {entry.description for entry in contents.entries if entry.number not in listed}
    # Settings, and the database itself, which is made with --create alone.
    assert not_listed <= {b"ENCODING", b"STDSTRINGS", b"SEARCHPATH", b"DATABASE"}


def test_the_tables_are_those_of_the_dump(dumped: Dumped) -> None:
    scanner = SqlScanner()
    for _ in scanner.watch([dumped.rows]):
        pass
    loading = [each for each in dumped.contents.entries if each.description == b"TABLE DATA"]
    assert [into[0] for entry in loading if (into := entry.loads_into)] == list(scanner.rows)
    assert len(loading) == len(scanner.rows)
    assert {entry.section for entry in loading} <= {Section.DATA}


def test_the_head_alone_makes_the_script_of_all_but_the_rows(dumped: Dumped) -> None:
    head = dumped.contents.head
    made = schema_dump.plain(head, dumped.tool_run, [*CLEAN, *NOT_DATA])
    assert comparable(made) == comparable(dumped.rest)


def test_the_script_is_cut_where_the_rows_belong(dumped: Dumped) -> None:
    script = schema_dump.script(dumped.contents, dumped.tool_run, [])
    assert comparable(script.before + script.after) == comparable(dumped.rest)
    made = re.compile(
        rb"^-- Name: .*; Type: (TABLE|INDEX|CONSTRAINT|FK CONSTRAINT|TRIGGER); ", re.MULTILINE
    )
    assert set(made.findall(script.before)) <= {b"TABLE"}
    assert b"TABLE" not in made.findall(script.after)
    late = any(entry.section == Section.POST_DATA for entry in dumped.contents.entries)
    assert (b"\n-- Name: " in script.after) is late
    pieces = list(_before(script))
    assert b"".join(text for _, text in pieces) == script.before
    drops = ["drops"] if b"\nDROP " in dumped.rest else []
    assert [section for section, _ in pieces] == ["header", *drops, "pre-data"]


def test_single_entries_are_made_alone(cluster: Cluster, make_database: MakeDatabase) -> None:
    dumped = dumped_of(make_database("mixed", on=cluster), "mixed")
    contents, tool_run = dumped.contents, dumped.tool_run
    late = [entry for entry in contents.entries if entry.section == Section.POST_DATA]
    assert len(late) > 2
    for entry in late[:3]:
        made = schema_dump.entries(contents.head, tool_run, [entry.number], [])
        assert re.findall(rb"^-- Name: (.*); Type: ([A-Z ]+); ", made, re.MULTILINE) == [
            (entry.tag, entry.description)
        ]
        assert b"database dump complete" not in made
        assert b"restrict" not in made
    every = schema_dump.entries(contents.head, tool_run, [entry.number for entry in late], [])
    assert len(re.findall(rb"^-- Name: ", every, re.MULTILINE)) >= len(late)
    assert schema_dump.entries(contents.head, tool_run, [], []) == b""


def test_a_text_that_looks_like_the_cut_is_none(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    """What a user wrote may be just what pg_restore writes above the first index."""
    database = make_database(on=cluster)
    fake = "--\n-- Name: t t_pkey; Type: CONSTRAINT; Schema: public; Owner: -\n--\n\nSELECT 1;\n"
    lazy = "\nSET default_tablespace = x;\n\n"
    database.run_sql(f"""
        CREATE TABLE t (id int PRIMARY KEY);
        CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $_$SELECT '\n{fake}'$_$;
        COMMENT ON TABLE t IS '{lazy}{fake}';
        COMMENT ON COLUMN t.id IS '{lazy}{lazy}';
        COMMENT ON CONSTRAINT t_pkey ON t IS '{lazy}{fake}{lazy}';
    """)
    dumped = dumped_of(database, "empty")
    script = schema_dump.script(dumped.contents, dumped.tool_run, [])
    assert comparable(script.before + script.after) == comparable(dumped.rest)
    assert script.before.count(fake.encode()) == 2
    assert script.before.count(lazy.encode()) == 3
    assert b"CREATE TABLE public.t" in script.before
    assert script.after.startswith(fake.encode()[:40])
    assert b"ADD CONSTRAINT t_pkey" in script.after
