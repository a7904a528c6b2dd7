"""``restore --create NAME --replace`` puts a restored database in the place of the old one."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from support.backups import back_up
from support.cli import environment, run_pgstash, started_pgstash
from support.postgres import Database, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.postgres import Cluster

NAME = "shop"
PATIENCE = 300.0


@pytest.fixture
def shop(cluster: Cluster) -> Iterator[Database]:
    """A database that only its owner and the role for backups may connect to."""
    cluster.maintenance.run_sql(
        "CREATE ROLE of_shop LOGIN; CREATE ROLE for_backups LOGIN IN ROLE pg_read_all_data"
    )
    database = cluster.create_database(NAME)
    database.run_sql(
        f"REVOKE ALL ON DATABASE {NAME} FROM PUBLIC;"
        f"GRANT CONNECT ON DATABASE {NAME} TO for_backups;"
        f"ALTER DATABASE {NAME} OWNER TO of_shop; CREATE TABLE state AS SELECT 'backed up' AS of;"
        "ALTER TABLE state OWNER TO of_shop"
    )
    yield database
    left = cluster.maintenance.run_sql("SELECT datname FROM pg_database WHERE datname ~ '^shop'")
    for name in left.split():
        cluster.drop_database(name)
    cluster.maintenance.run_sql("DROP ROLE of_shop, for_backups")


def as_role(database: Database, role: str) -> str:
    return database.uri.replace(f"//{database.cluster.user}@", f"//{role}@")


def restore_environment(folder: Path, target: Database) -> dict[str, str]:
    maintenance = target.cluster.maintenance.uri
    return environment(target.bin_dir, STORAGE_URL=folder.as_uri(), RESTORE_URL=maintenance)


def restore(folder: Path, target: Database, *more: str) -> subprocess.CompletedProcess[str]:
    arguments = ["restore", "--create", NAME, "--replace", *more]
    return run_pgstash(arguments, restore_environment(folder, target))


def databases(cluster: Cluster) -> list[str]:
    query = "SELECT datname FROM pg_database WHERE datname ~ '^shop' ORDER BY 1"
    return cluster.maintenance.run_sql(query).split()


def state(database: Database) -> str:
    return database.run_sql("SELECT of FROM state").strip()


class Application(threading.Thread):
    """Reads the state without a pause, and connects again at once when its session has ended."""

    def __init__(self, uri: str) -> None:
        super().__init__(daemon=True)
        self.uri = uri
        self.read: list[str] = []
        self.most_refusals = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        refusals = 0
        while not self.stopped.is_set():
            with contextlib.suppress(psycopg.Error):
                refusals += 1
                self.most_refusals = max(self.most_refusals, refusals)
                with psycopg.connect(self.uri, autocommit=True) as session:
                    refusals = 0
                    while not self.stopped.is_set():
                        row = session.execute("SELECT of FROM state").fetchone()
                        self.read += [row[0]] if row and row[0] not in self.read[-1:] else []


@pytest.mark.long
@pytest.mark.newest_first
def test_a_busy_application_goes_on_with_the_restored_database(
    shop: Database, cluster: Cluster, tmp_path: Path
) -> None:
    back_up(shop, tmp_path)
    shop.run_sql("UPDATE state SET of = 'now'")
    pool = [Application(as_role(shop, "of_shop")) for _ in range(5)]
    for each in pool:
        each.start()
    try:
        done = restore(tmp_path, shop)
        assert done.returncode == 0, done.stderr
        give_up = time.monotonic() + PATIENCE
        while any(len(each.read) < 2 for each in pool) and time.monotonic() < give_up:
            time.sleep(0.05)
    finally:
        for each in pool:
            each.stopped.set()
        for each in pool:
            each.join()
    assert [each.read for each in pool] == [["now", "backed up"]] * len(pool)
    # Each login that waits is refused once. The first try counts too.
    assert max(each.most_refusals for each in pool) <= 3
    kept = re.findall(r"kept as (shop_before_\d{8}_\d{6}) \(\d+ ?\w+\)\.", done.stdout)
    assert databases(cluster) == [NAME, *kept]
    old = Database(cluster, kept[0])
    assert state(old) == "now"
    with psycopg.connect(as_role(old, "of_shop")) as session:
        assert session.execute("SELECT of FROM state").fetchone() == ("now",)
    # The role for backups may still connect.
    (tmp_path / "again").mkdir()
    back_up(shop, tmp_path / "again", DATABASE_URL=as_role(shop, "for_backups"))
    # As the messages say.
    statements = re.search(r"and run:\n(.*)\n *To drop it: (.*)", done.stdout, re.DOTALL)
    assert statements
    cluster.maintenance.run_sql(statements[1])
    assert (state(shop), len(databases(cluster))) == ("now", 2)
    with psycopg.connect(as_role(shop, "of_shop")) as session:
        assert session.execute("SELECT of FROM state").fetchone() == ("now",)
    after = kept[0].replace("before", "after")
    assert state(Database(cluster, after)) == "backed up"
    cluster.maintenance.run_sql(f"ALTER DATABASE {after} RENAME TO {kept[0]}")
    cluster.maintenance.run_sql(statements[2].splitlines()[0])
    assert databases(cluster) == [NAME]


@pytest.mark.newest_first
def test_a_dry_run_and_no_database_to_replace(
    shop: Database, cluster: Cluster, tmp_path: Path
) -> None:
    back_up(shop, tmp_path)
    done = restore(tmp_path, shop, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    news = r" INFO The database shop exists: it is replaced .* such as shop_before_\d{8}_\d{6}\n"
    assert re.search(news, done.stdout)
    assert databases(cluster) == [NAME]
    refused = run_pgstash(["restore", "--create", NAME], restore_environment(tmp_path, shop))
    assert (refused.returncode, "--replace" in refused.stderr) == (61, True)
    shop.drop()
    done = restore(tmp_path, shop)
    assert (done.returncode, done.stderr) == (0, "")
    assert " INFO There is no database shop to replace: " in done.stdout
    assert "kept as" not in done.stdout
    assert (state(shop), databases(cluster)) == ("backed up", [NAME])


@pytest.mark.newest_first
def test_without_owners_and_privileges_nothing_is_replaced(
    shop: Database, cluster: Cluster, tmp_path: Path
) -> None:
    """Nor if they are refused, which shows only at the end of the restore."""
    backup = back_up(shop, tmp_path)
    maintenance = cluster.maintenance
    maintenance.run_sql("CREATE ROLE maker LOGIN CREATEDB")
    maintenance.run_sql(f"ALTER DATABASE {NAME} OWNER TO maker")
    env = restore_environment(tmp_path, shop) | {"RESTORE_URL": as_role(maintenance, "maker")}
    done = run_pgstash(["restore", "--create", NAME, "--replace"], env, cwd=tmp_path)
    try:
        assert done.returncode == 61, done.stderr
        assert "and everything is in a database that still has its temporary name: " in done.stderr
        assert "not all owners and privileges could be given" in done.stderr
        [mine, restored] = databases(cluster)
        assert (mine, restored.partition("_pgstash_")[0]) == (NAME, NAME)
        assert f"is called {restored}" in done.stderr
        assert state(Database(cluster, restored)) == "backed up"
        cluster.drop_database(restored)
        [companion] = backup.archive.parent.glob("backup_*.privileges.sql.gz")
        companion.unlink()
        done = restore(tmp_path, shop)
        assert done.returncode == 61, done.stderr
        assert "nothing was changed in the target" in done.stderr
        assert databases(cluster) == [NAME]
    finally:
        maintenance.run_sql(f"ALTER DATABASE {NAME} OWNER TO {cluster.user}")
        for name in databases(cluster):
            Database(cluster, name).drop()
        maintenance.run_sql("DROP ROLE maker")


@pytest.mark.newest_first
def test_a_signal_during_the_swap_leaves_the_old_one(
    shop: Database, cluster: Cluster, tmp_path: Path
) -> None:
    """No session was ended, because the old database could not be locked yet."""
    back_up(shop, tmp_path)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ ' RENAME '"
    with psycopg.connect(shop.uri) as application, cluster.maintenance.connect() as holder:
        holder.execute("BEGIN")
        holder.execute(f"COMMENT ON DATABASE {NAME} IS 'a lock that the swap waits for'")
        arguments = ["restore", "--create", NAME, "--replace"]
        with started_pgstash(arguments, restore_environment(tmp_path, shop)) as process:
            give_up = time.monotonic() + PATIENCE
            while not cluster.maintenance.run_sql(waiting) and time.monotonic() < give_up:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=PATIENCE)
        holder.execute("ROLLBACK")
        assert process.returncode == -signal.SIGTERM, out + err
        assert "and nothing was changed in the target: " in err
        assert application.execute("SELECT 1").fetchone() == (1,)
    assert databases(cluster) == [NAME]
    assert cluster.maintenance.run_sql(waiting) == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--replace"],
        ["--replace", "--create", NAME, "--table", "state"],
        ["--replace", "--create", NAME, "--no-owner"],
        ["--replace", "--create", NAME, "--no-privileges"],
        ["--replace", "--create", NAME, "--overwrite"],
        ["--replace", "--table", "state", "--data-only"],
    ],
)
def test_what_replaces_nothing_is_a_wrong_command_line(
    arguments: list[str], tmp_path: Path
) -> None:
    env = clean_environment() | {"STORAGE_URL": tmp_path.as_uri()}
    assert run_pgstash(["restore", *arguments], env).returncode == 2


@pytest.mark.newest_first
def test_a_database_for_maintenance_is_never_replaced(shop: Database, tmp_path: Path) -> None:
    back_up(shop, tmp_path)
    env = restore_environment(tmp_path, shop) | {"RESTORE_URL": shop.uri}
    done = run_pgstash(["restore", "--create", "postgres", "--replace"], env)
    assert done.returncode == 61
    assert "is for maintenance, and is never replaced" in done.stderr
