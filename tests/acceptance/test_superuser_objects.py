"""What a role may not create is refused before a restore, or left out for an administrator."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import backups, extension, pieces
from support.cli import environment, restore_to, run_pgstash
from support.compare import compare
from support.postgres import Cluster, Database, installation, temporary_database
from support.tiers import ENCRYPTED_FIRST, later

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence

    from support.postgres import MakeDatabase

ROLE = "tenant_of_objects"
"""May create databases, and is no superuser."""
NEW = "restored_without_superuser"
PASSWORD = "Secret1;"

# Everything that only a superuser may create, with names that have to be quoted.
SAMPLE = f"""
CREATE EXTENSION hstore;
COMMENT ON EXTENSION hstore IS 'another; one''s comment';
CREATE EXTENSION pg_buffercache;
CREATE EXTENSION postgres_fdw;
CREATE TABLE orders (id serial PRIMARY KEY, more hstore);
INSERT INTO orders (more) SELECT hstore('n', n::text) FROM generate_series(1, 3000) AS n;
CREATE FUNCTION watched() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER "Wa""tch" ON ddl_command_end EXECUTE FUNCTION watched();
ALTER EVENT TRIGGER "Wa""tch" ENABLE ALWAYS;
COMMENT ON EVENT TRIGGER "Wa""tch" IS 'a comment
-- Name: x; Type: TABLE; Schema: -; Owner: -
';
CREATE PUBLICATION everything FOR ALL TABLES;
CREATE PUBLICATION single FOR TABLE orders;
CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR PUBLIC SERVER elsewhere OPTIONS (user 'a', password '{PASSWORD}');
CREATE FOREIGN TABLE far (a int) SERVER elsewhere;
CREATE FOREIGN DATA WRAPPER plain;
CREATE FUNCTION checks() RETURNS trigger LANGUAGE c AS '$libdir/refint', 'check_primary_key';
CREATE FUNCTION "o'clock"() RETURNS trigger LANGUAGE c AS '$libdir/refint', 'check_foreign_key';
CREATE FUNCTION "tight;"(a int DEFAULT 1, b text DEFAULT '
    LANGUAGE c') RETURNS int LANGUAGE sql IMMUTABLE LEAKPROOF AS 'SELECT 1';
CREATE FUNCTION loose(b text DEFAULT e'\\n    LANGUAGE c LEAKPROOF') RETURNS int
    LANGUAGE sql AS $$ SELECT 1 $$;
CREATE TYPE pair AS (a int, b int);
CREATE CAST (pair AS hstore) WITH INOUT;
CREATE CAST (bytea AS hstore) WITHOUT FUNCTION;
CREATE CAST (int AS hstore) WITH INOUT;
CREATE SUBSCRIPTION feed CONNECTION 'host=127.0.0.1 port=1 dbname=x password={PASSWORD}'
    PUBLICATION p WITH (connect = false, slot_name = NONE);
CREATE OPERATOR CLASS of_text FOR TYPE text USING btree AS STORAGE text;
"""
IN_SCHEMA = "CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA public;"

LEFT_OUT = [
    "foreign table public.far: it depends on another one of these",
    "user mapping public SERVER elsewhere: it depends on another one of these",
    "extension pg_buffercache: ",
    'event trigger Wa"tch: only a superuser may create it',
    "publication everything: only a superuser may create it",
    "subscription feed: the role may not create subscriptions",
    "foreign data wrapper plain: only a superuser may create it",
    "function public.checks(): the role may not use its language c",
    "function public.o'clock(): the role may not use its language c",
    "function public.tight;(integer, text): only a superuser may create a function that is",
    "cast (bytea AS public.hstore): only a superuser may create a cast without a function",
    "cast (integer AS public.hstore): both of its types belong to other roles",
    "operator class public.of_text: only a superuser may create it",
    "operator family public.of_text: only a superuser may create it",
]
OF_NEW = ["extension postgres_fdw: ", "server elsewhere: it depends on another one of these"]
OF_EXISTING = [
    "comment on EXTENSION hstore: the extension belongs to another role",
    "server elsewhere: the role lacks USAGE on its foreign data wrapper postgres_fdw",
]


@dataclass(frozen=True)
class Stored:
    source: Database
    folder: Path
    encrypted: bool


@pytest.fixture(scope="module")
def role(cluster: Cluster) -> Iterator[str]:
    cluster.maintenance.run_sql(f"CREATE ROLE {ROLE} LOGIN CREATEDB")
    yield ROLE
    cluster.maintenance.run_sql(f"DROP ROLE {ROLE}")


@pytest.fixture(scope="module")
def source(cluster: Cluster) -> Iterator[Database]:
    with temporary_database(cluster) as database:
        database.run_sql(SAMPLE + (IN_SCHEMA if cluster.major > 14 else ""))
        yield database
        drop_subscription(database)


# What may be left out is found in the decrypted script: with or without a key it is the same.
@pytest.fixture(scope="module", params=ENCRYPTED_FIRST)
def stored(
    source: Database, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Stored:
    """A backup by several sessions, of a database that no test changes."""
    folder = tmp_path_factory.mktemp("superuser")
    pieces.back_up(source, folder, encrypted=request.param)
    return Stored(source, folder, request.param)


@pytest.fixture
def target(cluster: Cluster, role: str, make_database: MakeDatabase) -> Iterator[Database]:
    """An empty database of the role, in which a superuser has created the extensions."""
    database = make_database(on=cluster)
    cluster.maintenance.run_sql(f"ALTER DATABASE {database.name} OWNER TO {role}")
    database.run_sql("CREATE EXTENSION hstore; CREATE EXTENSION postgres_fdw;")
    yield database
    drop_subscription(database)
    database.drop()


@pytest.fixture
def created(cluster: Cluster, role: str) -> Iterator[Database]:
    """A database that a test creates as the role."""
    assert role
    yield Database(cluster, NEW)
    if f"{NEW}\n" in databases(cluster):
        drop_subscription(Database(cluster, NEW))
    cluster.drop_database(NEW)


def drop_subscription(database: Database) -> None:
    """No database with one can be dropped."""
    database.run_sql("DROP SUBSCRIPTION IF EXISTS feed")


def restore(
    stored: Stored,
    into: Database,
    *arguments: str,
    cwd: Path,
    statements: Sequence[str] = (),
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Restore as the role."""
    server = into.cluster.maintenance if into.name == NEW else into
    settings = backups.settings(into, stored.folder, encrypted=stored.encrypted)
    del settings["DATABASE_URL"]
    url = server.uri.replace(f"//{into.cluster.user}", f"//{ROLE}", 1)
    env = environment(into.bin_dir, RESTORE_URL=url, **settings, **more)
    given = ["restore", "--create", NEW] if into.name == NEW else restore_to(env)
    done = run_pgstash([*given, *arguments], env, cwd=cwd, statements=statements)
    assert PASSWORD not in done.stdout + done.stderr
    return done


def databases(cluster: Cluster) -> str:
    return cluster.maintenance.run_sql("SELECT datname FROM pg_database ORDER BY 1")


def assert_refused(done: subprocess.CompletedProcess[str], lines: list[str]) -> None:
    assert done.returncode == 56, done.stdout + done.stderr
    assert "nothing was changed in the target" in done.stderr
    assert [line for line in lines if f"\n    {line}" not in done.stderr] == [], done.stderr


def expected(into: Database) -> list[str]:
    own = OF_NEW if into.name == NEW else OF_EXISTING
    in_schema = ["publication tables in schema public.of_schema public: only"]
    return [*LEFT_OUT, *own, *(in_schema if into.cluster.major > 14 else [])]


@pytest.mark.newest_first
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_a_new_database_is_refused(
    dry: list[str], stored: Stored, created: Database, tmp_path: Path
) -> None:
    before = databases(created.cluster)
    done = restore(stored, created, *dry, cwd=tmp_path)
    assert_refused(done, expected(created))
    assert databases(created.cluster) == before
    assert "--skip-superuser-objects" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.newest_first
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["real", "dry"])
def test_an_existing_database_is_refused(
    dry: list[str], stored: Stored, target: Database, tmp_path: Path
) -> None:
    done = restore(stored, target, *dry, cwd=tmp_path)
    assert_refused(done, expected(target))
    assert target.run_sql("SELECT count(*) FROM pg_class WHERE relname = 'orders'") == "0\n"


@pytest.mark.parametrize("jobs", ["1", "2"])
@pytest.mark.parametrize("where", ["new", "existing"])
def test_left_out_for_an_administrator(
    where: str,
    jobs: str,
    stored: Stored,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Each object is listed after SUCCESS; with the file, nothing is missing."""
    into: Database = request.getfixturevalue("created" if where == "new" else "target")
    done = restore(stored, into, "--skip-superuser-objects", cwd=tmp_path, RESTORE_JOBS=jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
    missing = [line for line in expected(into) if f"\n    {line}" not in done.stderr]
    assert missing == [], done.stderr
    counts = "SELECT count(*), max((more->'n')::int) FROM orders"
    assert into.run_sql(counts) == "3000|3000\n"
    assert into.run_sql("SELECT loose()") == "1\n"
    assert into.run_sql("SELECT pubname FROM pg_publication ORDER BY 1") in (
        "single\n",
        "of_schema\nsingle\n",
    )
    assert into.run_sql("SELECT count(*) FROM pg_event_trigger") == "0\n"
    [file] = tmp_path.glob("backup_*.for_administrator.sql")
    assert file.stat().st_mode & 0o077 == 0
    into.run_sql(file.read_bytes())
    assert compare(stored.source.conninfo, into.conninfo, bin_dir=into.bin_dir) == []


@pytest.mark.newest_first
def test_a_dry_run_lists_what_would_be_left_out(
    stored: Stored, created: Database, tmp_path: Path
) -> None:
    done = restore(stored, created, "--skip-superuser-objects", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Would be left out:" in done.stderr
    assert [line for line in expected(created) if f"\n    {line}" not in done.stderr] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.newest_first
def test_a_single_table(stored: Stored, created: Database, tmp_path: Path) -> None:
    """What is created after the rows belongs to tables; the other definitions come before."""
    given = ("--table", "orders", "--skip-superuser-objects")
    done = restore(stored, created, *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "foreign data wrapper plain: " in done.stderr
    assert "event trigger" not in done.stderr
    assert created.run_sql("SELECT count(*) FROM orders") == "3000\n"


@pytest.mark.newest_first
def test_a_superuser_restores_everything(stored: Stored, cluster: Cluster, tmp_path: Path) -> None:
    settings = backups.settings(stored.source, stored.folder, encrypted=stored.encrypted)
    env = environment(stored.source.bin_dir, **settings, RESTORE_URL=cluster.maintenance.uri)
    into = Database(cluster, NEW)
    try:
        done = run_pgstash(["restore", "--create", NEW], env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert compare(stored.source.conninfo, into.conninfo, bin_dir=into.bin_dir) == []
    finally:
        drop_subscription(into)
        cluster.drop_database(NEW)


def test_a_role_that_may_create_subscriptions(
    stored: Stored, target: Database, tmp_path: Path
) -> None:
    """PostgreSQL 16 and newer have a role for that: the server is asked."""
    may = target.cluster.major >= 16
    maintenance = target.cluster.maintenance
    if may:
        maintenance.run_sql(f"GRANT pg_create_subscription TO {ROLE}")
    try:
        done = restore(stored, target, cwd=tmp_path)
    finally:
        if may:
            maintenance.run_sql(f"REVOKE pg_create_subscription FROM {ROLE}")
    assert done.returncode == 56
    assert "event trigger" in done.stderr
    assert ("subscription feed" in done.stderr) is not may


REFINT = "LANGUAGE c AS '$libdir/refint', 'check_primary_key'"
TRIGGER = """
CREATE TABLE orders (id int);
CREATE TRIGGER t BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION checks('id', 'o', 'id')
"""
# What needs an extension that the role cannot create, and what is said about it.
IN_USE = {
    "CREATE EXTENSION dblink; CREATE TABLE uses (r dblink_pkey_results)": "table public.uses",
    "CREATE EXTENSION dblink; CREATE TABLE orders (id int);"
    "CREATE VIEW v AS SELECT * FROM dblink_get_connections()": "view public.v",
    "CREATE EXTENSION {kit}": "rows of kit.units",
    f"CREATE FUNCTION checks() RETURNS trigger {REFINT};{TRIGGER}": "trigger public.orders t",
}


@pytest.mark.newest_first
@pytest.mark.parametrize("sql", later(IN_USE, next(iter(IN_USE))))
def test_what_is_in_use_is_not_left_out(
    sql: str, cluster: Cluster, make_database: MakeDatabase, created: Database, tmp_path: Path
) -> None:
    source = make_database(on=cluster)
    source.run_sql(sql.format(kit=extension.install(cluster.major)))
    backups.back_up(source, tmp_path)
    stored = Stored(source, tmp_path, encrypted=False)
    before = databases(cluster)
    done = restore(stored, created, "--skip-superuser-objects", cwd=tmp_path)
    assert_refused(done, [IN_USE[sql]])
    assert "These objects of the backup need them:" in done.stderr
    assert "--skip-superuser-objects cannot help" in done.stderr
    assert databases(cluster) == before


@pytest.mark.newest_first
def test_a_backup_without_a_table_of_contents(
    source: Database, created: Database, tmp_path: Path
) -> None:
    """Its extensions are known from the manifest; what needs them is not known."""
    backups.back_up(source, tmp_path, DUMP_JOBS="1")
    stored = Stored(source, tmp_path, encrypted=False)
    for arguments in ([], ["--skip-superuser-objects"]):
        done = restore(stored, created, *arguments, cwd=tmp_path)
        assert_refused(done, ["extension pg_buffercache: ", "extension postgres_fdw: "])
        assert "--skip-superuser-objects cannot help" in done.stderr


@pytest.mark.newest_first
def test_an_extension_that_is_not_available(
    cluster: Cluster, make_database: MakeDatabase, created: Database, tmp_path: Path
) -> None:
    source = make_database(on=cluster)
    name = extension.install(cluster.major, f"SELECT '{tmp_path}';")
    source.run_sql(f"CREATE EXTENSION {name}; CREATE TABLE orders (id int)")
    backups.back_up(source, tmp_path)
    for file in (installation(cluster.major) / "share" / "extension").glob(f"{name}*"):
        file.unlink()
    stored = Stored(source, tmp_path, encrypted=False)
    refused = restore(stored, created, cwd=tmp_path)
    assert (refused.returncode, name in refused.stderr) == (59, True), refused.stderr
    done = restore(stored, created, "--skip-superuser-objects", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"extension {name}: it is not available on the server" in done.stderr
    assert created.run_sql("SELECT count(*) FROM orders") == "0\n"


@pytest.mark.newest_first
@pytest.mark.parametrize("where", ["new", "existing"])
def test_nothing_is_left_out_of_a_partial_backup_unless_requested(
    where: str,
    cluster: Cluster,
    make_database: MakeDatabase,
    created: Database,
    tmp_path: Path,
) -> None:
    """A backup that contains an extension needs it; one that does not is no reason to refuse."""
    source = make_database(on=cluster)
    name = extension.install(cluster.major, f"SELECT '{tmp_path}';")
    source.run_sql(f"CREATE EXTENSION {name}; CREATE TABLE orders (id int)")
    backups.back_up(source, tmp_path, PG_DUMP_EXTRA_ARGS="--exclude-table=none")
    for file in (installation(cluster.major) / "share" / "extension").glob(f"{name}*"):
        file.unlink()
    stored = Stored(source, tmp_path, encrypted=False)
    into = created
    if where == "existing":
        into = make_database(on=cluster)
        into.run_sql(f'ALTER DATABASE :"DBNAME" OWNER TO {ROLE}')
    before = databases(cluster)
    done = restore(stored, into, cwd=tmp_path)
    assert_refused(done, [f"extension {name}: it is not available on the server"])
    assert databases(cluster) == before
    assert list(tmp_path.glob("*.sql")) == []


@pytest.mark.newest_first
def test_owners_of_what_is_left_out_are_left_out(
    cluster: Cluster, make_database: MakeDatabase, created: Database, tmp_path: Path
) -> None:
    """All other objects have their owners, so the database is opened to other roles."""
    source = make_database(on=cluster)
    source.run_sql(
        f"ALTER DATABASE {source.name} OWNER TO {ROLE}; GRANT CONNECT ON DATABASE {source.name} TO"
        f" PUBLIC; SET SESSION AUTHORIZATION {ROLE}; CREATE TABLE orders (id int);"
        "CREATE FUNCTION watched() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "RESET SESSION AUTHORIZATION;"
        "CREATE EVENT TRIGGER watch ON ddl_command_end EXECUTE FUNCTION watched();"
        "CREATE FOREIGN DATA WRAPPER plain; GRANT USAGE ON FOREIGN DATA WRAPPER plain TO PUBLIC"
    )
    backups.back_up(source, tmp_path)
    stored = Stored(source, tmp_path, encrypted=False)
    done = restore(stored, created, "--skip-superuser-objects", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 objects left out:" in done.stderr
    assert "can connect" not in done.stderr
    [file] = tmp_path.glob("backup_*.for_administrator.sql")
    created.run_sql(file.read_bytes())
    found = (
        "SELECT evtowner::regrole FROM pg_event_trigger; SELECT fdwacl FROM pg_foreign_data_wrapper"
    )
    assert created.run_sql(found) == source.run_sql(found)


@pytest.mark.newest_first
def test_commands_of_psql_are_not_given_to_an_administrator(
    stored: Stored, created: Database, tmp_path: Path
) -> None:
    """As if a definition contained one, which no pg_dump writes."""
    before = databases(created.cluster)
    done = restore(
        stored,
        created,
        "--skip-superuser-objects",
        cwd=tmp_path,
        statements=(
            "from pgstash.restore import superuser_objects",
            "superuser_objects.is_plain = lambda definition: b'EVENT TRIGGER' not in definition",
        ),
    )
    assert done.returncode == 31, done.stdout + done.stderr
    assert 'such a definition: event trigger Wa"tch' in done.stderr
    assert databases(created.cluster) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["--overwrite", "--data-only", "--into-existing"])
def test_options_that_do_not_go_together(other: str, tmp_path: Path) -> None:
    env = environment(STORAGE_URL=tmp_path.as_uri(), RESTORE_URL="postgresql://127.0.0.1:1/shop")
    given = [] if other == "--overwrite" else ["--table", "orders"]
    done = run_pgstash(["restore", "--skip-superuser-objects", other, *given], env)
    assert done.returncode == 2
    assert "--skip-superuser-objects" in done.stderr
