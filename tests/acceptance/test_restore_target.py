"""A restore writes only to the database that the backup is of, or that was named for it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from support.backups import back_up
from support.cli import COMMAND, environment, restore_to, run_pgstash
from support.pgbouncer import PgBouncer
from support.postgres import Database
from support.stored import CLOSING, DATABASE, make
from support.tiers import later

if TYPE_CHECKING:
    from pathlib import Path

    from support.postgres import Cluster, Clusters, MakeDatabase

SCRIPT = b"CREATE TABLE public.orders (id int);\n" + CLOSING
ELSEWHERE = "postgresql://admin:Secret1@127.0.0.1:1"
"""Where nobody listens: whoever contacts it ends with status 10."""


def stored(folder: Path, of: str = "shop", script: bytes = SCRIPT) -> None:
    make(script, database=replace(DATABASE, name=of)).store_as_backup(folder)


def restore(
    folder: Path, url: str, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Restore by RESTORE_URL, and by nothing else unless the arguments say so."""
    env = environment(STORAGE_URL=folder.as_uri(), RESTORE_URL=url, **more)
    return run_pgstash(["restore", *arguments], env)


def tables(target: Database) -> str:
    return target.run_sql(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str) -> list[str]:
    """The target is refused with these words; return the options that the message offers."""
    assert done.returncode == 57, done.stdout + done.stderr
    assert "FAILURE Restore failed after " in done.stderr
    assert ", and nothing was changed in the target: " in done.stderr
    assert "a password in RESTORE_URL still applies:\n" in done.stderr
    assert [word for word in words if word not in done.stderr] == [], done.stderr
    assert "Secret1" not in done.stdout + done.stderr
    assert "SUCCESS" not in done.stdout
    return re.findall(r"^  (--.+) for an? \w+ database$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("database", "offered"),
    [
        ("postgres", ["--create shop", "--to postgresql://admin@127.0.0.1:1/shop"]),
        ("template0", ["--create shop", "--to postgresql://admin@127.0.0.1:1/shop"]),
        ("template1", ["--create shop", "--to postgresql://admin@127.0.0.1:1/shop"]),
        (
            "staging",
            [
                "--create shop",
                "--to postgresql://admin@127.0.0.1:1/shop",
                "--to postgresql://admin@127.0.0.1:1/staging",
            ],
        ),
        (
            "Shop",
            [
                "--create shop",
                "--to postgresql://admin@127.0.0.1:1/shop",
                "--to postgresql://admin@127.0.0.1:1/Shop",
            ],
        ),
    ],
)
def test_another_database_is_refused(database: str, offered: list[str], tmp_path: Path) -> None:
    """Before the server is contacted; both names and what to write instead are shown."""
    stored(tmp_path)
    done = restore(tmp_path, f"{ELSEWHERE}/{database}")
    leads_to = f"RESTORE_URL leads to the database {database} on 127.0.0.1:1"
    assert assert_refused(done, leads_to, "the backup is of the database shop") == offered


@pytest.mark.parametrize(
    ("arguments", "create"),
    [
        ("--dry-run", True),
        ("--table orders", True),
        ("--table orders --data-only", False),
        ("--overwrite", False),
        ("--create-roles", True),
        ("backup_20260131_020000", True),
    ],
)
def test_whatever_else_is_asked_for(arguments: str, tmp_path: Path, *, create: bool) -> None:
    """A new database is offered only to a restore that may go into one."""
    stored(tmp_path)
    offered = assert_refused(restore(tmp_path, f"{ELSEWHERE}/postgres", *arguments.split()))
    assert ("--create shop" in offered) == create
    assert "--to postgresql://admin@127.0.0.1:1/shop" in offered


def test_names_are_quoted_for_the_shell(tmp_path: Path) -> None:
    stored(tmp_path, of="my 'shop'/ü; ls")
    done = restore(tmp_path, f"{ELSEWHERE}/postgres")
    create, to = map(shlex.split, assert_refused(done, "the database my 'shop'/ü; ls"))
    assert create == ["--create", "my 'shop'/ü; ls"]
    assert to == ["--to", "postgresql://admin@127.0.0.1:1/my%20%27shop%27%2F%C3%BC%3B%20ls"]


def test_nothing_of_the_archive_is_read(tmp_path: Path) -> None:
    stored(tmp_path)
    [archive] = (tmp_path / "postgres-backups").glob("*.sql.gz")
    archive.write_bytes(bytes(archive.stat().st_size))
    assert_refused(restore(tmp_path, f"{ELSEWHERE}/postgres"))
    assert restore(tmp_path, f"{ELSEWHERE}/postgres", "--create", "shop").returncode == 31


def test_its_own_database_needs_no_option(make_database: MakeDatabase, tmp_path: Path) -> None:
    target = make_database()
    stored(tmp_path, of=target.name)
    done = restore(tmp_path, target.uri, PATH=str(target.bin_dir))
    assert (done.returncode, done.stderr) == (0, "")
    assert tables(target) == "orders\n"


def test_a_database_for_maintenance_that_the_backup_is_of(
    newest_cluster: Cluster, tmp_path: Path
) -> None:
    """At some hosts the only database is called postgres: even then it has to be named."""
    maintenance = newest_cluster.maintenance
    stored(tmp_path, of="postgres")
    path = {"PATH": str(maintenance.bin_dir)}
    refused = restore(tmp_path, maintenance.uri, **path)
    offered = assert_refused(refused, "which is for maintenance", "a database with that name")
    assert offered == ["--create NAME", f"--to {maintenance.uri}"]
    done = restore(tmp_path, maintenance.uri, *offered[1].split(), "--dry-run", **path)
    assert done.returncode == 0, done.stderr
    assert tables(maintenance) == ""


def test_a_backup_that_does_not_name_its_database(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Any target must be named for it, even one that has the name of the source."""
    target = make_database()
    stored(tmp_path, of=target.name)
    [manifest] = (tmp_path / "postgres-backups").glob("*.manifest.json.gz")
    manifest.unlink()
    [archive] = (tmp_path / "postgres-backups").glob("*.sql.gz")
    env = environment(target.bin_dir, STORAGE_URL=tmp_path.as_uri(), RESTORE_URL=target.uri)
    for backup in ("latest", str(archive), "-"):
        given = [backup, "--unverified"]
        done = run_pgstash(["restore", *given], env)
        offered = assert_refused(done, "and the backup does not record which database it is of")
        assert offered == ["--create NAME", f"--to {target.uri}"]
    env["RESTORE_URL"] = target.cluster.maintenance.uri
    done = run_pgstash(["restore", "--unverified"], env)
    assert assert_refused(done)[1].endswith("/NAME")
    assert tables(target) == ""
    env["RESTORE_URL"] = target.uri
    done = run_pgstash(restore_to(env, "--unverified"), env)
    assert done.returncode == 0, done.stderr
    assert tables(target) == "orders\n"


def test_what_the_message_offers_works(clusters: Clusters, tmp_path: Path) -> None:
    """As it is written, without a password: RESTORE_URL has that."""
    cluster = clusters.get(18, "scram-sha-256")
    assert cluster.password
    stored(tmp_path, of="offered")
    setting = cluster.maintenance.uri + "?connect_timeout=7"
    path = {"PATH": str(cluster.maintenance.bin_dir)}
    create, to = assert_refused(restore(tmp_path, setting, **path))
    assert cluster.password not in create + to
    for option in (create, to):
        done = restore(tmp_path, setting, *shlex.split(option), **path)
        try:
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
            assert tables(Database(cluster, "offered")) == "orders\n"
        finally:
            cluster.drop_database("offered")
        if option == create:
            cluster.create_database("offered")
    # The password goes to no other login.
    for other in (to.replace("127.0.0.1", "localhost"), to.replace("//", "//not_")):
        done = restore(tmp_path, setting, *shlex.split(other), **path)
        assert done.returncode == 11, done.stderr
        assert "No password was given" in done.stderr


def test_a_name_of_a_pooler_for_another_database(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """The URL has the right name, which leads to the wrong database."""
    target = make_database()
    stored(tmp_path)
    alias = Database(target.cluster, "shop")
    with PgBouncer(target.cluster, "session", aliases={"shop": target.name}) as kept:
        path = {"PATH": str(target.bin_dir)}
        done = restore(tmp_path, kept.uri(alias), **path)
        assert_refused(done, f"RESTORE_URL leads to the database {target.name} on 127.0.0.1:")
        assert tables(target) == ""
        done = restore(tmp_path, kept.uri(alias), "--to", kept.uri(alias), **path)
        assert done.returncode == 0, done.stderr
    assert tables(target) == "orders\n"


FIRST = {
    "own": ([], "database shop on 127.0.0.1:1"),
    "dry run": (["--dry-run"], "database shop on 127.0.0.1:1"),
    "create": (["--create", "new"], "new database new on 127.0.0.1:1"),
    "to": (["--to", "postgresql://[::1]/other"], "database other on [::1]:5432"),
    "file": (["./no/such/file"], "database shop on 127.0.0.1:1"),
    "no backup": (["backup_20200101_000000"], "database shop on 127.0.0.1:1"),
    "several hosts": (
        ["--to", "postgresql://u:Secret1@a.invalid,b.invalid:6/shop"],
        "database shop on a.invalid:5432,b.invalid:6",
    ),
    "socket": (["--to", "postgresql:///shop?host=/no/where"], "database shop on /no/where:5432"),
    "service": (["--to", "postgresql:///shop?service=none"], "database shop on the service none"),
}


@pytest.mark.parametrize("layout", later(["text", "json"], "json"))
@pytest.mark.parametrize("which", later(FIRST, "dry run", "file", "socket", "service"))
def test_the_first_line_names_the_target(which: str, layout: str, tmp_path: Path) -> None:
    """Before any warning, and whatever becomes of the restore."""
    arguments, target = FIRST[which]
    stored(tmp_path)
    env = environment(
        STORAGE_URL=tmp_path.as_uri(),
        RESTORE_URL=f"{ELSEWHERE}/shop",
        LOG_FORMAT=layout,
        BACKUP_CRON="@daily",
    )
    done = subprocess.run(
        [COMMAND, "restore", *arguments],
        env=env,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode in (10, 24, 25), done.stdout
    first, second, *_ = done.stdout.splitlines()
    if layout == "json":
        assert json.loads(first)["message"] == f"Target: {target}"
        assert json.loads(first)["level"] == "INFO"
    else:
        assert first.endswith(f" INFO Target: {target}")
    assert "BACKUP_CRON" in second
    assert "Secret1" not in done.stdout


def test_an_empty_option_is_refused(tmp_path: Path) -> None:
    """It comes from a variable of the shell that is not set, and must not mean RESTORE_URL."""
    stored(tmp_path)
    for empty in ("", " "):
        done = restore(tmp_path, f"{ELSEWHERE}/shop", "--to", empty)
        assert done.returncode == 2
        assert "--to" in done.stderr
        assert "is empty" in done.stderr


@pytest.mark.newest_first
def test_a_drill_loads_nothing_into_the_database_that_it_connects_to(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Not even into one that has the name of the source, and not for a moment."""
    source, scratch = make_database("mixed", on=cluster), make_database(on=cluster)
    back_up(source, tmp_path)
    with ExitStack() as stack:
        scratch.run_sql(
            "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE 'somebody changes the database of VERIFY_DATABASE_URL'; END $$;"
            "CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION no()"
        )
        stack.callback(scratch.run_sql, "DROP EVENT TRIGGER no")
        env = environment(
            scratch.bin_dir, STORAGE_URL=tmp_path.as_uri(), VERIFY_DATABASE_URL=scratch.uri
        )
        done = run_pgstash(["drill"], env)
        assert done.returncode == 0, done.stderr
    assert tables(scratch) == ""


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_too_little_room_on_the_disk_is_reported_before_the_restore(
    make_database: MakeDatabase, tmp_path: Path, arguments: list[str]
) -> None:
    target = make_database()
    make(SCRIPT, database=replace(DATABASE, name=target.name, bytes=10**18)).store_as_backup(
        tmp_path
    )
    by_socket = f"{target.uri}?host={target.cluster.folder}"
    path = environment(target.bin_dir)["PATH"]
    done = restore(tmp_path, by_socket, *arguments, PATH=path)
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"WARNING The disk of the target has [0-9.]+ GB free, and the source took 1000000000\.0 GB",
        done.stderr,
    )


def test_the_room_on_another_machine_is_unknown(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    target = make_database()
    make(SCRIPT, database=replace(DATABASE, name=target.name, bytes=10**18)).store_as_backup(
        tmp_path
    )
    path = environment(target.bin_dir)["PATH"]
    done = restore(tmp_path, target.uri, "--dry-run", PATH=path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_dry_run_finds_that_the_role_may_not_create_the_database(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    target = make_database()
    stored(tmp_path)
    target.run_sql('CREATE ROLE "no maker" LOGIN')
    try:
        url = target.uri.replace("//admin@", "//no%20maker@")
        path = environment(target.bin_dir)["PATH"]
        done = restore(tmp_path, url, "--create", "shop", "--dry-run", PATH=path)
    finally:
        target.run_sql('DROP ROLE "no maker"')
    assert done.returncode == 61
    assert 'the role "no maker" may not create databases' in done.stderr
    assert 'ALTER ROLE "no maker" CREATEDB; or restore into' in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_a_locale_that_the_server_lacks_is_found_before_anything_is_created(
    make_database: MakeDatabase, tmp_path: Path, arguments: list[str]
) -> None:
    target = make_database()
    lacking = replace(DATABASE, collate="xx_YY.UTF-8", ctype="xx_YY.UTF-8")
    make(SCRIPT, database=lacking).store_as_backup(tmp_path)
    path = environment(target.bin_dir)["PATH"]
    done = restore(tmp_path, target.uri, "--create", "shop", *arguments, PATH=path)
    assert done.returncode == 61
    assert ", and nothing was changed in the target: " in done.stderr
    assert 'cannot create the database shop: could not create locale "xx_YY.UTF-8"' in done.stderr
    assert "create the database yourself with a locale that it has" in done.stderr


def test_a_role_that_may_not_try_a_locale_finds_it_out_later(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    target = make_database()
    lacking = replace(DATABASE, collate="xx_YY.UTF-8", ctype="xx_YY.UTF-8")
    make(SCRIPT, database=lacking).store_as_backup(tmp_path)
    target.run_sql("CREATE ROLE maker_only LOGIN CREATEDB")
    target.run_sql(f'REVOKE TEMPORARY ON DATABASE "{target.name}" FROM PUBLIC')
    path = environment(target.bin_dir)["PATH"]
    url = target.uri.replace("//admin@", "//maker_only@")
    try:
        tried = restore(tmp_path, url, "--create", "shop", "--dry-run", PATH=path)
        done = restore(tmp_path, url, "--create", "shop", PATH=path)
    finally:
        target.run_sql("DROP ROLE maker_only")
    assert (tried.returncode, tried.stderr) == (0, "")
    assert done.returncode == 61
