"""Roles come back with their logins, if their passwords are wanted and stored encrypted."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from support import postgres
from support.backups import PASSPHRASE, StoredBackup, back_up, decrypted, settings, stored
from support.cli import TOOLS_ON_PATH_ALONE, environment, restore_to, run_pgstash
from support.postgres import (
    Cluster,
    Database,
    clean_environment,
    temporary_database,
)
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


TRIED = sorted({postgres.test_majors()[0], postgres.test_majors()[-1]})
PASSWORD = "planted password of app"
HASH = re.compile(r"SCRAM-SHA-256\$\d|md5[0-9a-f]{8}")
WANTED = {"GLOBALS_PASSWORDS": "true"}

# passwordcheck of the target refuses a password that is the name of its role, even as a hash.
ROLES = f"""
    CREATE ROLE team NOLOGIN;
    CREATE ROLE app LOGIN CONNECTION LIMIT 7 PASSWORD '{PASSWORD}' VALID UNTIL '2099-01-01';
    CREATE ROLE bare LOGIN;
    CREATE ROLE echo LOGIN PASSWORD 'echo';
    CREATE ROLE keeper LOGIN PASSWORD 'planted old password';
    CREATE ROLE granted LOGIN PASSWORD 'planted granted';
    CREATE ROLE plain LOGIN PASSWORD 'planted plain';
    CREATE ROLE reader LOGIN PASSWORD 'planted reading';
    GRANT pg_read_all_data TO reader;
    GRANT team TO app WITH ADMIN OPTION;
    SET password_encryption = md5;
    CREATE ROLE legacy LOGIN PASSWORD 'planted legacy';
"""
HASHES = "SELECT rolname, rolpassword FROM pg_authid WHERE rolpassword IS NOT NULL"


def as_role(database: Database, role: str, password: str) -> str:
    return database.uri.replace(database.uri.partition("@")[0], f"postgresql://{role}:{password}")


def hashes(cluster: Cluster) -> dict[str, str]:
    with cluster.maintenance.connect() as session:
        return dict(session.execute(HASHES).fetchall())


def logged_in(database: Database, role: str, password: str) -> bool:
    try:
        with psycopg.connect(as_role(database, role, password.replace(" ", "%20"))) as session:
            return session.execute("SELECT session_user").fetchone() == (role,)
    except psycopg.OperationalError:
        return False


@pytest.fixture(
    scope="module",
    params=later(TRIED, *TRIED[:-1]),
    ids=lambda major: f"pg{major}",
)
def origin(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A server that asks for passwords, with roles that have them."""
    with Cluster(request.param, auth="scram-sha-256") as cluster:
        cluster.maintenance.run_sql(ROLES)
        yield cluster


@pytest.fixture(scope="module")
def source(origin: Cluster) -> Iterator[Database]:
    with temporary_database(origin) as database:
        database.run_sql(
            "CREATE TABLE t AS SELECT 1 AS n; GRANT SELECT ON t TO granted, plain;"
            "GRANT SELECT ON pg_authid TO granted"
        )
        yield database


@pytest.fixture(scope="module")
def other(origin: Cluster) -> Iterator[Cluster]:
    """Another server, whose log would show everything."""
    telling = {
        "log_statement": "all",
        "log_min_duration_statement": "0",
        "shared_preload_libraries": "passwordcheck",
    }
    with Cluster(origin.major, auth="scram-sha-256", settings=telling) as cluster:
        yield cluster


@pytest.fixture
def target(other: Cluster) -> Iterator[Database]:
    """An empty database of a server that has one of the roles."""
    with temporary_database(other) as database:
        database.run_sql("CREATE ROLE keeper LOGIN PASSWORD 'planted new password'")
        yield database
    made = other.maintenance.run_sql("SELECT rolname FROM pg_roles WHERE rolname !~ '^(pg_|admin)'")
    # In one statement: one of them may have made others members.
    other.maintenance.run_sql(f"DROP ROLE {', '.join(made.split())}")


@pytest.fixture(scope="module")
def backup(source: Database, tmp_path_factory: pytest.TempPathFactory) -> StoredBackup:
    return back_up(
        source, tmp_path_factory.mktemp("backups"), encrypted=True, GLOBALS_PASSWORDS="true"
    )


def roles_file(backup: StoredBackup) -> Path:
    [found] = backup.archive.parent.glob("backup_*.globals.gz*")
    return found


def roles_script(backup: StoredBackup) -> str:
    packed = roles_file(backup).read_bytes()
    return gzip.decompress(decrypted(packed) if backup.encrypted else packed).decode()


def restore(
    backup: StoredBackup, target: Database, url: str = "", **more: str
) -> subprocess.CompletedProcess[str]:
    env = environment(
        target.bin_dir,
        STORAGE_URL=backup.archive.parent.parent.as_uri(),
        RESTORE_URL=url or target.uri,
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        DEBUG="true",
        **more,
    )
    done = run_pgstash(
        restore_to(env, "--create-roles"),
        env,
        cwd=backup.archive.parent.parent,  # of a file for an administrator, if there is one
        statements=TOOLS_ON_PATH_ALONE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not HASH.search(done.stdout + done.stderr)
    return done


def once(database: Database, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    env = environment(
        database.bin_dir,
        DEBUG="true",
        **(settings(database, folder, encrypted=True) | WANTED | more),
    )
    return run_pgstash(["once"], env, statements=TOOLS_ON_PATH_ALONE)


def test_they_are_stored_encrypted_alone(backup: StoredBackup, origin: Cluster) -> None:
    assert backup.manifest["globals_passwords"] is True
    script = roles_script(backup)
    assert set(hashes(origin)) >= {"app", "legacy", "admin"}
    for found in hashes(origin).values():
        assert f"PASSWORD '{found}'" in script
    for file in backup.archive.parent.rglob("*"):
        assert not HASH.search(file.read_bytes().decode("latin-1")), file
    for arguments in (["list", "--json"], ["show"], ["show", "--json"]):
        env = environment(
            origin.bin_dir,
            STORAGE_URL=backup.archive.parent.parent.as_uri(),
            BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        )
        done = run_pgstash(arguments, env)
        assert done.returncode == 0, done.stderr
        assert not HASH.search(done.stdout + done.stderr)
        assert ("passwords   stored with the roles" in done.stdout) is (arguments == ["show"])


def test_roles_come_back_with_their_logins(
    backup: StoredBackup, origin: Cluster, target: Database
) -> None:
    before = hashes(target.cluster)
    written = len(target.cluster.log)
    done = restore(backup, target)
    assert "Created the role app, with its login and password" in done.stdout
    assert "Created the role bare, without login" in done.stdout
    after = hashes(target.cluster)
    for role in ("app", "legacy", "granted", "plain", "reader"):
        assert after[role] == hashes(origin)[role]
    assert after["keeper"] == before["keeper"] != hashes(origin)["keeper"]
    assert logged_in(target, "app", PASSWORD)
    assert not logged_in(target, "app", "another password")
    assert not logged_in(target, "bare", "")
    query = "SELECT rolconnlimit, rolvaliduntil::date, rolsuper FROM pg_roles WHERE rolname = 'app'"
    assert target.run_sql(query) == "7|2099-01-01|f\n"
    query = (
        "SELECT member::regrole, admin_option FROM pg_auth_members WHERE roleid = 'team'::regrole"
    )
    assert "app|t\n" in target.run_sql(query)
    # A role that was there before would give a new one its privileges.
    assert 'If they are wanted: GRANT "pg_read_all_data" TO "reader"' in done.stderr
    assert (
        target.run_sql("SELECT count(*) FROM pg_auth_members WHERE member = 'reader'::regrole")
        == "0\n"
    )
    # One is refused: it stays without login, and neither log shows the statement.
    assert "The role echo was created, but not given its password: password must not" in done.stderr
    assert "2 created roles cannot log in with a password until they get one: bare, echo\n" in (
        done.stderr
    )
    assert r'ALTER ROLE "bare" LOGIN; and then \password "bare"' in done.stderr
    log = target.cluster.log[written:]
    assert 'CREATE ROLE "app" NOLOGIN' not in log
    assert "password must not" in log
    assert not HASH.search(log)


def test_a_login_that_may_only_create_roles(backup: StoredBackup, target: Database) -> None:
    target.run_sql("CREATE ROLE humble LOGIN CREATEROLE PASSWORD 'planted modest'")
    target.run_sql(
        f"ALTER DATABASE {target.name} OWNER TO humble; ALTER SCHEMA public OWNER TO humble"
    )
    done = restore(backup, target, as_role(target, "humble", "planted%20modest"))
    assert "Created the role app, with its login and password" in done.stdout
    assert logged_in(target, "app", PASSWORD)


def test_a_drill_gives_no_login(backup: StoredBackup, target: Database) -> None:
    env = environment(
        target.bin_dir,
        STORAGE_URL=backup.archive.parent.parent.as_uri(),
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        VERIFY_DATABASE_URL=target.cluster.maintenance.uri,
    )
    done = run_pgstash(["drill"], env, statements=TOOLS_ON_PATH_ALONE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Created the role app, without login" in done.stdout
    assert "cannot log in" not in done.stderr
    assert "app" not in hashes(target.cluster)


@pytest.mark.parametrize(("role", "word"), [("granted", "granted"), ("reader", "reading")])
def test_a_role_that_may_read_the_catalog(
    source: Database, tmp_path: Path, role: str, word: str
) -> None:
    url = as_role(source, role, f"planted%20{word}")
    done = once(source, tmp_path, DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pg_authid" not in done.stderr
    [backup] = stored(tmp_path)
    assert backup.manifest["globals_passwords"] is True
    for found in hashes(source.cluster).values():
        assert f"PASSWORD '{found}'" in roles_script(backup)
    assert "ok" in checked(source, tmp_path, url)


def test_a_role_that_may_not_read_it(source: Database, target: Database, tmp_path: Path) -> None:
    url = as_role(source, "plain", "planted%20plain")
    shown = checked(source, tmp_path, url)
    assert "warning" in shown
    done = once(source, tmp_path, DATABASE_URL=url)
    assert done.returncode == 0, done.stdout + done.stderr
    warned = "WARNING the role plain may not read pg_authid, so passwords of roles are not stored"
    assert warned in done.stderr
    remedy = f"run in the database {source.name}: GRANT SELECT ON pg_catalog.pg_authid TO plain;"
    assert remedy in done.stderr
    [backup] = stored(tmp_path)
    assert backup.manifest["globals_passwords"] is False
    script = roles_script(backup)
    assert "CREATE ROLE app;" in script
    assert "PASSWORD" not in script
    done = restore(backup, target)
    assert "Created the role app, without login" in done.stdout
    names = "app, bare, echo, granted, legacy, plain, reader"
    assert f"7 created roles cannot log in with a password until they get one: {names}\n" in (
        done.stderr
    )
    assert not logged_in(target, "app", PASSWORD)


def checked(source: Database, folder: Path, url: str) -> str:
    """Return what a check says of passwords; the remedy is in it if there is a problem."""
    values = settings(source, folder, encrypted=True) | WANTED | {"DATABASE_URL": url}
    done = run_pgstash(["check", "database"], environment(source.bin_dir, **values))
    [found] = [line for line in done.stdout.splitlines() if "role passwords" in line]
    if "warning" in found:
        assert "GRANT SELECT ON pg_catalog.pg_authid TO plain;" in done.stdout
    return found


def test_none_without_encryption(source: Database, tmp_path: Path) -> None:
    values = settings(source, tmp_path) | {"GLOBALS_PASSWORDS": "true", "LOCK_TIMEOUT": "0"}
    for command in ("once", "check"):
        done = run_pgstash([command], environment(source.bin_dir, **values))
        assert done.returncode == 1
        assert "GLOBALS_PASSWORDS is true, but BACKUP_ENCRYPTION is not" in done.stderr
        assert "LOCK_TIMEOUT must be" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_error_of_pg_dumpall_shows_them(source: Database, tmp_path: Path) -> None:
    tools, folder = tmp_path / "bin", tmp_path / "backups"
    folder.mkdir()
    shutil.copytree(source.bin_dir, tools, symlinks=True)
    (tools / "pg_dumpall").unlink()
    (tools / "pg_dumpall").write_text(
        f'#!/bin/sh\n"{source.bin_dir}/pg_dumpall" "$@" | grep "ALTER ROLE" >&2\nexit 1\n'
    )
    (tools / "pg_dumpall").chmod(0o755)
    values = settings(source, folder, encrypted=True) | WANTED
    libraries = {"LD_LIBRARY_PATH": str(source.bin_dir.parent / "lib")}
    env = environment(tools, DEBUG="true", **values, **libraries)
    done = run_pgstash(["once"], env, statements=TOOLS_ON_PATH_ALONE)
    assert done.returncode == 0, done.stderr
    assert "The roles of the server are not stored with the backup" in done.stderr
    assert "PASSWORD '***'" in done.stderr
    assert not HASH.search(done.stdout + done.stderr)
    [backup] = stored(folder)
    assert backup.manifest["globals_passwords"] is False


def test_a_login_that_somebody_put_there(
    source: Database, target: Database, tmp_path: Path
) -> None:
    """Whoever can write to the store could, if nothing is encrypted."""
    backup = back_up(source, tmp_path)
    planted = "md5" + hashlib.md5(b"planted" + b"app", usedforsecurity=False).hexdigest()
    script = re.sub(
        r"(ALTER ROLE app WITH .*? CONNECTION LIMIT 7)",
        rf"\1 PASSWORD '{planted}'",
        roles_script(backup),
    )
    assert planted in script
    roles_file(backup).write_bytes(gzip.compress(script.encode()))
    manifest = backup.manifest | {
        "globals_passwords": True,
        "globals_sha256": hashlib.sha256(script.encode()).hexdigest(),
    }
    backup.manifest_file.write_bytes(gzip.compress(json.dumps(manifest).encode()))
    done = restore(backup, target)
    assert "Created the role app, without login" in done.stdout
    assert "app" not in hashes(target.cluster)


def test_by_hand(backup: StoredBackup, origin: Cluster) -> None:
    with Cluster(origin.major, auth="scram-sha-256") as server:
        target = server.maintenance
        pipe = (
            "openssl enc -d -aes-256-cbc -pbkdf2 -pass env:BACKUP_ENCRYPTION_KEY "
            '-in "$GLOBALS" | gunzip | psql -X -q -d "$TARGET"'
        )
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", pipe],
            env=clean_environment(target.bin_dir)
            | {
                "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
                "GLOBALS": str(roles_file(backup)),
                "TARGET": target.conninfo,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert 'role "admin" already exists' in done.stderr
        assert hashes(server) == hashes(origin)
        assert logged_in(target, "app", PASSWORD)
        query = (
            "SELECT roleid::regrole, member::regrole, admin_option FROM pg_auth_members"
            " WHERE roleid = 'team'::regrole AND member = 'app'::regrole"
        )
        assert target.run_sql(query) == "team|app|t\n"
