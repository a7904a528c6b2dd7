"""A pooler that swaps sessions is refused before anything is set; one that keeps them is not."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg
import pytest

from faults.scene import PATIENCE, wait_until
from pgstash.check import database as checks
from pgstash.check.finding import Finding
from pgstash.errors import (
    DatabaseError,
    DumpError,
    PoolerError,
    PoolTooSmallError,
    TargetLostError,
)
from pgstash.postgres.dump import schema_dump
from pgstash.postgres.dump import snapshot as copying
from pgstash.postgres.dump.copy_reader import Reader
from pgstash.postgres.dump.pg_dump import dump
from pgstash.postgres.preflight import privileges
from pgstash.postgres.restore import copy_loader, target
from pgstash.postgres.restore.psql import Psql
from pgstash.postgres.restore.target import Outcome
from pgstash.postgres.server import login, pooler, query, startup_options
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.session import Session
from pgstash.postgres.tools import installed
from pgstash.postgres.tools.tool_run import Limits, ToolRun
from support.backups import settings, stored
from support.cli import environment, restore_to, run_pgstash, started_pgstash
from support.compare import compare
from support.pgbouncer import Application, PgBouncer, at_work
from support.postgres import Cluster, Database, MakeDatabase, free_port
from support.tiers import later

# How long somebody waits who asks for a session in vain.
SECONDS = 1.0


@pytest.fixture
def shop(make_database: MakeDatabase) -> Database:
    return make_database()


def findings(uri: str) -> dict[str, Finding]:
    plan = checks.Plan(uri, {}, time.time)
    return {finding.topic: finding for finding in checks.look(plan)}


@contextlib.contextmanager
def logged_in(server: Server, count: int) -> Iterator[list[Session]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Session(server.connection)) for _ in range(count)]


@pytest.mark.parametrize("round_robin", ["0", "1"], ids=["last-used", "round-robin"])
@pytest.mark.parametrize("clients", [0, 12], ids=["idle", "busy"])
@pytest.mark.parametrize("size", later([1, 2, 4, 20], 4))
def test_swapped_sessions_are_refused(
    size: int, clients: int, round_robin: str, shop: Database
) -> None:
    with PgBouncer(shop.cluster, size=size, settings={"server_round_robin": round_robin}) as shared:
        with at_work(shared, shop, clients) as application:
            for _ in range(3):
                with pytest.raises(PoolerError, match="swaps sessions"):
                    login.inspect(shared.uri(shop))
            application.wait_for(clients)
        assert application.errors == []
        assert shared.settings_left(shop) == set()


def test_sessions_of_a_pool_that_was_idle_for_long(shop: Database) -> None:
    """All of them rest in the pool, and the one that rested longest is handed out."""
    with PgBouncer(shop.cluster, size=4, settings={"server_round_robin": "1"}) as shared:
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(psycopg.connect(shared.uri(shop)))
                client.execute("SELECT 1")
        with pytest.raises(PoolerError):
            login.inspect(shared.uri(shop))


def test_a_login_that_waits_for_the_transaction_of_another(shop: Database) -> None:
    with PgBouncer(shop.cluster, "session", size=3) as kept:
        server = login.inspect(kept.uri(shop))
        kept.reconfigure(pool_mode="transaction", default_pool_size="1")
        kept.command("RECONNECT")
        with logged_in(server, 2) as sessions:
            one, other = (pooler._Login(session.pgconn) for session in sessions)  # noqa: SLF001
            with pytest.raises(PoolerError, match="only after the transaction"):
                pooler._begin_both(one, other, SECONDS)  # noqa: SLF001
            one.begin(SECONDS)  # nothing was left open


def test_statement_pooling_is_refused(shop: Database) -> None:
    with (
        PgBouncer(shop.cluster, "statement") as shared,
        pytest.raises(PoolerError, match="no transaction of several statements"),
    ):
        login.inspect(shared.uri(shop))


def test_session_pooling_goes_on_working(shop: Database) -> None:
    with PgBouncer(shop.cluster, "session") as kept, at_work(kept, shop, 5) as application:
        server = login.inspect(kept.uri(shop))
        assert server.pooled
        pooler.refuse_swapping_again(server, lambda event: pytest.fail(str(event)))
        found = findings(kept.uri(shop))
        application.wait_for(5)
    assert found["pooler"].state == "warning"
    assert "keeps one session for each login" in found["pooler"].found
    assert application.errors == []
    assert not login.inspect(shop.uri).pooled


def test_a_pool_for_sessions_that_is_too_small(shop: Database) -> None:
    with PgBouncer(shop.cluster, "session", size=2) as kept:
        server = login.inspect(kept.uri(shop))
        with psycopg.connect(kept.uri(shop)) as application, logged_in(server, 1) as [ours]:
            application.execute("SELECT 1")
            with pytest.raises(PoolTooSmallError, match="a second login") as caught:
                pooler.refuse_swapping(ours.pgconn, server.connection, SECONDS)
        assert "DUMP_JOBS + 4" in caught.value.hint
        with (
            contextlib.ExitStack() as stack,
            logged_in(server, 1) as [ours],
        ):
            for _ in range(2):
                stack.enter_context(psycopg.connect(kept.uri(shop))).execute("SELECT 1")
            with pytest.raises(PoolTooSmallError, match="the first login"):
                pooler.refuse_swapping(ours.pgconn, server.connection, SECONDS)


def test_a_pool_that_swaps_by_the_end_of_an_operation(shop: Database) -> None:
    warnings: list[object] = []
    with PgBouncer(shop.cluster, "session", size=4) as kept:
        server = login.inspect(kept.uri(shop))
        with contextlib.ExitStack() as stack:
            # Nobody can tell, and each session of ours was the same to its end.
            kept.reconfigure(default_pool_size="1", max_client_conn="3")
            for _ in range(3):
                stack.enter_context(psycopg.connect(kept.uri(shop)))
            pooler.refuse_swapping_again(server, warnings.append)
        assert ["still pools by session" in str(warning) for warning in warnings] == [True]
        kept.reconfigure(pool_mode="transaction", max_client_conn="100")
        with pytest.raises(PoolerError, match="swaps sessions"):
            pooler.refuse_swapping_again(server, warnings.append)


@pytest.mark.parametrize("mode", ["session", "transaction"])
@pytest.mark.parametrize("which", ["socket", "ipv6", "several"])
def test_the_host_that_answered_is_asked_again(which: str, mode: str, shop: Database) -> None:
    with PgBouncer(shop.cluster, mode) as pool:
        uri = {
            "socket": pool.uri(shop, host=str(pool.folder)),
            "ipv6": pool.uri(shop, host="[::1]"),
            "several": pool.uri(shop).replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1"),
        }[which]
        if mode == "transaction":
            with pytest.raises(PoolerError, match="swaps sessions"):
                login.inspect(uri)
            return
        server = login.inspect(uri)
        assert server.pooled
        assert server.connection.parameters["port"] == str(pool.port)
        expected = {"socket": str(pool.folder), "ipv6": "::1", "several": "127.0.0.1"}[which]
        assert server.connection.parameters["host"] == expected


def test_several_hosts_without_a_pooler(shop: Database) -> None:
    server = login.inspect(shop.uri.replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1"))
    assert not server.pooled
    assert server.connection.parameters["port"] == str(shop.cluster.port)


def test_a_host_of_ipv6_alone(newest_cluster: Cluster) -> None:
    with Cluster(newest_cluster.major, host="::1") as cluster:
        server = login.inspect(f"postgresql://{cluster.user}@[::1]:{cluster.port}/postgres")
    assert not server.pooled
    assert server.connection.parameters["host"] == "::1"


OPTIONS = {"ignore_startup_parameters": "options"}


def refused(uri: str) -> DatabaseError:
    with pytest.raises(PoolerError) as caught:
        login.inspect(uri)
    assert "Connect to the server itself" in caught.value.hint
    return caught.value


def test_options_of_the_address_that_a_pooler_refuses(shop: Database) -> None:
    with PgBouncer(shop.cluster, "session") as kept:
        error = refused(f"{kept.uri(shop)}?options=-c%20work_mem%3D8MB")
    assert "does not pass on the startup parameter options" in error.message


@pytest.mark.parametrize("ignoring", [False, True], ids=["refuses", "ignores"])
def test_planted_settings_that_cannot_be_put_back(shop: Database, *, ignoring: bool) -> None:
    shop.run_sql(f'ALTER DATABASE "{shop.name}" SET bytea_output = escape')
    shop.run_sql(f"ALTER DATABASE \"{shop.name}\" SET TimeZone = 'Europe/Berlin'")
    with PgBouncer(shop.cluster, "session", settings=OPTIONS if ignoring else {}) as kept:
        error = refused(kept.uri(shop))
        assert ("ignores" if ignoring else "does not pass on") in error.message
        assert "SET bytea_output = 'hex'" in error.hint
        for name, value in (("bytea_output", "hex"), ("TimeZone", "UTC")):
            shop.run_sql(
                f'ALTER ROLE {shop.cluster.user} IN DATABASE "{shop.name}" SET {name} = {value}'
            )
        kept.command("RECONNECT")
        assert login.inspect(kept.uri(shop)).pooled  # by what the hint says


def test_whether_options_reach_the_server(shop: Database) -> None:
    assert startup_options.passed_on(login.inspect(shop.uri))
    for different in ({}, OPTIONS):
        with PgBouncer(shop.cluster, "session", settings=different) as kept:
            assert not startup_options.passed_on(login.inspect(kept.uri(shop)))


def test_every_operation_refuses(shop: Database, tmp_path: Path) -> None:
    env = environment(shop.bin_dir, **settings(shop, tmp_path))
    with at_work_through(shop) as (shared, application):
        assert run_pgstash(["once"], env).returncode == 0
        through = env | {"DATABASE_URL": shared.uri(shop)}
        to = {"RESTORE_URL": shared.uri(shop), "VERIFY_DATABASE_URL": shared.uri(shop)}
        for arguments, different, status in (
            (["once"], {"DUMP_JOBS": "1"}, 17),
            (["once"], {"DUMP_JOBS": "2"}, 17),
            (["restore", "--overwrite"], to, 17),
            (["restore", "--create", "another"], to, 17),
            (["drill"], to, 43),
        ):
            before = application.statements
            done = run_pgstash(arguments, through | different)
            assert done.returncode == status, done.stdout + done.stderr
            assert "a pooler in between swaps sessions" in done.stderr
            assert "session mode" in done.stderr
            assert "Traceback" not in done.stderr
            application.wait_for(12)
            assert application.statements > before
        check = run_pgstash(["check", "database"], through)
        assert check.returncode == 40
        assert "FAILED   pooler" in check.stdout
        assert application.errors == []
        assert shared.settings_left(shop) == set()
    assert len(list((tmp_path / "postgres-backups").glob("backup_????????_??????.sql.gz"))) == 1


@contextlib.contextmanager
def at_work_through(database: Database) -> Iterator[tuple[PgBouncer, Application]]:
    with (
        PgBouncer(database.cluster, size=4) as shared,
        at_work(shared, database) as application,
    ):
        yield shared, application


def test_a_restore_by_a_pool_of_sessions(make_database: MakeDatabase, tmp_path: Path) -> None:
    database, target = make_database("mixed"), make_database()
    with PgBouncer(database.cluster, "session") as kept:
        through = {"DATABASE_URL": kept.uri(database), "RESTORE_URL": kept.uri(target)}
        env = environment(
            database.bin_dir, **settings(database, tmp_path) | through | {"DEBUG": "true"}
        )
        for arguments in (["once"], restore_to(env), ["restore", "--create", "from_pool"]):
            done = run_pgstash(arguments, env)
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
        assert "with a single session: the pooler" in done.stdout
        drill = run_pgstash(["drill"], env | {"VERIFY_DATABASE_URL": kept.uri(target)})
        assert drill.returncode == 43
        assert "does not pass on the startup parameter options" in drill.stderr
    created = Database(database.cluster, "from_pool")
    try:
        for restored in (target, created):
            assert compare(database.conninfo, restored.conninfo, bin_dir=target.bin_dir) == []
    finally:
        created.drop()


def test_a_pool_that_swaps_by_the_end_of_a_backup(shop: Database, tmp_path: Path) -> None:
    with PgBouncer(shop.cluster, "session") as kept:
        swap = (
            f"psql -qX -h 127.0.0.1 -p {kept.port} -U {shop.cluster.user} pgbouncer"
            " -c \"SET pool_mode = 'transaction'\""
        )
        env = environment(
            shop.bin_dir,
            **settings(shop, tmp_path)
            | {
                "DATABASE_URL": kept.uri(shop),
                "HOOK_VERIFY": f"sh -c {shlex.quote(f'{swap}; cat > {os.devnull}')}",
            },
        )
        done = run_pgstash(["once"], env)
    assert done.returncode == 17, done.stdout + done.stderr
    assert "swaps sessions" in done.stderr
    assert list((tmp_path / "postgres-backups").glob("backup_????????_??????.sql.gz")) == []


def test_a_session_that_belongs_to_another_by_now_is_not_ended(shop: Database) -> None:
    """What psql's transaction was in, before it ended."""
    with PgBouncer(shop.cluster, "session", size=4) as kept:
        server = login.inspect(kept.uri(shop))
        path = os.pathsep.join([str(shop.bin_dir)])
        found = installed.find(server.major, path, {"PATH": path})
        psql = Psql(
            server,
            ToolRun(found, {"PATH": path}, ignore),
            one_transaction=True,
            lc_monetary=None,
        )
        with contextlib.ExitStack() as stack:
            with psql:
                psql.feed(b"COMMIT;\n")
                backend = psql._backend  # noqa: SLF001 - which session is its own
                assert backend
                wait_until(lambda: not in_transaction(shop, backend.pid), "COMMIT")
                psql.end()
                application = stack.enter_context(psycopg.connect(kept.uri(shop)))
                assert application.execute("SELECT pg_backend_pid()").fetchone() == (backend.pid,)
            assert application.execute("SELECT 1").fetchone() == (1,)
    assert psql.outcome is Outcome.UNKNOWN


def in_transaction(database: Database, pid: int) -> bool:
    with database.connect() as session:
        statement = "SELECT xact_start FROM pg_stat_activity WHERE pid = %s"
        return session.execute(statement, [pid]).fetchone() != (None,)


@pytest.fixture
def swapping(make_database: MakeDatabase) -> Iterator[tuple[Database, Server]]:
    """A server as it was seen before the pool swapped sessions: a new one for each transaction."""
    database = make_database("mixed")
    with PgBouncer(
        database.cluster, "session", size=4, settings={"server_round_robin": "1"}
    ) as pool:
        server = login.inspect(pool.uri(database))
        pool.reconfigure(pool_mode="transaction")
        pool.command("RECONNECT")
        assert pool.settings_left(database) == set()  # all four are there
        yield database, server


def tool_run(database: Database) -> ToolRun:
    path = str(database.bin_dir)
    client = installed.find(database.cluster.major, path, {"PATH": path})
    return ToolRun(client, {"PATH": path}, ignore)


def asks_again(server: Server, _: Database) -> None:
    with query.connected(server) as session:
        session.execute("SELECT 1")


def inquires(server: Server, _: Database) -> None:
    with query.opened(server, "anything") as session:
        session.execute("SELECT 1")


def asks_for_mappings(server: Server, _: Database) -> None:
    privileges.closed_mappings(server, [])


def asks_for_policies(server: Server, _: Database) -> None:
    privileges.refuse_hidden_rows(server, [], [])


def asks_the_target(server: Server, _: Database) -> None:
    target.contents(server)


def loads(server: Server, _: Database) -> None:
    with copy_loader.opened(server, b"SELECT 1", 1, lc_monetary=None, emit=ignore) as [session]:
        session.refuse_swapped()


def restores(server: Server, database: Database, *, one_transaction: bool) -> None:
    psql = Psql(
        server,
        tool_run(database),
        one_transaction=one_transaction,
        lc_monetary=None,
    )
    with psql:
        psql.feed(b"CREATE TABLE public.restored (n int);\n")
        psql.finish()


def reads(server: Server, database: Database) -> None:
    with copying.snapshot(server) as snapshot:
        reader = Reader(
            server,
            tool_run(database),
            snapshot=snapshot.name,
            role=None,
            idle_seconds=PATIENCE,
        )
        with database.connect() as session:
            session.execute("CREATE TABLE IF NOT EXISTS big (n int)")
            [oid] = session.execute("SELECT 'big'::regclass::oid::int").fetchone() or (0,)
        big = copying.Table(oid, b"public.big", b'"public"."big"', b"n", 1, 1)
        with reader:
            reader.begin([big])
            reader.refuse_swapped()


def dumps(server: Server, database: Database) -> None:
    with dump(
        server,
        tool_run(database),
        [],
        Limits(lock=PATIENCE, idle=PATIENCE),
    ) as chunks:
        for _ in chunks:
            pass


def dumps_contents(server: Server, database: Database) -> None:
    with (
        copying.snapshot(server) as snapshot,
        schema_dump.opened(
            server,
            tool_run(database),
            [],
            Limits(lock=PATIENCE, idle=PATIENCE),
            snapshot=snapshot.name,
        ) as contents,
    ):
        schema_dump.script(contents, tool_run(database), [])


def ignore(_event: object) -> None:
    pass


@pytest.mark.parametrize(
    "use",
    [
        asks_again,
        inquires,
        asks_for_mappings,
        asks_for_policies,
        asks_the_target,
        loads,
        partial(restores, one_transaction=True),
        partial(restores, one_transaction=False),
        reads,
        dumps,
        dumps_contents,
    ],
    ids=lambda use: getattr(use, "__name__", f"restores-{getattr(use, 'keywords', '')}"),
)
def test_every_session_notices_that_it_was_swapped(
    use: Callable[[Server, Database], None], swapping: tuple[Database, Server]
) -> None:
    database, server = swapping
    with pytest.raises((PoolerError, TargetLostError), match="swapped the server's session"):
        use(server, database)
    with database.connect() as session:
        session.execute("DROP TABLE IF EXISTS restored")
    use(login.inspect(database.uri), database)


def test_rows_that_policies_hide_whatever_pg_dump_has_set(make_database: MakeDatabase) -> None:
    """Half of the rows, as a role sees them whose row_security is on."""
    database = make_database()
    with restricted(database) as role:
        server = login.inspect(database.uri.replace(database.cluster.user, role, 1))
        dumped = {("public", "guarded"), ("public", "open")}
        with pytest.raises(DumpError, match=r"hidden rows of tables .*: public\.guarded$"):
            privileges.refuse_hidden_rows(server, [], dumped)
        privileges.refuse_hidden_rows(server, [], dumped - {("public", "guarded")})
        privileges.refuse_hidden_rows(login.inspect(database.uri), [], dumped)
        with pytest.raises(DumpError):
            privileges.refuse_hidden_rows(login.inspect(database.uri), [f"--role={role}"], dumped)


@contextlib.contextmanager
def restricted(database: Database) -> Iterator[str]:
    """Make tables, and a role that sees half of the rows of one."""
    role = f"half_{database.name}"
    database.run_sql(
        f"""
        CREATE ROLE {role} LOGIN; GRANT pg_read_all_data TO {role};
        CREATE TABLE open (n int); CREATE TABLE guarded (id int, value float8);
        INSERT INTO guarded SELECT n, n / 3.0::float8 FROM generate_series(1, 101000) n;
        ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
        CREATE POLICY half ON guarded USING (id % 2 = 0);
        ALTER DATABASE "{database.name}" SET extra_float_digits = 0;
        """
    )
    try:
        yield role
    finally:
        database.run_sql(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_half_of_the_rows_are_never_stored(
    jobs: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    with (
        restricted(database) as role,
        PgBouncer(database.cluster, size=4, users=[role]) as shared,
        at_work(shared, database) as application,
    ):
        env = environment(
            database.bin_dir,
            **settings(database, tmp_path)
            | {"DATABASE_URL": shared.uri(database, role), "DUMP_JOBS": jobs},
        )
        done = run_pgstash(["once"], env)
        assert (done.returncode, "swaps sessions" in done.stderr) == (17, True), done.stderr
        application.wait_for(12)
        assert application.errors == []
    assert list(tmp_path.rglob("backup_????????_??????.sql.gz")) == []


REPETITIONS = 10  # of each of two ways


@pytest.mark.long
@pytest.mark.parametrize("mode", ["transaction", "session"])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_twenty_backups_with_a_busy_application(
    jobs: str, mode: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    database.run_sql(  # large enough for a reader of its own
        "CREATE TABLE large AS SELECT n, n / 3.0::float8 AS third, repeat(md5(n::text), 10) AS text"
        " FROM generate_series(1, 20000) n"
    )
    with (
        PgBouncer(database.cluster, mode, size=4 if mode == "transaction" else 30) as pool,
        at_work(pool, database) as application,
    ):
        # The application goes on counting: what is compared stays as it is.
        env = environment(
            database.bin_dir,
            **settings(database, tmp_path)
            | {
                "DATABASE_URL": pool.uri(database),
                "DUMP_JOBS": jobs,
                "EXCLUDE_TABLE_DATA": "counters",
            },
        )
        for _ in range(REPETITIONS):
            done = run_pgstash(["once"], env)
            if mode == "transaction":
                assert done.returncode == 17, done.stdout + done.stderr
                assert "a pooler in between swaps sessions" in done.stderr
            else:
                assert (done.returncode, done.stderr) == (0, ""), done.stdout
            application.wait_for(12)
        assert application.errors == []
        if mode == "transaction":
            assert pool.settings_left(database) == set()
    backups = stored(tmp_path) if mode == "session" else []
    assert len(list(tmp_path.rglob("backup_????????_??????.sql.gz"))) == len(backups)
    assert len(backups) == (REPETITIONS if mode == "session" else 0)
    database.run_sql("TRUNCATE counters")
    for backup in backups:
        restored = make_database()
        backup.restore(restored)
        differences = compare(database.conninfo, restored.conninfo, bin_dir=database.bin_dir)
        assert differences == []
        restored.drop()


def test_a_failed_backup_leaves_nothing_in_a_pool_of_sessions(
    shop: Database, tmp_path: Path
) -> None:
    with PgBouncer(shop.cluster, "session", size=4) as kept, at_work(kept, shop, 1) as application:
        env = environment(
            shop.bin_dir,
            **settings(shop, tmp_path) | {"DATABASE_URL": kept.uri(shop), "HOOK_VERIFY": "false"},
        )
        assert run_pgstash(["once"], env).returncode == 50
        # Killed while pg_dump is at work: all of its sessions are the pool's again.
        env["HOOK_VERIFY"] = "sleep 600"
        with started_pgstash(["once"], env) as process:
            wait_until(lambda: sessions(shop, "writer lock"), "the dump begins")
            process.kill()
        wait_until(lambda: not sessions(shop, "writer lock"), "the lock is free")
        application.wait_for(1)
        assert application.errors == []
        kept.size -= 1  # the application has one
        assert kept.settings_left(shop) == set()


def sessions(database: Database, name: str) -> int:
    with database.connect() as session:
        statement = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE %s"
        row = session.execute(statement, [f"%{name}"]).fetchone()
    return int(row[0]) if row else 0
