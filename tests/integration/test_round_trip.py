"""A backup, opened by openssl, gunzip and psql alone, is the database again."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from support import backups, databases
from support.cli import TOOLS_ON_PATH_ALONE, environment, run_pgstash
from support.compare import compare
from support.postgres import Cluster, Clusters, Database, MakeDatabase, bin_dir
from support.postgres import test_majors as majors_under_test
from support.tiers import ENCRYPTED_FIRST, later

RESTRICT = re.compile(rb"^\\(?:un)?restrict \w+\n", re.MULTILINE)


def real_counts(database: Database) -> dict[tuple[str, str], int]:
    """Count every table that holds rows of its own, without its children's."""
    query = """
        SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        LEFT JOIN pg_depend d ON d.objid = c.oid AND d.deptype = 'e'
                              AND d.classid = 'pg_class'::regclass
        WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND d.objid IS NULL
    """
    encoding = "SQL_ASCII" if "sql_ascii" in database.name else "UTF8"
    with psycopg.connect(database.conninfo, client_encoding=encoding) as connection:
        tables = connection.execute(query).fetchall()
        counts = {}
        for schema, name in tables:
            count = sql.SQL("SELECT count(*) FROM ONLY {}").format(_identifier(schema, name))
            row = connection.execute(count).fetchone()
            assert row
            counts[(_text(schema), _text(name))] = row[0]
        return counts


def _identifier(schema: str | bytes, name: str | bytes) -> sql.Composable:
    return sql.SQL(".").join(sql.Identifier(_text(part)) for part in (schema, name))


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


LATER = ("empty", "bytea_all", "sql_ascii", "latin1", "euc_jp")


@pytest.mark.newest_first
@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
@pytest.mark.parametrize("sample", later(databases.ROUND_TRIPPING, *LATER))
def test_standard_tools_restore_what_was_there(
    sample: str, *, encrypted: bool, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database(sample, on=cluster)
    target = cluster.create_database(f"restored_{source.name}", encoding=databases.encoding(sample))
    try:
        backup = backups.back_up(source, tmp_path, encrypted=encrypted)
        assert backup.encrypted == encrypted
        backup.restore(target)
        assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
        counted = {table: n for table, n in backup.row_counts.items() if table[1] != "ext_config"}
        assert counted == real_counts(source)
    finally:
        target.drop()


@pytest.mark.long
def test_a_large_database(cluster: Cluster, make_database: MakeDatabase, tmp_path: Path) -> None:
    """About 1 GB of mixed tables, with the indexes and constraints that they come with."""
    source, target = make_database(on=cluster), make_database(on=cluster)
    source.run_sql(databases.big(1.0))
    backup = backups.back_up(source, tmp_path, encrypted=True)
    assert backup.manifest["raw_bytes"] > 900_000_000
    assert len(backup.manifest["members"]["rows"]) > 50
    backup.restore(target)
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []
    assert backup.row_counts == real_counts(source)


@pytest.mark.newest_first
@pytest.mark.parametrize("sample", later(databases.ROUND_TRIPPING, *LATER))
def test_the_script_is_pg_dumps_own(
    sample: str, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database(sample, on=cluster)
    backup = backups.back_up(source, tmp_path, DUMP_JOBS="1")
    expected = source.plain_dump("--no-owner", "--no-acl", "--clean", "--if-exists")
    assert RESTRICT.sub(b"", backup.script()) == RESTRICT.sub(b"", expected)


@pytest.mark.parametrize(
    "sample", later(["structure", "mixed", "large_objects"], "mixed", "large_objects")
)
def test_the_newest_client_dumps_older_servers(
    sample: str, clusters: Clusters, make_database: MakeDatabase, tmp_path: Path
) -> None:
    oldest, newest = majors_under_test()[0], majors_under_test()[-1]
    source = make_database(sample, on=clusters.get(oldest))
    env = environment(bin_dir(newest), **backups.settings(source, tmp_path))
    # A tool of the server's own major would be taken.
    done = run_pgstash(["once"], env, statements=TOOLS_ON_PATH_ALONE)
    assert done.returncode == 0, done.stderr
    [backup] = backups.stored(tmp_path)
    assert backup.manifest["client"].startswith(f"{newest}.")
    target = clusters.get(newest).create_database(f"newer_{source.name}")
    try:
        backup.restore(target)
        differences = compare(source.conninfo, target.conninfo, bin_dir=bin_dir(newest))
        # Majors word the same schema differently: views, the owner of "public". That it was made
        # is shown by psql, which stopped at no error.
        assert [line for line in differences if not line.startswith("schema: ")] == []
    finally:
        target.drop()


@pytest.mark.parametrize("level", later(range(1, 10), *range(2, 6), 7, 8))
def test_every_compression_level_restores(
    level: int, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database("mixed")
    backup = backups.back_up(source, tmp_path, COMPRESSION_LEVEL=str(level), DUMP_JOBS="1")
    expected = source.plain_dump("--no-owner", "--no-acl", "--clean", "--if-exists")
    assert RESTRICT.sub(b"", backup.script()) == RESTRICT.sub(b"", expected)


def test_an_existing_database_is_replaced(make_database: MakeDatabase, tmp_path: Path) -> None:
    source, target = make_database("mixed"), make_database("mixed")
    target.run_sql("CREATE TABLE added_later (a int)")
    backup = backups.back_up(source, tmp_path)
    target.run_sql("DROP TABLE added_later")
    backup.restore(target)
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []


def test_where_pg_dumps_own_script_fails_on_an_empty_database(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Such scripts are pg_dump's, passed on unchanged; the documentation lists the cases."""
    source, target = make_database("breaks_under_clean"), make_database()
    backup = backups.back_up(source, tmp_path)
    with pytest.raises(AssertionError, match="ERROR"):
        backup.restore(target)
