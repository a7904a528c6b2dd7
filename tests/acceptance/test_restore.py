"""A backup restored by pgstash is the database again, or the target is as it was."""

from __future__ import annotations

import re
import select
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgstash.format.manifest import Table
from support import databases, pieces
from support.backups import PASSPHRASE, back_up
from support.cli import COMMAND, environment, restore_to, run_pgstash, started_pgstash
from support.compare import compare
from support.pieces import PATIENCE
from support.postgres import Cluster, Database, beside_publications
from support.stored import CLOSING, DATABASE, make
from support.tiers import ENCRYPTED_FIRST, later

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import MakeDatabase


def restore(
    folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """Restore into this target, with a passphrase whether it is wanted or not."""
    env = environment(
        target.bin_dir,
        **{
            "STORAGE_URL": folder.as_uri(),
            "RESTORE_URL": target.uri,
            "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        }
        | more,
    )
    return run_pgstash(restore_to(env, *arguments), env)


def assert_same(source: Database, target: Database) -> None:
    assert compare(source.conninfo, target.conninfo, bin_dir=target.bin_dir) == []


def objects(target: Database) -> str:
    """Return what a dump of the target holds beside comments and settings."""
    lines = target.plain_dump("--no-owner").decode(errors="replace").splitlines()
    return "\n".join(line for line in lines if not re.match(r"--|SET |SELECT pg_c|\\|$", line))


def assert_failed(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """The restore failed with this status, and says these words and a hint."""
    assert done.returncode == status, done.stdout + done.stderr
    message = re.search(r"FAILURE Restore failed after [\d.]+s, and (.+)", done.stderr, re.DOTALL)
    assert message, done.stderr
    assert message[1].startswith("nothing was changed in the target: "), done.stderr
    assert [word for word in words if word not in message[1]] == [], done.stderr
    assert "\n  " in message[1]
    assert "SUCCESS" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def drop_later(cluster: Cluster) -> Iterator[list[str]]:
    names: list[str] = []
    yield names
    for name in names:
        cluster.drop_database(name)


def empty(cluster: Cluster, sample: str, source: Database) -> Database:
    """Return an empty database of the sample's encoding."""
    return cluster.create_database(f"into_{source.name}", encoding=databases.encoding(sample))


# What pg_dump's own script cannot carry into an empty database, with its drops, pgstash can.
SAMPLES = (*databases.ROUND_TRIPPING, "breaks_under_clean")

# tests/integration/test_parallel_round_trip.py restores them all into new databases.
NEW_LATER = later(
    SAMPLES,
    *(
        "breaks_under_clean",
        "bytea_all",
        "empty",
        "euc_jp",
        "large_objects",
        "latin1",
        "nasty_text",
    ),
    "structure",
)
EMPTY_LATER = later(
    SAMPLES,
    *("bytea_all", "empty", "euc_jp", "latin1", "mixed", "nasty_text", "sql_ascii", "structure"),
    "breaks_under_clean",
)


@pytest.mark.newest_first
@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
@pytest.mark.parametrize("sample", EMPTY_LATER)
def test_into_an_empty_database(
    sample: str,
    cluster: Cluster,
    make_database: MakeDatabase,
    drop_later: list[str],
    tmp_path: Path,
    *,
    encrypted: bool,
) -> None:
    source = make_database(sample, on=cluster)
    back_up(source, tmp_path, encrypted=encrypted)
    target = empty(cluster, sample, source)
    drop_later.append(target.name)
    done = restore(tmp_path, target)
    assert (done.returncode, beside_publications(done.stderr)) == (0, [])
    assert "SUCCESS Restore completed successfully in " in done.stdout
    assert "verified)" in done.stdout
    assert_same(source, target)


NEW = 'a "new" database: ü'


@pytest.mark.newest_first
@pytest.mark.parametrize("sample", NEW_LATER)
def test_into_a_new_database(
    sample: str,
    cluster: Cluster,
    make_database: MakeDatabase,
    drop_later: list[str],
    tmp_path: Path,
) -> None:
    source = make_database(sample, on=cluster)
    settings = (
        'search_path TO "$user", \'odd, "schema"\', public',
        "my.setting TO '{\"it''s\": 1}'",
        "default_transaction_read_only TO on",
    )
    for setting in settings:
        source.run_sql(f'ALTER DATABASE "{source.name}" SET {setting}')
    back_up(source, tmp_path, encrypted=True)
    done = restore(tmp_path, cluster.maintenance, "--create", NEW)
    drop_later.append(NEW)
    assert (done.returncode, done.stderr) == (0, "")
    made = Database(cluster, NEW)
    assert_same(source, made)
    ask = (
        "SELECT datcollate, datctype, encoding, setconfig FROM pg_database d"
        " JOIN pg_db_role_setting ON setdatabase = d.oid WHERE datname = %s"
    )
    with cluster.maintenance.connect() as session:
        before, after = (session.execute(ask, [name]).fetchall() for name in (source.name, NEW))
        assert before == after != []
        left = session.execute("SELECT datname FROM pg_database WHERE datname ~ '_pgstash_'")
        assert left.fetchall() == []


def test_into_its_own_database_the_drops_are_run(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Over itself the script works as pg_dump means it: what is there goes first."""
    source = make_database("mixed")
    back_up(source, tmp_path)
    before = objects(source)
    source.run_sql("CREATE TABLE mine (id integer); UPDATE texts SET plain = 'changed'")
    done = restore(tmp_path, source, "--overwrite")
    assert done.returncode == 0, done.stderr
    source.run_sql("DROP TABLE mine")
    assert objects(source) == before


def test_a_target_that_is_not_empty_is_refused(make_database: MakeDatabase, tmp_path: Path) -> None:
    source, target = make_database("mixed"), make_database()
    back_up(source, tmp_path)
    target.run_sql("CREATE TABLE mine (a int); INSERT INTO mine VALUES (1)")
    before = objects(target)
    assert_failed(
        restore(tmp_path, target),
        60,
        "is not empty: it holds 1 object (table public.mine)",
        "--overwrite",
        "--create",
    )
    assert objects(target) == before
    done = restore(tmp_path, target, "--overwrite")
    assert (done.returncode, done.stderr) == (0, "")
    target.run_sql("DROP TABLE mine")
    assert_same(source, target)
    again = restore(tmp_path, target, "--overwrite")
    assert (again.returncode, again.stderr) == (0, "")
    assert_same(source, target)


@pytest.mark.newest_first
def test_a_wait_for_somebody_who_locks_what_is_replaced_is_told(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database(on=cluster)
    source.run_sql("CREATE TABLE held (id int)")
    back_up(source, tmp_path)
    env = environment(source.bin_dir, STORAGE_URL=tmp_path.as_uri(), RESTORE_URL=source.uri)
    sooner = "from pgstash.postgres.server import lock_waits; lock_waits._SECONDS_OF_SILENCE = 1.0"
    with source.connect() as holder:
        blocker = f"process {holder.info.backend_pid} (the holder, idle in transaction)"
        holder.execute("BEGIN; SET LOCAL application_name = 'the holder'; SELECT FROM held")
        statements = pieces.statements(sooner)
        with started_pgstash(["restore", "--overwrite"], env, statements=statements) as process:
            assert process.stderr
            assert select.select([process.stderr], [], [], PATIENCE)[0], "nothing is told"
            said = process.stderr.readline()
            holder.execute("ROLLBACK")
            out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, ""), out
    expected = f"WARNING The restore waits for a lock on public.held, which {blocker} blocks\n"
    assert said.endswith(expected)


@pytest.mark.newest_first
def test_what_extensions_made_does_not_count(
    cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    make(CLOSING).store_as_backup(tmp_path)
    target = make_database(on=cluster)
    target.run_sql("CREATE EXTENSION hstore; CREATE EXTENSION pg_stat_statements")
    done = restore(tmp_path, target)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_statement_that_the_target_refuses(make_database: MakeDatabase, tmp_path: Path) -> None:
    target = make_database()
    script = b"CREATE TABLE a (x int);\nCREATE TABLE b (\n  y missing_type\n);\n" + CLOSING
    make(script).store_as_backup(tmp_path)
    done = restore(tmp_path, target)
    # Four lines of ours come before.
    assert_failed(done, 62, 'type "missing_type" does not exist', "STATEMENT: CREATE TABLE b (")
    assert objects(target) == ""
    created = restore(tmp_path, target, "--create", "never_made")
    assert_failed(created, 62, "missing_type")
    assert "never_made" not in target.run_sql("SELECT datname FROM pg_database")


def test_a_role_that_the_target_lacks(make_database: MakeDatabase, tmp_path: Path) -> None:
    target = make_database()
    make(b"CREATE TABLE a ();\nALTER TABLE a OWNER TO nobody_here;\n" + CLOSING).store_as_backup(
        tmp_path
    )
    assert_failed(restore(tmp_path, target), 62, "nobody_here", "Create the role first")
    assert objects(target) == ""


def test_a_password_in_a_statement_is_not_told(make_database: MakeDatabase, tmp_path: Path) -> None:
    script = (
        b"CREATE USER MAPPING FOR CURRENT_USER SERVER missing"
        b" OPTIONS (user 'u', password 'hunter2hunter2');\n"
    )
    make(script + CLOSING).store_as_backup(tmp_path)
    done = restore(tmp_path, make_database())
    assert_failed(done, 62, "missing", "CREATE USER MAPPING")
    assert "hunter2" not in done.stderr + done.stdout


def test_a_new_database_that_cannot_be(make_database: MakeDatabase, tmp_path: Path) -> None:
    target = make_database()
    make(CLOSING).store_as_backup(tmp_path)
    assert_failed(restore(tmp_path, target, "--create", "postgres"), 61, "postgres already")
    assert_failed(restore(tmp_path, target, "--create", "ä" * 32), 61, "63 bytes")
    assert_failed(restore(tmp_path, target, "--create", ""), 61, "cannot be the name")
    elsewhere = replace(DATABASE, collate="xx_XX.UTF-8", ctype="xx_XX.UTF-8")
    make(CLOSING, base="backup_20260301_000000", database=elsewhere).store_as_backup(tmp_path)
    assert_failed(
        restore(tmp_path, target, "--create", "new"), 61, "xx_XX.UTF-8", "without --create"
    )
    done = restore(tmp_path, target)
    assert done.returncode == 0, done.stderr


def test_a_dry_run_touches_nothing(make_database: MakeDatabase, tmp_path: Path) -> None:
    source, target = make_database("mixed"), make_database()
    backup = back_up(source, tmp_path, encrypted=True)
    for arguments, where in (
        ([], f"the database {target.name}"),
        (["--create", "new"], "a new database new"),
    ):
        done = restore(tmp_path, target, "--dry-run", *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Would restore {backup.archive.name} into {where} on " in done.stdout
        assert f"{backup.archive.name} of {source.name} on 127.0.0.1 to " in done.stdout
        assert f"{sum(backup.row_counts.values())} rows in {len(backup.row_counts)} tables" in (
            done.stdout
        )
        assert "SUCCESS" not in done.stdout
    assert objects(target) == ""
    target.run_sql("CREATE TABLE mine ()")
    assert_failed(restore(tmp_path, target, "--dry-run"), 60, "public.mine")


def test_which_backup(make_database: MakeDatabase, tmp_path: Path) -> None:
    for day in (1, 2, 3):
        make(
            b"CREATE TABLE day_%d ();\n" % day + CLOSING, base=f"backup_2026010{day}_000000"
        ).store_as_backup(tmp_path)
    for arguments, day in (
        (["latest"], 3),
        (["backup_20260101_000000"], 1),
        (["backup_20260102_000000.sql.gz"], 2),
        (["--at", "2026-01-02T23:59:59Z"], 2),
        (["--at", "2026-01-02"], 2),
        (["--at", "2026-01-01 00:00:00"], 1),
        (["--at", "2026-01-02 01:00 +02:00"], 1),
        (["0102_000000"], 2),
    ):
        target = make_database()
        done = restore(tmp_path, target, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"day_{day}" in objects(target)
        chosen = f" INFO Chosen: backup_2026010{day}_000000.sql.gz of 2026-01-0{day}T00:00:00Z"
        assert (chosen in done.stdout) == (arguments[0] in ("--at", "0102_000000"))
    target = make_database()
    assert_failed(
        restore(tmp_path, target, "--at", "2025-12-31"),
        25,
        "started at or before 2025-12-31T",
    )
    assert_failed(restore(tmp_path, target, "backup_20260105_000000"), 25, "no backup backup_2026")


def assert_only_warned_of_publications(said: str) -> None:
    """The server warns of them, and of nothing else: these clusters have wal_level = minimal."""
    warning = 'WARNING psql: WARNING: "wal_level" is insufficient to publish logical changes'
    assert [line for line in said.splitlines() if not line.endswith(warning)] == []


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
def test_a_file_or_a_pipe_needs_no_storage(
    make_database: MakeDatabase, tmp_path: Path, *, encrypted: bool
) -> None:
    source = make_database("structure")
    backup = back_up(source, tmp_path, encrypted=encrypted)
    alone = tmp_path / "alone"
    alone.write_bytes(backup.archive.read_bytes())

    def environment_of(target: Database) -> dict[str, str]:
        return environment(target.bin_dir, RESTORE_URL=target.uri, BACKUP_ENCRYPTION_KEY=PASSPHRASE)

    def without_storage(target: Database, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = environment_of(target)
        return run_pgstash(restore_to(env, *arguments), env)

    target = make_database()
    done = without_storage(target, str(backup.archive))
    assert done.returncode == 0, done.stderr
    assert_only_warned_of_publications(done.stderr)
    assert "verified)" in done.stdout
    assert_same(source, target)

    target = make_database()
    assert_failed(without_storage(target, str(alone)), 32, "--unverified")
    done = without_storage(target, str(alone), "--unverified")
    assert done.returncode == 0, done.stderr
    assert_only_warned_of_publications(done.stderr)
    assert "not verified: it has no manifest" in done.stdout
    assert_same(source, target)

    target = make_database()
    with alone.open("rb") as file:
        piped = subprocess.run(
            [COMMAND, *restore_to(environment_of(target), "-", "--unverified")],
            env=environment_of(target),
            cwd="/",
            stdin=file,
            capture_output=True,
            check=False,
        )
    assert piped.returncode == 0, piped.stderr
    assert_only_warned_of_publications(piped.stderr.decode())
    assert_same(source, target)


def test_a_wrong_key_is_told_before_anybody_logs_in(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    back_up(make_database(), tmp_path, encrypted=True)
    nowhere = "postgresql://127.0.0.1:1/nowhere"
    target = make_database()
    for manifest_there, arguments in ((True, []), (False, ["--unverified"])):
        if not manifest_there:
            [manifest] = tmp_path.glob("postgres-backups/*.manifest.json.gz.enc")
            manifest.unlink()
        done = restore(
            tmp_path,
            target,
            *arguments,
            RESTORE_URL=nowhere,
            BACKUP_ENCRYPTION_KEY="a wrong one, and long enough to be one",
        )
        assert_failed(done, 31, "encrypted with another key", "BACKUP_ENCRYPTION_KEY")
    assert_failed(restore(tmp_path, target, "--unverified", RESTORE_URL=nowhere), 10, "reached")


@pytest.mark.long
def test_more_objects_than_one_transaction_can_lock(tmp_path: Path) -> None:
    """A lock table that is too small is told with the number that would do."""
    tables = b"".join(b"CREATE TABLE t%d (a int PRIMARY KEY);\n" % number for number in range(900))
    made = make(tables + CLOSING, member_bytes=1 << 20)
    made.with_manifest(
        tables=[Table("public", f"t{number}", 0) for number in range(900)]
    ).store_as_backup(tmp_path)
    with Cluster(18, settings={"max_locks_per_transaction": "10", "max_connections": "5"}) as small:
        target = small.create_database("target")
        assert_failed(
            restore(tmp_path, target),
            62,
            "max_locks_per_transaction",
            "from 10 to about ",
            "--create",
        )
        assert objects(target) == ""
        done = restore(tmp_path, target, "--create", "made")
        assert (done.returncode, done.stderr) == (0, "")
        count = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^t[0-9]+$'"
        assert Database(small, "made").run_sql(count) == "900\n"


def test_the_password_of_a_target_is_scrubbed(make_database: MakeDatabase, tmp_path: Path) -> None:
    make(CLOSING).store_as_backup(tmp_path)
    target = make_database()
    url = target.uri.replace("postgresql://admin@", "postgresql://admin:PlantedTarget1@")
    assert url != target.uri
    done = restore(tmp_path, target, "--to", url + "_missing", DEBUG="true", RESTORE_URL="")
    assert done.returncode != 0
    assert "PlantedTarget1" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["latest2", "--at", "2026-01-01"], ["--create", "a", "--overwrite"], ["--at", "yesterday"]],
)
def test_a_wrong_command_line(
    arguments: list[str], make_database: MakeDatabase, tmp_path: Path
) -> None:
    assert restore(tmp_path, make_database(), *arguments).returncode == 2


def test_no_target(tmp_path: Path) -> None:
    done = run_pgstash(["restore"], environment(STORAGE_URL=tmp_path.as_uri()))
    assert done.returncode == 1
    assert "ERROR --to is missing" in done.stderr


def test_nobody_gets_in_whom_a_revoke_kept_out(
    newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Without its REVOKEs the whole database is closed to all."""
    source = make_database()
    source.run_sql(
        "CREATE FUNCTION peek() RETURNS text LANGUAGE sql SECURITY DEFINER AS $$ SELECT 'x' $$;"
        "REVOKE ALL ON FUNCTION peek() FROM PUBLIC"
    )
    back_up(source, tmp_path)
    made = Database(newest_cluster, "closed_to_all")
    admin = newest_cluster.maintenance
    admin.run_sql("CREATE ROLE nobodys LOGIN")
    try:
        env = environment(source.bin_dir, STORAGE_URL=tmp_path.as_uri(), RESTORE_URL=admin.uri)
        done = run_pgstash(["restore", "--create", made.name], env)
        assert done.returncode == 0, done.stderr
        with (
            psycopg.connect(made.uri.replace("admin@", "nobodys@")) as session,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            session.execute("SELECT peek()")
        made.drop()
        done = run_pgstash(["restore", "--create", made.name, "--no-privileges"], env)
        assert done.returncode == 0, done.stderr
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(made.uri.replace("admin@", "nobodys@"))
        made.run_sql(f"GRANT CONNECT ON DATABASE {made.name} TO nobodys")
        with psycopg.connect(made.uri.replace("admin@", "nobodys@")) as session:
            session.execute("CREATE TEMP TABLE as_before (n int)")
    finally:
        newest_cluster.drop_database(made.name)
        admin.run_sql("DROP ROLE nobodys")
