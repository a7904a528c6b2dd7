"""Owners and privileges are stored beside an archive, and psql gives them back."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import pieces
from support.backups import back_up, decrypted, settings, stored
from support.cli import NO_DOTENV, TOOLS_ON_PATH_ALONE, environment, run_pgstash
from support.postgres import Database, beside_publications, clean_environment
from support.tiers import ENCRYPTED_FIRST, later

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.backups import StoredBackup
    from support.postgres import Cluster, Clusters

# What a name may hold, and what would end a statement early.
ODD = 'rôle "x"; :"DBNAME" --\nCREATE ROLE forged;\n'
ROLES = ("of_app", "reader", "of_large_objects", ODD)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


# Each kind of object that has an owner or privileges, as far as a server without packages has it.
OBJECTS = f"""
    CREATE SCHEMA s AUTHORIZATION of_app;
    GRANT USAGE ON SCHEMA s TO reader, {quoted(ODD)};
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT CREATE ON SCHEMA public TO of_app;
    CREATE FUNCTION s.f(integer) RETURNS integer LANGUAGE sql AS 'SELECT 1';
    REVOKE EXECUTE ON FUNCTION s.f FROM PUBLIC;
    CREATE PROCEDURE s.p() LANGUAGE sql AS '';
    CREATE AGGREGATE s.a (integer) (SFUNC = int4pl, STYPE = integer);
    CREATE OPERATOR s.=== (LEFTARG = integer, RIGHTARG = integer, FUNCTION = int4eq);
    CREATE OPERATOR FAMILY s.family USING btree;
    CREATE OPERATOR CLASS s.class FOR TYPE integer USING btree FAMILY s.family AS OPERATOR 1 <;
    CREATE CONVERSION s.conversion FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
    CREATE COLLATION s.c FROM "C";
    CREATE DOMAIN s.domain AS integer;
    CREATE TYPE s.enumeration AS ENUM ('a');
    CREATE TYPE s.composite AS (a integer);
    GRANT USAGE ON TYPE s.enumeration TO reader;
    CREATE TEXT SEARCH DICTIONARY s.dictionary (TEMPLATE = pg_catalog.simple);
    CREATE TEXT SEARCH CONFIGURATION s.configuration (COPY = pg_catalog.simple);
    CREATE TABLE s.t (a integer, {quoted(ODD)} text, serial serial);
    CREATE STATISTICS s.statistics ON a, serial FROM s.t;
    CREATE VIEW s.v AS SELECT 1;
    CREATE MATERIALIZED VIEW s.m AS SELECT 1;
    CREATE SEQUENCE s.q;
    CREATE FOREIGN DATA WRAPPER wrapper;
    CREATE SERVER far FOREIGN DATA WRAPPER wrapper;
    GRANT USAGE ON FOREIGN SERVER far TO reader;
    CREATE FOREIGN TABLE s.foreign_table (a integer) SERVER far;
    ALTER SERVER far OWNER TO reader;
    CREATE FUNCTION s.e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
    CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION s.e();
    CREATE PUBLICATION publication;
    SELECT lo_create(4242), lo_create(4243), lo_create(4244);
    ALTER LARGE OBJECT 4242 OWNER TO of_large_objects;
    ALTER LARGE OBJECT 4243 OWNER TO of_large_objects;
    GRANT SELECT ON LARGE OBJECT 4242, 4243 TO {quoted(ODD)};
    GRANT SELECT ON pg_catalog.pg_authid TO reader;
    ALTER DEFAULT PRIVILEGES FOR ROLE of_app IN SCHEMA s GRANT SELECT ON TABLES TO reader;
    ALTER DEFAULT PRIVILEGES FOR ROLE of_app REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

    ALTER FUNCTION s.f OWNER TO {quoted(ODD)};
    ALTER PROCEDURE s.p OWNER TO of_app;
    ALTER AGGREGATE s.a (integer) OWNER TO of_app;
    ALTER OPERATOR s.=== (integer, integer) OWNER TO of_app;
    ALTER OPERATOR CLASS s.class USING btree OWNER TO of_app;
    ALTER OPERATOR FAMILY s.family USING btree OWNER TO of_app;
    ALTER CONVERSION s.conversion OWNER TO of_app;
    ALTER COLLATION s.c OWNER TO of_app;
    ALTER DOMAIN s.domain OWNER TO of_app;
    ALTER TYPE s.enumeration OWNER TO of_app;
    ALTER TYPE s.composite OWNER TO of_app;
    ALTER TEXT SEARCH DICTIONARY s.dictionary OWNER TO of_app;
    ALTER TEXT SEARCH CONFIGURATION s.configuration OWNER TO of_app;
    ALTER TABLE s.t OWNER TO {quoted(ODD)};
    ALTER STATISTICS s.statistics OWNER TO of_app;
    ALTER VIEW s.v OWNER TO of_app;
    ALTER MATERIALIZED VIEW s.m OWNER TO of_app;
    ALTER SEQUENCE s.q OWNER TO of_app;
    ALTER FOREIGN TABLE s.foreign_table OWNER TO of_app;

    GRANT SELECT, INSERT ON s.t TO reader WITH GRANT OPTION;
    GRANT UPDATE ({quoted(ODD)}) ON s.t TO reader;
    SET SESSION AUTHORIZATION reader;
    GRANT SELECT ON s.t TO of_app;
    RESET SESSION AUTHORIZATION;
"""
# A list of names that would be a statement if it were not taken for names.
PATH = 'a;CREATE/**/ROLE/**/forged, "$user"'
DATABASE = f"""
    ALTER DATABASE :"DBNAME" SET work_mem = '7MB';
    ALTER DATABASE :"DBNAME" SET pgstash.own = 'it''s \\ mine';
    ALTER ROLE of_app IN DATABASE :"DBNAME" SET search_path = s, "$user", 'Odd; "Name"';
    ALTER ROLE of_app IN DATABASE :"DBNAME" SET statement_timeout = '5s';
    COMMENT ON DATABASE :"DBNAME" IS E'it''s :"DBNAME" \\\\ for all';
    ALTER DATABASE :"DBNAME" CONNECTION LIMIT 7;
    REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
    ALTER DATABASE :"DBNAME" OWNER TO of_app;
    REVOKE CREATE ON DATABASE :"DBNAME" FROM of_app;
    GRANT CONNECT ON DATABASE :"DBNAME" TO reader WITH GRANT OPTION;
    SET SESSION AUTHORIZATION reader;
    GRANT CONNECT ON DATABASE :"DBNAME" TO {quoted(ODD)};
    RESET SESSION AUTHORIZATION;
    SELECT set_config('search_path', '{PATH}', false);
    ALTER DATABASE :"DBNAME" SET search_path FROM CURRENT;
"""


@pytest.fixture(scope="module")
def source(cluster: Cluster) -> Iterator[Database]:
    for role in ROLES:
        cluster.maintenance.run_sql(f"CREATE ROLE {quoted(role)}")
    database = cluster.create_database("Odd 'source'")
    database.run_sql(OBJECTS + DATABASE)
    yield database
    database.drop()
    for role in ROLES:
        cluster.maintenance.run_sql(f"DROP ROLE {quoted(role)}")


@pytest.fixture
def restored(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create_database("Odd 'target'")
    yield database
    database.drop()


def script_of(backup: StoredBackup) -> bytes:
    [found] = backup.archive.parent.glob("backup_*.privileges.sql.gz*")
    packed = found.read_bytes()
    return gzip.decompress(decrypted(packed) if backup.encrypted else packed)


def apply(script: bytes, target: Database) -> str:
    """Run it by psql; return what psql said, without the server's warnings."""
    done = subprocess.run(
        [target.bin_dir / "psql", "-XqAt", "-d", target.conninfo],
        input=script,
        env=clean_environment(),
        capture_output=True,
        check=True,
    )
    return done.stderr.decode()


def described(database: Database) -> list[str]:
    """Return all that pg_dump says of a database, in any order: that of grants may differ."""
    text = database.plain_dump("--create")
    name = database.name.encode()
    for each in (quoted(database.name).encode(), name.replace(b"'", b"\\'"), name):
        text = text.replace(each, b"NAME")
    lines = text.decode().splitlines()
    return sorted(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_psql_gives_them_back(
    jobs: str, source: Database, restored: Database, tmp_path: Path, *, encrypted: bool
) -> None:
    backup = back_up(source, tmp_path, encrypted=encrypted, DUMP_JOBS=jobs)
    backup.restore(restored)
    assert described(restored) != described(source)
    script = script_of(backup)
    assert apply(script, restored) == ""
    assert described(restored) == described(source)
    apply(script, restored)
    assert described(restored) == described(source)
    roles = source.cluster.maintenance.run_sql(
        "SELECT count(*) FROM pg_roles WHERE rolname = 'forged'"
    )
    assert roles.strip() == "0"


@pytest.mark.newest_first
def test_of_pieces(source: Database, restored: Database, tmp_path: Path) -> None:
    backup = pieces.back_up(source, tmp_path)
    backup.restore(restored)
    assert apply(script_of(backup), restored) == ""
    assert described(restored) == described(source)


@pytest.mark.newest_first
def test_an_archive_holds_none_of_them(source: Database, tmp_path: Path) -> None:
    for jobs in ("1", "2"):
        text = back_up(source, tmp_path, DUMP_JOBS=jobs).script()
        assert b"OWNER TO" not in text
        assert b"GRANT" not in text


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_without_them_a_backup_is_a_backup_with_a_warning(
    jobs: str, source: Database, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "store").mkdir()
    for tool in source.bin_dir.iterdir():
        (tools / tool.name).symlink_to(tool)
    (tools / "pg_restore").unlink()
    (tools / "pg_restore").write_text(
        "#!/bin/sh\n"
        'case "$*" in --version | *--no-acl*) exec '
        f"{source.bin_dir / 'pg_restore'}"
        ' "$@" ;; esac\n'
        "echo 'planted' >&2; exit 3\n"
    )
    (tools / "pg_restore").chmod(0o755)
    env = environment(tools, **settings(source, tmp_path / "store"), DUMP_JOBS=jobs)
    done = run_pgstash(["once"], env, statements=TOOLS_ON_PATH_ALONE)
    assert done.returncode == 0, done.stderr
    warning, hint = done.stderr.splitlines()
    assert "The owners and privileges of the database's objects are not stored" in warning
    assert warning.endswith("pg_restore failed: planted")
    assert "The backup is complete without them." in hint
    [backup] = stored(tmp_path / "store")
    assert backup.manifest["privileges_sha256"] is None
    assert (backup.manifest["schema_sha256"] is None) == (jobs == "1")
    assert list((tmp_path / "store").rglob("*.privileges.*")) == []


COPY = "Odd 'copy'"
FIRST_WITH_LOGIN_TRIGGERS = 17
CONNECTING = "SELECT has_database_privilege('reader', current_database(), 'CONNECT')"


def restore(
    folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    env = environment(target.bin_dir, STORAGE_URL=folder.as_uri(), RESTORE_URL=target.uri, **more)
    return run_pgstash(["restore", "--create", COPY, *arguments], env)


@pytest.fixture
def copy(cluster: Cluster) -> Iterator[Database]:
    """The database that a restore is going to create."""
    database = Database(cluster, COPY)
    yield database
    database.drop()


@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_a_new_database_gets_them(
    jobs: str, source: Database, copy: Database, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    done = restore(tmp_path, source.cluster.maintenance, RESTORE_JOBS=jobs)
    assert (done.returncode, beside_publications(done.stderr)) == (0, []), done.stdout
    assert described(copy) == described(source)


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_the_schema_public_gets_its_owner(
    jobs: str, source: Database, copy: Database, tmp_path: Path
) -> None:
    """Before version 15, pg_dump knows its privileges alone, so a dump is no yardstick."""
    own = source.cluster.create_database("Odd 'owner'")
    own.run_sql(
        "ALTER SCHEMA public OWNER TO of_app; GRANT CREATE ON SCHEMA public TO reader;"
        f"GRANT USAGE ON SCHEMA public TO {source.cluster.user};"
        "CREATE TABLE t (); ALTER TABLE t OWNER TO of_app"
    )
    try:
        back_up(own, tmp_path, DUMP_JOBS=jobs)
        done = restore(tmp_path, source.cluster.maintenance)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        described_schema = "SELECT nspowner::regrole, nspacl::text[] FROM pg_namespace"
        public = f"{described_schema} WHERE nspname = 'public'"
        assert copy.run_sql(public) == own.run_sql(public)
    finally:
        own.drop()


@pytest.mark.newest_first
def test_a_new_database_gets_only_what_is_wanted(
    source: Database, copy: Database, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    owners = "SELECT count(*) FROM pg_proc WHERE proowner = 'of_app'::regrole"
    grants = "SELECT count(*) FROM pg_namespace WHERE nspname = 's' AND nspacl IS NOT NULL"
    for arguments, expected in (
        (["--no-owner"], ["0", "1"]),
        (["--no-privileges"], ["2", "0"]),
        (["--no-owner", "--no-privileges"], ["0", "0"]),
    ):
        done = restore(tmp_path, source.cluster.maintenance, *arguments)
        assert done.returncode == 0, done.stderr
        assert [copy.run_sql(query).strip() for query in (owners, grants)] == expected
        # Whose functions still belong to a superuser must not be open to everybody.
        assert copy.run_sql(CONNECTING).strip() == "f"
        copy.drop()


@pytest.mark.newest_first
def test_triggers_of_the_database_do_not_fire(
    source: Database, cluster: Cluster, copy: Database, tmp_path: Path
) -> None:
    guarded = cluster.create_database("Odd 'guarded'")
    guarded.run_sql(
        "CREATE TABLE t (); ALTER TABLE t OWNER TO of_app;"
        "CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql"
        " AS 'BEGIN RAISE EXCEPTION USING MESSAGE = ''planted''; END';"
        "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f()"
    )
    if cluster.major >= FIRST_WITH_LOGIN_TRIGGERS:
        guarded.run_sql(
            "ALTER EVENT TRIGGER e ENABLE ALWAYS; SET event_triggers = off;"
            "CREATE EVENT TRIGGER l ON login EXECUTE FUNCTION f();"
            'ALTER DATABASE :"DBNAME" SET event_triggers = off'
        )
    try:
        back_up(guarded, tmp_path)
        done = restore(tmp_path, source.cluster.maintenance)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert described(copy) == described(guarded)
    finally:
        guarded.drop()


@pytest.fixture
def other(clusters: Clusters, major: int) -> Iterator[Cluster]:
    """Another server, without the roles."""
    other = clusters.get(major, "scram-sha-256")
    yield other
    for role in ROLES:
        other.maintenance.run_sql(f"DROP ROLE IF EXISTS {quoted(role)}")


@pytest.mark.newest_first
def test_roles_that_are_missing_are_named_before_anything_is_done(
    source: Database, other: Cluster, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    for arguments in ([], ["--dry-run"], ["--no-owner"]):
        done = restore(tmp_path, other.maintenance, *arguments)
        assert done.returncode == 59, done.stderr
        for role in ("of_app", "reader", "of_large_objects", "CREATE ROLE forged"):
            assert role in done.stderr
        for remedy in ("--create-roles", "CREATE ROLE", "--no-owner and --no-privileges"):
            assert remedy in done.stderr
    assert other.maintenance.run_sql("SELECT datname FROM pg_database WHERE datname ~ 'copy'") == ""


@pytest.mark.newest_first
def test_roles_that_are_missing_are_made_or_left_out(
    source: Database, other: Cluster, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    copy = Database(other, COPY)
    try:
        done = restore(tmp_path, other.maintenance, "--no-owner", "--no-privileges")
        assert done.returncode == 0, done.stderr
        copy.drop()
        done = restore(tmp_path, other.maintenance, "--create-roles")
        assert done.returncode == 0, done.stderr
        assert "refused" not in done.stderr
        assert described(copy) == described(source)
    finally:
        copy.drop()


ORDINARY = f"""
    CREATE SCHEMA s AUTHORIZATION ordinary;
    GRANT USAGE ON SCHEMA s TO reader;
    CREATE FUNCTION s.f() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    ALTER FUNCTION s.f OWNER TO ordinary;
    CREATE TABLE s.t AS SELECT 1 AS n;
    ALTER TABLE s.t OWNER TO {quoted(ODD)};
    GRANT SELECT ON s.t TO reader WITH GRANT OPTION;
    SET SESSION AUTHORIZATION reader;
    GRANT SELECT ON s.t TO of_app;
    RESET SESSION AUTHORIZATION;
"""
SECRET = "b6Zq-not-for-a-log"


@pytest.fixture
def ordinary(source: Database, copy: Database, tmp_path: Path) -> Iterator[Database]:
    """A database of a role that is no superuser, and owns only some of it."""
    maintenance = source.cluster.maintenance
    maintenance.run_sql("CREATE ROLE ordinary LOGIN CREATEDB")
    small = source.cluster.create_database("Odd 'small'")
    small.run_sql('ALTER DATABASE :"DBNAME" OWNER TO ordinary')
    (tmp_path / "store").mkdir()
    yield small
    copy.drop()
    small.drop()
    maintenance.run_sql("DROP ROLE ordinary")


def restore_as_ordinary(
    source: Database, folder: Path, cwd: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    maintenance = source.cluster.maintenance
    env = environment(
        source.bin_dir,
        STORAGE_URL=folder.as_uri(),
        RESTORE_URL=maintenance.uri.replace(f"//{source.cluster.user}@", "//ordinary@"),
    )
    return run_pgstash(["restore", "--create", COPY, *arguments], env, cwd=cwd)


@pytest.mark.newest_first
def test_what_is_refused_is_a_warning(
    source: Database, ordinary: Database, copy: Database, tmp_path: Path
) -> None:
    ordinary.run_sql(ORDINARY)
    back_up(ordinary, tmp_path / "store")
    done = restore_as_ordinary(source, tmp_path / "store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "SUCCESS" in done.stdout
    assert "The target refused 2 statements for owners and privileges" in done.stderr
    assert 'rôle "x"' in done.stderr
    assert "Only the restoring role and superusers can connect" in done.stderr
    assert copy.run_sql(CONNECTING).strip() == "f"
    assert ordinary.run_sql(CONNECTING).strip() == "t"
    granted = "SELECT has_table_privilege('reader', 's.t', 'SELECT')"
    assert copy.run_sql(granted).strip() == "t"


@pytest.mark.newest_first
@pytest.mark.parametrize("objects", later([ORDINARY, ""], ""), ids=["objects", "database"])
def test_an_administrator_gets_a_file_with_what_is_refused(
    objects: str, source: Database, ordinary: Database, copy: Database, tmp_path: Path
) -> None:
    ordinary.run_sql(objects + DATABASE)
    back_up(ordinary, tmp_path / "store")
    [backup] = stored(tmp_path / "store")
    base = backup.archive.name.partition(".")[0]
    taken = tmp_path / f"{base}.for_administrator.sql"
    taken.write_text("of somebody else")

    done = restore_as_ordinary(source, tmp_path / "store", tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(described(copy)) != set(described(ordinary))
    assert taken.read_text() == "of somebody else"
    file = tmp_path / f"{base}.for_administrator_2.sql"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert b"GRANT SELECT ON TABLE s.t TO reader" not in file.read_bytes()

    [line] = [line for line in done.stderr.splitlines() if "as a superuser: psql " in line]
    command = shlex.split(line.partition("as a superuser: ")[2])
    assert command[-1] == str(file)
    command[0] = str(source.bin_dir / "psql")
    uri = command[command.index("-d") + 1]
    command[command.index("-d") + 1] = uri.replace("//postgres@", f"//{source.cluster.user}@")
    for _ in range(2):
        again = subprocess.run(command, env=clean_environment(), capture_output=True, check=True)
        assert b"ERROR" not in again.stderr
        # What reader grants was granted by the owner too, who was the restoring role.
        assert set(described(copy)) == set(described(ordinary))


@pytest.mark.newest_first
def test_statements_are_logged_if_no_file_can_be_written(
    source: Database, ordinary: Database, copy: Database, tmp_path: Path
) -> None:
    ordinary.run_sql(ORDINARY + f"ALTER DATABASE :\"DBNAME\" SET app.jwt_key = '{SECRET}'")
    back_up(ordinary, tmp_path)
    done = restore_as_ordinary(source, tmp_path, Path("/proc"))
    assert done.returncode == 0, done.stderr
    assert "The file for an administrator cannot be written (" in done.stderr
    assert "ALTER TABLE s.t OWNER TO " in done.stdout
    assert "SET app.jwt_key TO '...'" in done.stdout
    assert SECRET not in done.stdout + done.stderr
    assert copy.run_sql("SELECT n FROM s.t").strip() == "1"


@pytest.mark.newest_first
def test_nothing_is_left_for_an_administrator_of_ones_own_database(
    source: Database, ordinary: Database, copy: Database, tmp_path: Path
) -> None:
    ordinary.run_sql("CREATE SCHEMA s AUTHORIZATION ordinary; GRANT USAGE ON SCHEMA s TO reader")
    back_up(ordinary, tmp_path / "store")
    done = restore_as_ordinary(source, tmp_path / "store", tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert described(copy) == described(ordinary)
    assert list(tmp_path.glob("*.sql")) == []


@pytest.mark.newest_first
def test_a_companion_that_is_lost_is_a_warning(
    source: Database, copy: Database, tmp_path: Path
) -> None:
    backup = back_up(source, tmp_path)
    [companion] = backup.archive.parent.glob("backup_*.privileges.sql.gz")
    companion.unlink()
    done = restore(tmp_path, source.cluster.maintenance)
    assert done.returncode == 0, done.stdout
    assert f"The privileges companion of {backup.archive.name} is missing:" in done.stderr
    assert copy.run_sql("SELECT count(*) FROM pg_proc WHERE proowner = 'of_app'::regrole") == "0\n"


@pytest.mark.newest_first
def test_names_that_the_encoding_of_the_database_reads_differently(
    cluster: Cluster, copy: Database, tmp_path: Path
) -> None:
    """The name of a role is stored as it came, which was in UTF-8."""
    cluster.maintenance.run_sql('CREATE ROLE "propriétaire"')
    latin = cluster.create_database("latin", encoding="LATIN1")
    try:
        latin.run_sql(
            "SET client_encoding = SQL_ASCII; CREATE TABLE t (); ALTER TABLE t"
            ' OWNER TO "propriétaire"'
        )
        back_up(latin, tmp_path)
        done = restore(tmp_path, cluster.maintenance)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        owner = "SELECT tableowner = 'propriétaire' FROM pg_tables WHERE tablename = 't'"
        assert copy.run_sql(f"SET client_encoding = SQL_ASCII; {owner}").strip() == "t"
    finally:
        latin.drop()
        copy.drop()
        cluster.maintenance.run_sql('DROP ROLE "propriétaire"')


def drill(
    source: Database, folder: Path, scratch: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {"STORAGE_URL": folder.as_uri(), "TMPDIR": str(scratch)} | more
    return run_pgstash(["drill"], environment(source.bin_dir, **given))


def check_of(folder: Path) -> dict[str, str] | None:
    """Return what the proof says of owners and privileges."""
    [proof] = folder.rglob("backup_*.proof_*")
    checks = json.loads(gzip.decompress(proof.read_bytes()))["checks"]
    found = [check for check in checks if check["name"] == "owners and privileges"]
    return found[0] if found else None


def doctor(backup: StoredBackup, old: bytes, new: bytes) -> None:
    """Replace a part of the stored script, and the digest of it in the manifest."""
    [companion] = backup.archive.parent.glob("backup_*.privileges.sql.gz")
    text = gzip.decompress(companion.read_bytes())
    assert text.count(old) == 1
    changed = text.replace(old, new)
    companion.write_bytes(gzip.compress(changed))
    manifest = gzip.decompress(backup.manifest_file.read_bytes())
    digest, other = (hashlib.sha256(each).hexdigest().encode() for each in (text, changed))
    backup.manifest_file.write_bytes(gzip.compress(manifest.replace(digest, other)))


@pytest.mark.newest_first
def test_a_drill_gives_them_and_compares(source: Database, tmp_path: Path, scratch: Path) -> None:
    back_up(source, tmp_path)
    sees = (
        "SELECT rolsuper FROM pg_roles WHERE rolname = current_user;"
        "SELECT has_table_privilege('reader', 's.t', 'INSERT WITH GRANT OPTION');"
        "SELECT proowner = 'of_app'::regrole FROM pg_proc WHERE proname = 'p'"
    )
    done = drill(source, tmp_path, scratch, VERIFY_SQL=sees)
    assert done.returncode == 0, done.stdout + done.stderr
    check = check_of(tmp_path)
    assert check
    assert check["passed"]
    # An event trigger and a foreign data wrapper must belong to a superuser.
    assert re.fullmatch(
        r"48 statements as in the source; 2 left out, whose owner is a superuser in the source",
        check["found"],
    )


LOST = {
    "an owner": (
        b"ALTER TYPE s.enumeration OWNER TO of_app;",
        b"ALTER TYPE s.enumeration OWNER TO gone;",
        r"TYPE s\.enumeration belongs to gone in the source, and to postgres in the restored",
    ),
    "a grant": (
        b"GRANT SELECT ON TABLE pg_catalog.pg_authid TO reader;",
        b"GRANT SELECT ON TABLE pg_catalog.pg_authid TO gone;",
        r"only in the source: GRANT SELECT ON TABLE pg_catalog\.pg_authid TO gone\n",
    ),
    "of the database": (
        b'GRANT CONNECT ON DATABASE :"DBNAME" TO reader WITH GRANT OPTION;',
        b'GRANT CONNECT ON DATABASE :"DBNAME" TO gone;',
        r'only in the source: GRANT CONNECT ON DATABASE :"DBNAME" TO gone[;\n]',
    ),
    "more": (
        b"ALTER TYPE s.enumeration OWNER TO of_app;",
        b"",
        r"only in the restored database: ALTER TYPE s\.enumeration OWNER TO postgres\n",
    ),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("lost", later(LOST, "a grant", "more"))
def test_a_drill_names_what_differs(
    lost: str, source: Database, tmp_path: Path, scratch: Path
) -> None:
    backup = back_up(source, tmp_path)
    old, new, problem = LOST[lost]
    doctor(backup, old, new)
    done = drill(source, tmp_path, scratch)
    assert done.returncode == 42, done.stdout + done.stderr
    assert re.search(f"owners and privileges: .*{problem}", done.stderr)
    assert list(tmp_path.rglob("backup_*.proof_*")) == []


@pytest.mark.newest_first
def test_a_drill_on_a_server_leaves_no_role_and_no_grant(
    source: Database, clusters: Clusters, newest_cluster: Cluster, tmp_path: Path, scratch: Path
) -> None:
    """The server may be of a newer major."""
    other = clusters.get(newest_cluster.major, "scram-sha-256")
    other.maintenance.run_sql("CREATE ROLE of_app")  # and stays as it is
    try:
        before = all_roles(other)
        back_up(source, tmp_path)
        done = drill(
            other.maintenance, tmp_path, scratch, VERIFY_DATABASE_URL=other.maintenance.uri
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "could not be dropped" not in done.stderr
        assert check_of(tmp_path)
        assert all_roles(other) == before
    finally:
        other.maintenance.run_sql("DROP ROLE of_app")


def all_roles(cluster: Cluster) -> str:
    return cluster.maintenance.run_sql(
        "SELECT r.*, s.setconfig, shobj_description(r.oid, 'pg_authid') FROM pg_roles r"
        " LEFT JOIN pg_db_role_setting s ON s.setrole = r.oid ORDER BY r.rolname;"
        "SELECT count(*) FROM pg_auth_members; SELECT datname, datacl FROM pg_database ORDER BY 1"
    )


@pytest.mark.newest_first
def test_a_drill_by_an_ordinary_role_tells_what_it_does_not_check(
    source: Database, other: Cluster, tmp_path: Path, scratch: Path
) -> None:
    small = source.cluster.create_database("Odd 'small'")
    try:
        small.run_sql("CREATE TABLE t (); ALTER TABLE t OWNER TO of_app")
        back_up(small, tmp_path)
    finally:
        small.drop()
    other.maintenance.run_sql("CREATE ROLE drills LOGIN CREATEDB CREATEROLE PASSWORD 'drills'")
    try:
        uri = f"postgresql://drills:drills@{other.host}:{other.port}/postgres"
        done = drill(source, tmp_path, scratch, VERIFY_DATABASE_URL=uri)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Owners and privileges are not checked, as" in done.stderr
        assert check_of(tmp_path) is None
    finally:
        other.maintenance.run_sql("DROP ROLE drills")


@pytest.mark.newest_first
def test_a_drill_misses_a_companion_that_is_lost(
    source: Database, tmp_path: Path, scratch: Path
) -> None:
    backup = back_up(source, tmp_path)
    [companion] = backup.archive.parent.glob("backup_*.privileges.sql.gz")
    companion.unlink()
    done = drill(source, tmp_path, scratch)
    assert done.returncode == 42, done.stdout + done.stderr
    assert "owners and privileges: the object that holds them is missing" in done.stderr


def restore_to(
    folder: Path, target: Database, *arguments: str, user: str = "", cwd: Path = NO_DOTENV
) -> subprocess.CompletedProcess[str]:
    uri = target.uri.replace(f"//{target.cluster.user}@", f"//{user}@") if user else target.uri
    env = environment(target.bin_dir, STORAGE_URL=folder.as_uri())
    return run_pgstash(["restore", "--to", uri, *arguments], env, cwd=cwd)


def objects_of(database: Database) -> list[str]:
    """Return what pg_dump says of the objects of a database, and not of itself."""
    lines = database.plain_dump().decode().splitlines()
    return sorted(line for line in lines if not line.startswith(("\\restrict", "\\unrestrict")))


@pytest.mark.newest_first
@pytest.mark.parametrize("overwrite", [False, True], ids=["empty", "overwritten"])
def test_an_existing_database_gets_those_of_its_objects(
    source: Database, restored: Database, tmp_path: Path, *, overwrite: bool
) -> None:
    back_up(source, tmp_path)
    before = databases_of(restored)
    for arguments in ([], ["--overwrite"]) if overwrite else ([],):
        done = restore_to(tmp_path, restored, *arguments)
        assert done.returncode == 0, done.stderr
        assert beside_publications(done.stderr) == []
        assert objects_of(restored) == objects_of(source)
    assert databases_of(restored) == before


def databases_of(database: Database) -> str:
    return database.run_sql(
        "SELECT datdba, datacl, datconnlimit, setconfig FROM pg_database d"
        " LEFT JOIN pg_db_role_setting ON setdatabase = d.oid WHERE datname = current_database()"
    )


@pytest.mark.newest_first
def test_an_existing_database_gets_only_what_is_wanted(
    source: Database, cluster: Cluster, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    owners = "SELECT count(*) FROM pg_proc WHERE proowner = 'of_app'::regrole"
    grants = "SELECT count(*) FROM pg_namespace WHERE nspname = 's' AND nspacl IS NOT NULL"
    for arguments, expected in (
        (["--no-owner"], ["0", "1"]),
        (["--no-privileges"], ["2", "0"]),
        (["--no-owner", "--no-privileges"], ["0", "0"]),
    ):
        target = cluster.create_database("Odd 'target'")
        try:
            done = restore_to(tmp_path, target, *arguments)
            assert done.returncode == 0, done.stderr
            assert [target.run_sql(query).strip() for query in (owners, grants)] == expected
        finally:
            target.drop()


@pytest.mark.newest_first
def test_what_an_existing_database_refuses_is_for_an_administrator(
    ordinary: Database, restored: Database, tmp_path: Path
) -> None:
    ordinary.run_sql(ORDINARY)
    back_up(ordinary, tmp_path / "store")
    restored.run_sql('ALTER DATABASE :"DBNAME" OWNER TO ordinary')
    done = restore_to(tmp_path / "store", restored, user="ordinary", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The target refused 2 statements for owners and privileges" in done.stderr
    assert restored.run_sql("SELECT has_table_privilege('reader', 's.t', 'SELECT')") == "t\n"
    assert restored.run_sql("SELECT has_table_privilege('of_app', 's.t', 'SELECT')") == "f\n"
    [file] = tmp_path.glob("*.for_administrator.sql")
    assert apply(file.read_bytes(), restored) == ""
    assert objects_of(restored) == objects_of(ordinary)


@pytest.mark.newest_first
def test_a_privilege_that_cannot_be_revoked_is_for_an_administrator(
    ordinary: Database, restored: Database, tmp_path: Path
) -> None:
    """The role has the privilege itself, so the server only warns that it revoked nothing."""
    ordinary.run_sql(
        "GRANT CREATE ON SCHEMA public TO of_app; CREATE TABLE t (n int);"
        "CREATE FUNCTION f() RETURNS integer LANGUAGE sql AS 'SELECT 1';"
        "ALTER TABLE t OWNER TO ordinary; GRANT SELECT ON t TO reader;"
        "ALTER FUNCTION f OWNER TO of_app; REVOKE EXECUTE ON FUNCTION f FROM PUBLIC"
    )
    back_up(ordinary, tmp_path / "store")
    restored.run_sql(
        'ALTER DATABASE :"DBNAME" OWNER TO ordinary; ALTER SCHEMA public OWNER TO ordinary;'
        "GRANT CREATE ON SCHEMA public TO of_app;"
        "ALTER ROLE ordinary NOINHERIT; GRANT of_app TO ordinary"
    )
    done = restore_to(tmp_path / "store", restored, user="ordinary", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "The target refused 1 statement for owners and privileges" in done.stderr
    assert 'no privileges could be revoked for "f"' in done.stderr
    [file] = tmp_path.glob("*.for_administrator.sql")
    assert b" ON TABLE " not in file.read_bytes()
    assert apply(file.read_bytes(), restored) == ""
    assert restored.run_sql("SELECT has_function_privilege('reader', 'f()', 'EXECUTE')") == "f\n"
    assert restored.run_sql("SELECT has_table_privilege('reader', 't', 'SELECT')") == "t\n"


@pytest.mark.newest_first
def test_an_existing_database_is_restored_whole_or_not_at_all(
    source: Database, restored: Database, tmp_path: Path
) -> None:
    """What concerns the transaction is no refusal of a statement."""
    back_up(source, tmp_path)
    restored.run_sql(
        "CREATE FUNCTION public.f() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN"
        " IF tg_tag = ''GRANT'' THEN RAISE EXCEPTION USING ERRCODE = ''40001'',"
        " MESSAGE = ''planted''; END IF; END';"
        "CREATE EVENT TRIGGER planted ON ddl_command_start EXECUTE FUNCTION public.f()"
    )
    done = restore_to(tmp_path, restored, "--overwrite")
    assert done.returncode != 0
    assert "planted" in done.stderr
    assert "nothing was changed in the target" in done.stderr
    assert restored.run_sql("SELECT count(*) FROM pg_namespace WHERE nspname = 's'") == "0\n"


@pytest.mark.newest_first
def test_roles_that_an_existing_database_lacks_are_named_first(
    source: Database, other: Cluster, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    target = other.create_database("Odd 'target'")
    try:
        done = restore_to(tmp_path, target)
        assert done.returncode == 59, done.stderr
        assert "of_large_objects" in done.stderr
        assert "--no-owner and --no-privileges" in done.stderr
        done = restore_to(tmp_path, target, "--create-roles")
        assert done.returncode == 0, done.stderr
        assert objects_of(target) == objects_of(source)
    finally:
        target.drop()
