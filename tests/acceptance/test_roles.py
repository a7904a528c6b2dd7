"""Roles and extensions that a backup needs are stored, reported where they lack, and made."""

from __future__ import annotations

import gzip
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from pgstash.format import manifest as manifests
from support.backups import PASSPHRASE, PREFIX, StoredBackup, back_up, settings, stored
from support.cli import environment, restore_to, run_pgstash
from support.stored import CLOSING, make
from support.tiers import ENCRYPTED_FIRST, later

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster, Clusters, Database, MakeDatabase

# What a name may hold, and what would end a statement early.
ODD = 'rôle "x"; --\nCREATE ROLE forged;\n'
ROLES = ("reader", ODD, "-dash", "by_mapping", "by_function", "in_a_column")


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


OBJECTS = f"""
    CREATE TABLE secrets (n int);
    INSERT INTO secrets VALUES (1);
    CREATE POLICY p ON secrets TO reader, {quoted(ODD)}, "-dash" USING (true);
    CREATE POLICY everybody ON secrets TO public USING (true);
    CREATE EXTENSION postgres_fdw;
    CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw;
    CREATE USER MAPPING FOR by_mapping SERVER far OPTIONS (password 'planted-mapping');
    CREATE USER MAPPING FOR PUBLIC SERVER far;
    CREATE FUNCTION f() RETURNS int LANGUAGE sql SET role = by_function AS 'SELECT 1';
    CREATE TABLE owners (r regrole);
    INSERT INTO owners VALUES ('in_a_column');
"""


def roles_of(target: Database) -> list[str]:
    query = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'"
    with target.connect() as session:
        return sorted(name for (name,) in session.execute(query).fetchall())


@pytest.fixture
def origin(clusters: Clusters, newest_cluster: Cluster) -> Iterator[Cluster]:
    """A cluster beside the newest one, with roles that the newest has not."""
    cluster = clusters.get(newest_cluster.major, "scram-sha-256")
    before = [(each, roles_of(each.maintenance)) for each in (cluster, newest_cluster)]
    for role in ROLES:
        cluster.maintenance.run_sql(f"CREATE ROLE {quoted(role)} LOGIN PASSWORD 'planted-role'")
    yield cluster
    for each, old in before:
        for role in set(roles_of(each.maintenance)) - set(old):
            each.maintenance.run_sql(f"DROP ROLE {quoted(role)}")


@pytest.fixture
def source(origin: Cluster, make_database: MakeDatabase) -> Database:
    database = make_database(on=origin)
    database.run_sql(OBJECTS)
    return database


def globals_file(backup: StoredBackup) -> Path:
    [found] = backup.archive.parent.glob("backup_*.globals.gz*")
    return found


def restore(
    folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {
        "STORAGE_URL": folder.as_uri(),
        "RESTORE_URL": target.uri,
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        "LD_LIBRARY_PATH": str(target.bin_dir.parent / "lib"),
    }
    env = environment(target.bin_dir, **(given | more))
    return run_pgstash(restore_to(env, *arguments), env, cwd=folder)


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
def test_what_is_stored(source: Database, tmp_path: Path, *, encrypted: bool) -> None:
    backup = back_up(source, tmp_path, encrypted=encrypted)
    needed = sorted((ODD, "reader", "-dash", "by_mapping", "by_function"))
    assert sorted(backup.manifest["roles"]) == needed
    assert [each["name"] for each in backup.manifest["extensions"]] == ["postgres_fdw"]
    file = globals_file(backup)
    assert file.suffix == (".enc" if encrypted else ".gz")
    if encrypted:
        assert file.read_bytes().startswith(b"Salted__")
        return
    script = gzip.decompress(file.read_bytes()).decode()
    assert f"CREATE ROLE {quoted(ODD)};" in script
    assert "planted-" not in script
    assert "SCRAM-SHA-256" not in script
    assert "PASSWORD" not in script


def test_all_that_the_target_lacks_is_told_before_it_is_touched(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(source, tmp_path, encrypted=True)
    target = make_database()
    before = roles_of(target)
    for arguments in ([], ["--dry-run"]):
        done = restore(tmp_path, target, *arguments)
        assert done.returncode == 59, done.stderr
        assert "nothing was changed in the target" in done.stderr
        assert "is missing 5 roles" in done.stderr
        for role in ('"-dash"', '"by_function"', '"by_mapping"', '"reader"', "forged"):
            assert role in done.stderr
        assert "--create-roles" in done.stderr
        assert 'CREATE ROLE "reader";' in done.stderr
    assert roles_of(target) == before
    assert target.run_sql("SELECT relname FROM pg_class WHERE relnamespace = 2200") == ""


def test_roles_are_made_without_login(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    backup = back_up(source, tmp_path, encrypted=True)
    target = make_database()
    before = roles_of(target)
    planned = restore(tmp_path, target, "--create-roles", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert roles_of(target) == before
    done = restore(tmp_path, target, "--create-roles")
    assert done.returncode == 0, done.stderr
    assert "Created the role reader, without login" in done.stdout
    made = set(roles_of(target)) - set(before)
    assert made >= set(ROLES)
    assert "forged" not in made
    login = "SELECT rolname FROM pg_roles WHERE rolcanlogin OR rolcreaterole OR rolcreatedb"
    assert not made & set(target.run_sql(login).splitlines())
    assert target.run_sql("SELECT r FROM owners") == "in_a_column\n"
    assert backup.row_counts["public", "owners"] == 1


@pytest.mark.long
def test_without_the_stored_roles_those_of_the_manifest_are_made(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source.run_sql("DROP TABLE owners")
    backup = back_up(source, tmp_path)
    globals_file(backup).unlink()
    target = make_database()
    before = roles_of(target)
    done = restore(tmp_path, target, "--create-roles")
    assert done.returncode == 0, done.stderr
    assert "The roles companion of " in done.stderr
    assert set(roles_of(target)) - set(before) == set(ROLES) - {"in_a_column"}


@pytest.mark.long
def test_a_partial_backup_may_do_without(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source.run_sql(
        "DROP FUNCTION f; DROP USER MAPPING FOR by_mapping SERVER far; DROP TABLE owners"
    )
    back_up(source, tmp_path, EXCLUDE_TABLES="secrets")
    done = restore(tmp_path, make_database())
    assert done.returncode == 0, done.stderr
    assert '"reader"' in done.stderr


ODD_NAMES = ["dbname=postgres", "a 'b' \\ \"c\"", "postgresql://x/y", "-d"]


@pytest.mark.parametrize("name", later(ODD_NAMES, *ODD_NAMES[2:]))
def test_the_database_may_have_any_name(name: str, newest_cluster: Cluster, tmp_path: Path) -> None:
    database = newest_cluster.create_database(name)
    try:
        backup = back_up(database, tmp_path)
        assert backup.manifest["globals_sha256"]
        assert globals_file(backup).stat().st_size > 0
    finally:
        database.drop()


def test_stored_roles_that_somebody_changed(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    backup = back_up(source, tmp_path)
    file = globals_file(backup)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + b"CREATE ROLE forged;\n"))
    target = make_database()
    before = roles_of(target)
    done = restore(tmp_path, target, "--create-roles")
    assert done.returncode == 31, done.stderr
    assert "the roles of backup_" in done.stderr
    assert roles_of(target) == before


def test_a_role_that_may_not_make_roles(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    target = make_database()
    target.run_sql("CREATE ROLE humble LOGIN")
    url = target.uri.replace("admin@", "humble@")
    # It may not create the source's extension either, which would be refused first.
    done = restore(tmp_path, target, "--create-roles", "--skip-superuser-objects", RESTORE_URL=url)
    assert done.returncode == 59, done.stderr
    assert "CREATEROLE" in done.stderr


def test_an_extension_that_the_target_cannot_have(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    extension = manifests.Extension("postgis", "3.4")
    made = make(b"SELECT 1;\n" + CLOSING).with_manifest(extensions=[extension])
    made.store_as_backup(tmp_path)
    done = restore(tmp_path, make_database(), "--create-roles")
    assert done.returncode == 59, done.stderr
    assert "postgis (3.4)" in done.stderr
    assert "Install the packages" in done.stderr


def test_pg_dumpall_that_fails_is_a_warning(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    tools = tmp_path / "bin"
    shutil.copytree(database.bin_dir, tools, symlinks=True)
    (tools / "pg_dumpall").unlink()
    (tools / "pg_dumpall").write_text("#!/bin/sh\necho 'pg_dumpall: error: no way' >&2\nexit 1\n")
    (tools / "pg_dumpall").chmod(0o755)
    folder = tmp_path / "backups"
    folder.mkdir()
    more = {"LD_LIBRARY_PATH": str(database.bin_dir.parent / "lib")}
    done = run_pgstash(["once"], environment(tools, **settings(database, folder), **more))
    assert done.returncode == 0, done.stderr
    assert "WARNING The roles of the server are not stored with the backup" in done.stderr
    assert "no way" in done.stderr
    [backup] = stored(folder)
    assert backup.manifest["globals_sha256"] is None
    assert list((folder / PREFIX).glob("*.globals.*")) == []
    assert restore(folder, make_database()).returncode == 0


def test_a_restricted_role_backs_up(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    database.run_sql(
        "CREATE TABLE a (n int); CREATE ROLE humble LOGIN; GRANT SELECT ON a TO humble"
    )
    try:
        url = database.uri.replace("admin@", "humble@")
        backup = back_up(database, tmp_path, DATABASE_URL=url)
        assert backup.row_counts == {("public", "a"): 0}
    finally:
        database.run_sql("DROP OWNED BY humble; DROP ROLE humble")


def test_what_a_restricted_role_leaves_out_is_warned_of(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    database.run_sql(
        "CREATE ROLE humble LOGIN; CREATE FOREIGN DATA WRAPPER w; CREATE SERVER far FOREIGN DATA "
        "WRAPPER w; CREATE USER MAPPING FOR admin SERVER far OPTIONS (password 'planted-mapping')"
    )
    try:
        folder = tmp_path / "backups"
        folder.mkdir()
        told = settings(database, folder) | {
            "DATABASE_URL": database.uri.replace("admin@", "humble@")
        }
        done = run_pgstash(["once"], environment(database.bin_dir, **told))
        assert done.returncode == 0, done.stderr
        assert "WARNING pg_dump leaves out the options of 1 user mapping" in done.stderr
        assert "admin on far" in done.stderr
        assert b"planted-mapping" not in stored(folder)[0].script()
        done = run_pgstash(["once"], environment(database.bin_dir, **settings(database, folder)))
        assert "user mappings" not in done.stderr
        assert b"planted-mapping" in stored(folder)[1].script()
    finally:
        database.run_sql("DROP ROLE humble")


def test_show_names_them(source: Database, tmp_path: Path) -> None:
    back_up(source, tmp_path)
    done = run_pgstash(["show"], environment(source.bin_dir, STORAGE_URL=tmp_path.as_uri()))
    assert done.returncode == 0, done.stderr
    assert "role        reader" in done.stdout
    assert "extension   postgres_fdw 1." in done.stdout
    as_json = run_pgstash(
        ["show", "--json"], environment(source.bin_dir, STORAGE_URL=tmp_path.as_uri())
    )
    shown: dict[str, Any] = json.loads(as_json.stdout)
    assert ODD in shown["roles"]


def for_drills(source: Database, on: Cluster, folder: Path) -> dict[str, str]:
    return environment(
        source.bin_dir,
        STORAGE_URL=folder.as_uri(),
        VERIFY_DATABASE_URL=on.maintenance.uri,
        LD_LIBRARY_PATH=str(source.bin_dir.parent / "lib"),
    )


def test_a_drill_makes_them_and_drops_them(
    source: Database, newest_cluster: Cluster, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    env = for_drills(source, newest_cluster, tmp_path)
    before = roles_of(newest_cluster.maintenance)
    done = run_pgstash(["drill"], env)
    assert done.returncode == 0, done.stderr
    assert "SUCCESS Drill passed" in done.stdout
    assert "Created the role reader" in done.stdout
    assert roles_of(newest_cluster.maintenance) == before


@pytest.mark.long
def test_what_drills_made_goes_with_the_last_of_them(
    source: Database, newest_cluster: Cluster, tmp_path: Path
) -> None:
    """Another one on the same server may need a role that it found there."""
    back_up(source, tmp_path)
    env = for_drills(source, newest_cluster, tmp_path)
    scratch = newest_cluster.maintenance
    scratch.run_sql("CREATE ROLE mine; COMMENT ON ROLE mine IS 'made by hand'")
    before = roles_of(scratch)
    with scratch.connect() as another:
        another.execute("SET application_name = 'pgstash_drill_00000001'")
        assert run_pgstash(["drill"], env).returncode == 0
        assert set(ROLES) <= set(roles_of(scratch))
    # One that somebody uses by now is no reason to keep the others.
    scratch.run_sql("CREATE SCHEMA used AUTHORIZATION reader")
    done = run_pgstash(["drill"], env)
    assert done.returncode == 0, done.stderr
    assert "Roles that a drill created could not be dropped: reader: " in done.stderr
    assert roles_of(scratch) == sorted([*before, "reader"])
    scratch.run_sql("DROP SCHEMA used")
    assert run_pgstash(["drill"], env).returncode == 0
    assert roles_of(scratch) == before
    scratch.run_sql("DROP ROLE mine")


@pytest.mark.long
def test_what_drills_made_and_somebody_uses_by_now_stays(
    source: Database, newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(source, tmp_path)
    scratch = newest_cluster.maintenance
    before = roles_of(scratch)
    left = ("reader", ODD, "-dash", "by_mapping", "by_function", "left over")
    for role in left:
        scratch.run_sql(
            f"CREATE ROLE {quoted(role)};"
            f"COMMENT ON ROLE {quoted(role)} IS 'made by pgstash for a drill'"
        )
    scratch.run_sql("ALTER ROLE reader LOGIN; GRANT by_mapping TO by_function")
    env = for_drills(source, newest_cluster, tmp_path)
    assert run_pgstash(["drill"], env).returncode == 0
    kept = ["reader", "by_mapping", "by_function"]
    assert roles_of(scratch) == sorted([*before, *kept])
    scratch.run_sql("ALTER ROLE reader NOLOGIN; REVOKE by_mapping FROM by_function")
    target = make_database()
    done = restore(tmp_path, target, "--create-roles")
    assert done.returncode == 0, done.stdout + done.stderr
    assert run_pgstash(["drill"], env).returncode == 0
    assert set(kept) <= set(roles_of(scratch))


@pytest.mark.parametrize(
    "named",
    [
        pytest.param(False, id="in rows alone", marks=pytest.mark.long),
        pytest.param(True, id="in a definition"),
    ],
)
def test_a_role_that_may_make_none(
    origin: Cluster,
    make_database: MakeDatabase,
    newest_cluster: Cluster,
    tmp_path: Path,
    *,
    named: bool,
) -> None:
    """A drill makes all roles that it can, and needs those that the definitions name."""
    source = make_database(on=origin)
    source.run_sql("CREATE TABLE t AS SELECT 1 AS n")
    if named:
        source.run_sql("CREATE POLICY p ON t TO reader USING (true)")
    back_up(source, tmp_path)
    newest_cluster.maintenance.run_sql("CREATE ROLE only_databases LOGIN CREATEDB")
    try:
        env = environment(
            source.bin_dir,
            STORAGE_URL=tmp_path.as_uri(),
            VERIFY_DATABASE_URL=newest_cluster.maintenance.uri.replace("admin@", "only_databases@"),
        )
        done = run_pgstash(["drill"], env)
    finally:
        newest_cluster.maintenance.run_sql("DROP ROLE only_databases")
    if named:
        assert done.returncode == 59
        assert "the role reader cannot be created: permission denied" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert f"{len(ROLES)} roles of the source cannot be created" in done.stderr


@pytest.fixture
def of_another_encoding(newest_cluster: Cluster) -> Iterator[Database]:
    """A LATIN1 database; roles that were made from there, one of them by a drill."""
    latin = newest_cluster.create_database("latin", encoding="LATIN1")
    speak = "SET client_encoding = 'UTF8';"
    latin.run_sql(
        f'{speak} CREATE ROLE "andré"; CREATE ROLE "renée" NOLOGIN;'
        "COMMENT ON ROLE \"renée\" IS 'made by pgstash for a drill'"
    )
    yield latin
    latin.run_sql(f'{speak} DROP ROLE "andré", "renée"')
    latin.drop()


@pytest.mark.long
@pytest.mark.usefixtures("of_another_encoding")
def test_names_of_roles_that_are_not_utf_8(make_database: MakeDatabase, tmp_path: Path) -> None:
    """Names that all databases share are stored as they came, in any encoding."""
    database = make_database()
    back_up(database, tmp_path)
    done = restore(tmp_path, database)
    assert done.returncode == 0, done.stderr
    done = run_pgstash(["drill"], for_drills(database, database.cluster, tmp_path))
    assert done.returncode == 0, done.stderr
    assert r"Roles that a drill created could not be dropped: ren\udce9e: " in done.stderr


@pytest.mark.parametrize("name", later(["магазин", "café"], "café"))
def test_a_name_that_the_database_of_the_login_cannot_give(
    name: str, of_another_encoding: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(make_database(), tmp_path)
    done = restore(tmp_path, of_another_encoding, "--create", name)
    assert done.returncode == 61, done.stderr
    assert f"'{name}' cannot be used from the database latin" in done.stderr
    assert "whose encoding is LATIN1" in done.stderr


@pytest.fixture
def euc_jp(make_database: MakeDatabase) -> Iterator[Database]:
    """A database whose encoding lacks the name of a role, the bytes of which are no text there."""
    cluster = make_database().cluster
    cluster.maintenance.run_sql('CREATE ROLE "日本"; CREATE ROLE only_this LOGIN')
    database = cluster.create_database("euc_jp", encoding="EUC_JP")
    yield database
    database.drop()
    cluster.maintenance.run_sql('DROP ROLE "日本", only_this')


def test_names_that_the_database_cannot_hold_are_read_from_another(
    euc_jp: Database, tmp_path: Path
) -> None:
    backup = back_up(euc_jp, tmp_path)
    script = gzip.decompress(globals_file(backup).read_bytes()).decode()
    assert 'CREATE ROLE "日本";' in script
    assert backup.manifest["globals_sha256"]


def test_names_that_no_database_can_hold_are_told(euc_jp: Database, tmp_path: Path) -> None:
    maintenance = euc_jp.cluster.maintenance
    others = ("postgres", "template1")
    for name in others:
        maintenance.run_sql(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
    try:
        url = euc_jp.uri.replace("admin@", "only_this@")
        given = settings(euc_jp, tmp_path) | {"DATABASE_URL": url}
        done = run_pgstash(["once"], environment(euc_jp.bin_dir, **given))
    finally:
        for name in others:
            maintenance.run_sql(f"GRANT CONNECT ON DATABASE {name} TO PUBLIC")
    assert done.returncode == 0, done.stderr
    assert "EUC_JP, lacks names of roles: 日本" in done.stderr
    assert "let the login connect to the database postgres" in done.stderr


def test_created_roles_get_their_settings(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source.run_sql(
        "ALTER ROLE reader SET search_path = shop, " + quoted('Odd, "one"') + ", '';"
        "ALTER ROLE reader SET work_mem = '7MB';"
        f"""ALTER ROLE {quoted(ODD)} SET "pgstash.own" = E'it''s\\n\\\\;'"""
    )
    asked = """
        SELECT rolname, setconfig FROM pg_db_role_setting JOIN pg_roles r ON r.oid = setrole
        WHERE setdatabase = 0 ORDER BY rolname
    """
    with source.connect() as session:
        wanted = session.execute(asked).fetchall()
    assert len(wanted) == 2
    back_up(source, tmp_path)
    target = make_database()
    done = restore(tmp_path, target, "--create-roles")
    assert done.returncode == 0, done.stderr
    with target.connect() as session:
        assert session.execute(asked).fetchall() == wanted
    assert "of created roles refused" not in done.stderr


def test_existing_roles_keep_their_settings_and_what_is_refused_is_reported(
    source: Database, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source.run_sql(
        "ALTER ROLE reader SET work_mem = '7MB'; ALTER ROLE by_mapping SET log_statement = 'all'"
    )
    back_up(source, tmp_path)
    target = make_database()
    maintenance = target.cluster.maintenance
    maintenance.run_sql("CREATE ROLE reader; CREATE ROLE maker LOGIN CREATEROLE")
    target.run_sql(f'ALTER DATABASE "{target.name}" OWNER TO maker')
    url = target.uri.replace("//admin@", "//maker@")
    try:
        done = restore(
            tmp_path, target, "--create-roles", "--skip-superuser-objects", RESTORE_URL=url
        )
        settings = target.run_sql("SELECT count(*) FROM pg_db_role_setting WHERE setdatabase = 0")
    finally:
        target.drop()
        maintenance.run_sql("DROP ROLE maker")
    assert "SUCCESS" in done.stdout, done.stderr
    assert "1 setting of created roles refused by the server: log_statement of" in done.stderr
    assert settings == "0\n"
