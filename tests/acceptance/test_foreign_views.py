"""Views filled from a foreign server: no drill asks it, and no restore fails because of it."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import pieces
from support.cli import environment, restore_to, run_pgstash
from support.postgres import (
    Cluster,
    Database,
    folder_for_throwaway_servers,
    temporary_database,
)
from support.tiers import later

if TYPE_CHECKING:
    import subprocess

    from support.postgres import MakeDatabase

NEW = "views_restored"
FOREIGN = ["direct", "of_view", "of_other", "of_partitions", '"Odd ""name"']
BY_FUNCTION = ["of_function", "of_dblink"]


@dataclass
class Listener:
    """A server that closes each connection at once, and counts them."""

    port: int = 0
    logins: list[str] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def opened(cls) -> Iterator[Listener]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            listener = cls(server.getsockname()[1])

            def serve() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        client, (host, _) = server.accept()
                        listener.logins.append(host)
                        client.close()

            threading.Thread(target=serve, daemon=True).start()
            yield listener
            server.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True)
class Stored:
    source: Database
    folder: Path
    listener: Listener


@pytest.fixture(scope="module")
def stored(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    with (
        Listener.opened() as listener,
        temporary_database(cluster) as remote,
        temporary_database(cluster) as source,
    ):
        remote.run_sql("CREATE TABLE t (n int); INSERT INTO t VALUES (1), (2)")
        source.run_sql(
            "CREATE EXTENSION postgres_fdw;"
            "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS"
            f" (host '127.0.0.1', port '{cluster.port}', dbname '{remote.name}');"
            f"CREATE USER MAPPING FOR {cluster.user} SERVER far OPTIONS (user '{cluster.user}');"
            "CREATE FOREIGN TABLE t (n int) SERVER far;"
            "CREATE TABLE parts (n int) PARTITION BY RANGE (n);"
            "CREATE FOREIGN TABLE part PARTITION OF parts FOR VALUES FROM (1) TO (9)"
            " SERVER far OPTIONS (table_name 't');"
            "CREATE TABLE own (n int); INSERT INTO own VALUES (7);"
            "CREATE VIEW v AS SELECT * FROM t;"
            "CREATE FUNCTION f() RETURNS SETOF int LANGUAGE plpgsql AS"
            " 'BEGIN RETURN QUERY SELECT n FROM public.t; END';"
            "CREATE MATERIALIZED VIEW direct AS SELECT * FROM t;"
            'CREATE MATERIALIZED VIEW "Odd ""name" AS SELECT count(*) FROM t;'
            "CREATE MATERIALIZED VIEW of_view AS SELECT * FROM v;"
            "CREATE MATERIALIZED VIEW of_other AS SELECT * FROM direct;"
            "CREATE MATERIALIZED VIEW of_partitions AS SELECT * FROM parts;"
            "CREATE MATERIALIZED VIEW of_function AS SELECT * FROM f();"
            "CREATE EXTENSION dblink; CREATE MATERIALIZED VIEW of_dblink AS"
            " SELECT * FROM dblink('far', 'SELECT n FROM t') AS t (n int);"
            "CREATE MATERIALIZED VIEW near AS SELECT * FROM own;"
            f"ALTER SERVER far OPTIONS (SET port '{listener.port}')"
        )
        folder = tmp_path_factory.mktemp("stored")
        pieces.back_up(source, folder)
        assert listener.logins == []
        yield Stored(source, folder, listener)


def restored(stored: Stored, target: Database, *more: str, **settings: str) -> str:
    env = environment(
        target.bin_dir,
        **{"STORAGE_URL": stored.folder.as_uri(), "RESTORE_URL": target.uri} | settings,
    )
    done = run_pgstash(restore_to(env, *more), env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


def assert_filled(target: Database) -> None:
    found = target.run_sql("SELECT relname FROM pg_class WHERE relkind = 'm' AND relispopulated")
    assert found.split() == ["near"]
    assert target.run_sql("SELECT n FROM near").strip() == "7"


def assert_named(told: str) -> None:
    """All views are named that are empty, with what fills them."""
    [found] = re.findall(r"WARNING (7 materialized views are empty: .*)", told)
    for view in [*FOREIGN, *BY_FUNCTION]:
        assert re.search(rf'"?public"?\."?{re.escape(view.strip(chr(34)))}"?', found) or (
            "and 2 more" in found
        )
    assert "When the foreign server answers, run: REFRESH MATERIALIZED VIEW " in found


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["1", "2"], "2"))
def test_a_restore_goes_on_without(jobs: str, stored: Stored) -> None:
    on = stored.source.cluster
    try:
        told = restored(stored, on.maintenance, "--create", NEW, RESTORE_JOBS=jobs)
        assert_filled(Database(on, NEW))
    finally:
        on.drop_database(NEW)
    assert_named(told)
    assert stored.listener.logins != []


@pytest.mark.newest_first
def test_so_does_one_in_a_transaction(stored: Stored, make_database: MakeDatabase) -> None:
    target = make_database(on=stored.source.cluster)
    assert_named(restored(stored, target))
    assert_filled(target)


@pytest.mark.newest_first
@pytest.mark.parametrize("jobs", later(["1", "2"], "1"))
def test_a_drill_asks_no_foreign_server(jobs: str, stored: Stored) -> None:
    before = len(stored.listener.logins)
    done = drilled(stored, RESTORE_JOBS=jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(stored.listener.logins) == before
    assert "7 materialized views are empty: " in done.stderr
    assert "A drill contacts no foreign servers" in done.stderr


def drilled(stored: Stored, **more: str) -> subprocess.CompletedProcess[str]:
    programs = stored.source.bin_dir
    with folder_for_throwaway_servers() as scratch:
        env = environment(
            programs,
            **{
                "STORAGE_URL": stored.folder.as_uri(),
                "TMPDIR": str(scratch),
                "LD_LIBRARY_PATH": str(programs.parent / "lib"),
            }
            | more,
        )
        return run_pgstash(["drill"], env)


def test_what_fails_for_another_reason_fails(make_database: MakeDatabase, tmp_path: Path) -> None:
    source = make_database()
    source.run_sql(
        "CREATE TABLE t (n int); INSERT INTO t VALUES (1);"
        "CREATE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN n; END';"
        "CREATE MATERIALIZED VIEW m AS SELECT f(n) FROM t;"
        "CREATE OR REPLACE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS"
        " 'BEGIN RETURN 1 / (n - 1); END'"
    )
    pieces.back_up(source, tmp_path)
    target = make_database()
    env = environment(target.bin_dir, STORAGE_URL=tmp_path.as_uri(), RESTORE_URL=target.uri)
    done = run_pgstash(restore_to(env), env)
    assert done.returncode == 62, done.stdout
    assert "division by zero" in done.stderr
