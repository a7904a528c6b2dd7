"""Passwords from a command, which expire: each login gets one of its own."""

from __future__ import annotations

import json
import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest

from support.backups import settings
from support.cli import environment, run_pgstash
from support.postgres import PASSWORD, Cluster, Database, temporary_database
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PRINTS = f"import sys; open(sys.argv[1], 'a').write('x'); print({PASSWORD!r})"


@pytest.fixture(scope="module")
def server(newest_cluster: Cluster) -> Iterator[Cluster]:
    """A server that requires a password, and logs each login."""
    with Cluster(
        newest_cluster.major, auth="scram-sha-256", settings={"log_connections": "on"}
    ) as cluster:
        yield cluster


def without_password(database: Database) -> str:
    return re.sub(r"(//[^:@]*):[^@]*@", r"\1@", database.uri)


def printing(calls: Path) -> str:
    """Return a command that prints the password, and records that it was called."""
    return shlex.join([sys.executable, "-c", PRINTS, str(calls)])


def logins(cluster: Cluster, database: str) -> int:
    return len(re.findall(rf"connection authorized: user=\S+ database={database}\b", cluster.log))


@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_each_login_asks_for_a_password(server: Cluster, tmp_path: Path, jobs: str) -> None:
    calls = tmp_path / "calls"
    with temporary_database(server, "mixed") as database:
        env = environment(
            database.bin_dir,
            **settings(database, tmp_path)
            | {"DATABASE_URL": without_password(database), "DUMP_JOBS": jobs, "LOG_LEVEL": "debug"},
            DATABASE_PASSWORD_COMMAND=printing(calls),
        )
        before = logins(server, database.name)
        done = run_pgstash(["once"], env)
        made = logins(server, database.name) - before
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    # pg_dumpall logs in to another database.
    assert made - 2 <= len(calls.read_text()) <= made + 2
    assert len(calls.read_text()) > 3


def test_every_command(server: Cluster, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    with temporary_database(server, "mixed") as database:
        url = without_password(database)
        env = environment(
            database.bin_dir,
            **settings(database, tmp_path) | {"DATABASE_URL": url, "RESTORE_URL": url},
            DATABASE_PASSWORD_COMMAND=printing(calls),
            RESTORE_PASSWORD_COMMAND=printing(calls),
        )
        create = ["restore", "--create", "by_command"]
        try:
            for arguments in (["check"], ["once"], ["healthcheck"], ["prune"], create):
                done = run_pgstash(arguments, env)
                assert done.returncode == 0, (arguments, done.stdout + done.stderr)
                assert PASSWORD not in done.stdout + done.stderr
            refused = run_pgstash(["once"], env | {"DATABASE_PASSWORD_COMMAND": "echo other"})
        finally:
            server.drop_database("by_command")
    assert refused.returncode == 11
    assert "the database refused the login" in refused.stderr


def test_a_password_in_the_url_takes_precedence(server: Cluster, tmp_path: Path) -> None:
    with temporary_database(server) as database:
        env = environment(
            database.bin_dir, **settings(database, tmp_path), DATABASE_PASSWORD_COMMAND="false"
        )
        assert run_pgstash(["once"], env).returncode == 0


def test_a_command_that_fails(server: Cluster, tmp_path: Path) -> None:
    with temporary_database(server) as database:
        env = environment(
            database.bin_dir,
            **settings(database, tmp_path) | {"DATABASE_URL": without_password(database)},
            DATABASE_PASSWORD_COMMAND="sh -c 'echo s3cret-half; echo token expired >&2; exit 4'",
        )
        done = run_pgstash(["once"], env)
    assert done.returncode == 11
    assert (
        "DATABASE_PASSWORD_COMMAND failed with exit status 4: token expired\n"
        "  Run the command by hand: it must print the password, and nothing else."
    ) in done.stderr
    assert "s3cret-half" not in done.stdout + done.stderr


def test_a_command_that_does_not_exist_is_a_wrong_setting(tmp_path: Path) -> None:
    env = environment(
        DATABASE_URL="postgresql://app@db/shop",
        STORAGE_URL=tmp_path.as_uri(),
        DATABASE_PASSWORD_COMMAND="no-such-program x",
        RESTORE_PASSWORD_COMMAND="'unclosed",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 1
    assert "DATABASE_PASSWORD_COMMAND" in done.stderr
    assert "RESTORE_PASSWORD_COMMAND" in done.stderr


def test_it_sees_no_secret_of_pgstash(server: Cluster, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    shows = f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w')); exit(1)"
    with temporary_database(server) as database:
        env = environment(
            **settings(database, tmp_path, encrypted=True)
            | {"DATABASE_URL": without_password(database)},
            AWS_SESSION_TOKEN="of-the-cloud",
            DATABASE_PASSWORD_COMMAND=shlex.join([sys.executable, "-c", shows]),
        )
        assert run_pgstash(["once"], env).returncode == 11
    found = json.loads(seen.read_text())
    assert found["AWS_SESSION_TOKEN"] == "of-the-cloud"
    assert "BACKUP_ENCRYPTION_KEY" not in found
    assert "DATABASE_URL" not in found
