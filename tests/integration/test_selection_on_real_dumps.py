"""Tables are chosen in real tables of contents as pg_dump chooses them, with all that is theirs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pgstash.events import ignore
from pgstash.postgres.dump import schema_dump
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.patterns import compiled
from pgstash.postgres.tools.toc import Contents, Section
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.restore.archived_tables import Tables
from support.postgres import Cluster, Database, bin_dir, temporary_database
from support.stored import make
from support.tiers import later

pytestmark = pytest.mark.newest_first

SCRIPT = """
    CREATE SCHEMA extra;
    CREATE SCHEMA "a.b";
    CREATE TABLE plain (id int PRIMARY KEY);
    CREATE TABLE "Plain" (id int);
    CREATE TABLE extra.plain (id int);
    CREATE TABLE "a.b"."c.d" (id int);
    CREATE TABLE "a.b".c (id int);
    CREATE TABLE "Ärger" (id int);
    CREATE TABLE "ärger" (id int);
    CREATE TABLE "say ""hi"" now" (id int);
    CREATE TABLE "a*" (id int);
    CREATE TABLE ab (id int);

    CREATE TABLE events (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (1) TO (2);
    CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (2) TO (3) PARTITION BY LIST (id);
    CREATE TABLE events_2_a PARTITION OF events_2 DEFAULT;
    CREATE INDEX events_at ON events (at);
    CREATE INDEX alone ON events_1 (id);
    COMMENT ON INDEX alone IS 'of one partition';
    CREATE TABLE heirs () INHERITS (plain);
    CREATE TABLE refers (id int PRIMARY KEY, plain int REFERENCES plain, event int, at int,
                         CONSTRAINT to_events FOREIGN KEY (event, at) REFERENCES events);
    ALTER TABLE events ADD CONSTRAINT to_plain FOREIGN KEY (id) REFERENCES plain;
    CREATE FUNCTION changed() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER changed AFTER INSERT ON refers FOR EACH ROW EXECUTE FUNCTION changed();
    CREATE STATISTICS both_of ON event, at FROM refers;
    ALTER TABLE refers ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON refers USING (id > 0);
    CREATE POLICY known ON refers AS RESTRICTIVE USING (plain IN (SELECT id FROM plain));
    CREATE RULE kept AS ON DELETE TO refers DO ALSO INSERT INTO ab VALUES (old.id);
    CREATE RULE nothing AS ON DELETE TO refers DO ALSO NOTHING;
    CREATE PUBLICATION p FOR TABLE refers;
    COMMENT ON CONSTRAINT refers_pkey ON refers IS 'a comment';
"""

PATTERNS = (
    "plain",
    "PLAIN",
    '"Plain"',
    "public.plain",
    "*.plain",
    "EXTRA.*",
    "ev*",
    "events_?",
    '"a.b"."c.d"',
    '"a.b".*',
    '"a*"',
    "a*",
    '"say ""hi"" now"',
    "Ärger",
    '"ärger"',
)


class Dumped:
    """A database with these tables, its table of contents, and pg_dump's own tools."""

    def __init__(self, database: Database) -> None:
        database.run_sql(SCRIPT)
        major = database.cluster.major
        self.database = database
        client = ClientTools(bin_dir(major), major, f"{major}.0", 0)
        self.tool_run = ToolRun(client, {}, ignore)
        contents = toc.read(database.plain_dump("-Fc", "-Z0", "--no-owner", "--no-acl"))
        assert contents
        self.contents: Contents = contents
        self.tables = Tables(make(b"").manifest, contents)
        self._numbers = {name: number for number, name in self.tables.names.items()}

    def numbers(self, *names: str) -> set[int]:
        return {self._numbers["public", name] for name in names}

    def belonging(self, *names: str) -> tuple[set[str], set[str]]:
        """Return what is made after the rows of the tables, and what is left out."""
        after, left = self.tables.belonging(self.tables.with_partitions(self.numbers(*names)))
        assert after == [each.number for each in self.contents.entries if each.number in after]
        made = schema_dump.entries(self.contents.head, self.tool_run, after, []).decode()
        listed = re.findall(r"^-- Name: (.*); Type: ([A-Z ]+); ", made, re.MULTILINE)
        late = {each.number for each in self.contents.entries if each.section == Section.POST_DATA}
        assert len(listed) >= len(late.intersection(after))
        return {f"{kind} {name}" for name, kind in listed}, set(left)


@pytest.fixture(scope="module")
def dumped(cluster: Cluster) -> Iterator[Dumped]:
    with temporary_database(cluster) as database:
        yield Dumped(database)


@pytest.mark.parametrize(
    "pattern", later(PATTERNS, "plain", "public.plain", "EXTRA.*", "ev*", '"a.b".*', "a*", "Ärger")
)
def test_a_pattern_fits_the_tables_that_it_fits_for_pg_dump(pattern: str, dumped: Dumped) -> None:
    # Without a schema pg_dump looks where search_path leads, and an archive has none.
    qualified = pattern if re.search(r"[\w*\"]\.", pattern) else f"*.{pattern}"
    found = re.findall(
        rb"^-- Name: (.*); Type: TABLE; Schema: (.*); Owner",
        dumped.database.plain_dump("--schema-only", f"--table={qualified}"),
        re.MULTILINE,
    )
    expected = {(schema.decode(), name.decode()) for name, schema in found}
    if pattern.startswith("ev"):  # later ones add the partitions only where they are asked for
        expected |= {("public", "events_2_a")} & set(dumped.tables.names.values())
    fits = compiled(pattern)
    ours = {number for number, name in dumped.tables.names.items() if fits(*name)}
    chosen = dumped.tables.with_partitions(ours)
    assert expected
    assert {dumped.tables.names[number] for number in chosen} == expected


def test_partitions_are_told_from_heirs(dumped: Dumped) -> None:
    events = dumped.numbers("events")
    partitions = dumped.numbers("events", "events_1", "events_2", "events_2_a")
    assert dumped.tables.with_partitions(events) == partitions
    assert dumped.tables.with_partitions(dumped.numbers("plain")) == dumped.numbers("plain")


def test_of_a_partitioned_table_all_is_made(dumped: Dumped) -> None:
    after, left = dumped.belonging("events", "plain")
    assert {
        "CONSTRAINT events events_pkey",
        "CONSTRAINT events_1 events_1_pkey",
        "CONSTRAINT events_2_a events_2_a_pkey",
        "INDEX ATTACH events_1_pkey",
        "INDEX ATTACH events_2_a_pkey",
        "INDEX events_at",
        "INDEX alone",
        "COMMENT INDEX alone",
        "CONSTRAINT plain plain_pkey",
        "FK CONSTRAINT events to_plain",
    } <= after
    assert left == set()


def test_what_refers_to_a_partitioned_table_needs_all_partitions(dumped: Dumped) -> None:
    after, left = dumped.belonging("refers", "events", "plain")
    assert {"FK CONSTRAINT refers to_events", "FK CONSTRAINT refers refers_plain_fkey"} <= after
    assert {"TRIGGER refers changed", "CONSTRAINT refers refers_pkey"} <= after
    assert {"COMMENT CONSTRAINT refers_pkey ON refers", "STATISTICS both_of"} <= after
    assert {"ROW SECURITY refers", "POLICY refers own", "RULE refers nothing"} <= after
    assert "POLICY refers known" in after
    assert left == {"rule refers kept", "publication table p refers"}
    after, left = dumped.belonging("refers", "events_1")
    assert "INDEX ATTACH events_1_pkey" in after
    assert left == {
        "foreign key events to_plain",
        "foreign key refers refers_plain_fkey",
        "foreign key refers to_events",
        "policy refers known",
        "rule refers kept",
        "publication table p refers",
    }
