"""Several databases under one prefix: each has its own retention, latest, freshness and drills."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgstash import events, settings
from pgstash.commands import drill, health, stored
from pgstash.commands.backup import back_up
from pgstash.commands.service import is_drill_due
from pgstash.errors import DatabaseUnreachableError, SourceUnclearError, StaleBackupError
from pgstash.format import names
from pgstash.format.identity import Identity
from pgstash.postgres.server import login
from pgstash.runtime import Runtime
from support import backups
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.postgres import Cluster, Database

if TYPE_CHECKING:
    from pgstash.settings import Settings
    from support.postgres import MakeDatabase

KEPT = timedelta(days=3)


class Service:
    """Backs one database up each day, as `pgstash backup` does, into a folder that others share."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.name, self.port = database.name, str(database.cluster.port)
        self.env = environment(database.bin_dir, **backups.settings(database, folder))
        self.made: list[str] = []
        self.heard: list[events.Event] = []

    def settings(self, **different: str) -> Settings:
        usual = {"DUMP_JOBS": "1", "BACKUP_RETENTION_DAYS": str(KEPT.days)}
        return settings.load(dict(self.env | usual | different), Path("/none"))

    def run(self, now: datetime, **different: str) -> None:
        made = back_up(
            self.settings(**different),
            Runtime(self.heard.append, now=lambda: now),
            server_now=lambda _settings: now,
        )
        self.made.append(made.name)

    def young(self, now: datetime) -> set[str]:
        """Return what the retention keeps of it."""
        ages = {name: now - started for name in self.made if (started := _started(name))}
        return {name for name, age in ages.items() if age <= KEPT}

    def warnings(self) -> list[str]:
        return [event.message for event in self.heard if isinstance(event, events.Warned)]


def _started(name: str) -> datetime | None:
    return names.started_of(name.partition(".")[0])


def left(folder: Path) -> set[str]:
    return {path.name for path in (folder / PREFIX).glob("backup_????????_??????.sql.gz")}


def latest(service: Service) -> str:
    wanted = stored.Wanted("latest")
    return stored.manifest_of(service.settings(), wanted, events.ignore).archive


def unused_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("days", "down"),
    [(14, range(4, 9)), pytest.param(30, range(5, 21), marks=pytest.mark.long)],
)
def test_days_side_by_side(
    days: int,
    down: range,
    make_database: MakeDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the days ``down`` one cannot be backed up: nothing of it is deleted meanwhile."""
    first, second = make_database(), make_database()
    second.run_sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 5000) n")
    shop, blog = Service(first, tmp_path), Service(second, tmp_path)
    monkeypatch.setenv("PATH", shop.env["PATH"])
    broken = f"postgresql://postgres@127.0.0.1:{unused_port()}/{blog.name}"
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(days=days)
    of_blog: set[str] = set()
    for day in range(days):
        now = began + timedelta(days=day)
        if day in down:
            with pytest.raises(DatabaseUnreachableError):
                blog.run(now, DATABASE_URL=broken)
        else:
            blog.run(now)
            of_blog = blog.young(now)
        later = now + timedelta(minutes=1)
        shop.run(later)
        assert left(tmp_path) == shop.young(later) | of_blog
        assert (latest(shop), latest(blog)) == (shop.made[-1], blog.made[-1])
    assert len(of_blog) == KEPT.days + 1
    for service, other in ((shop, blog), (blog, shop)):
        # Once, and not each day; and the small one is not called smaller than usual.
        [warning] = [text for text in service.warnings() if "other sources" in text]
        assert f": {other.name}@" in warning
        assert not [text for text in service.warnings() if "smaller" in text]


@pytest.fixture
def two_servers(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Service, Service]:
    """A database of one name on two servers, each backed up into one folder; the second is down."""
    here = make_database()
    monkeypatch.setenv("PATH", environment(here.bin_dir)["PATH"])
    with Cluster(here.cluster.major) as other:
        other.create_database(here.name)
        services = Service(here, tmp_path), Service(Database(other, here.name), tmp_path)
        for number, service in enumerate(services):
            service.run(datetime.now(UTC) + timedelta(seconds=number))
    return services


def test_the_latest_is_that_of_the_source_that_is_meant(
    two_servers: tuple[Service, Service], tmp_path: Path
) -> None:
    for service in two_servers:  # one of the servers is down
        assert latest(service) == service.made[0]
    anywhere = environment(STORAGE_URL=tmp_path.as_uri())
    listed = run_pgstash(["list"], anywhere).stdout
    labels = {row.split()[0]: row.split()[-4] for row in listed.splitlines()[1:]}
    assert " SOURCE " in listed
    for command in (["show"], ["prune"]):
        done = run_pgstash(command, anywhere)
        assert done.returncode == SourceUnclearError.exit_code, done.stderr
        assert "there are backups of several sources under this prefix:" in done.stderr
        for name, label in labels.items():
            assert f"  {label}: 1 backup, the newest is {name}" in done.stderr
        assert "--source" in done.stderr
    assert run_pgstash(["show", listed.split()[8], "--source", "x"], anywhere).returncode == 2
    values = settings.load(dict(anywhere), Path("/none"), needs=["storage"])

    def found(name: str = "latest", **more: Any) -> str:
        return stored.manifest_of(values, stored.Wanted(name, **more), events.ignore).archive

    for service in two_servers:
        [made] = service.made
        assert found(source=labels[made]) == found(made) == made
    with pytest.raises(SourceUnclearError, match="several sources under this prefix"):
        found(at=datetime.now(UTC))
    with pytest.raises(SourceUnclearError, match="several sources under this prefix"):
        drill.drill_backup(values, "latest", Runtime(events.ignore))
    with pytest.raises(SourceUnclearError, match='there is no source "x" under this prefix, only:'):
        found(source="x")
    here = two_servers[0]
    # Where libpq's variables locate the source, a restore withholds them from libpq.
    located = {"PGHOST": "127.0.0.1", "PGPORT": here.port, "PGDATABASE": here.name}
    target = {"RESTORE_URL": "postgresql://127.0.0.1:1/never"}
    values_of_restore = settings.load(
        {**anywhere, **located, **target}, Path("/none"), needs=["storage", "target"]
    )
    wanted = stored.Wanted("latest")
    assert stored.open_archive(values_of_restore, wanted, events.ignore).name == here.made[0]
    with pytest.raises(SourceUnclearError, match=f'several sources have a database "{here.name}":'):
        found(source=here.name)
    here.env["DATABASE_URL"] = here.env["DATABASE_URL"].replace(here.name, "never_made")
    with pytest.raises(SourceUnclearError, match='no backup of the database "never_made"'):
        latest(here)


@pytest.mark.long
def test_a_database_that_was_moved(two_servers: tuple[Service, Service], tmp_path: Path) -> None:
    """The old backups stay, are reported, and go when the user says that they are the same."""
    here, there = two_servers
    old = "backup_20200101_000000.sql.gz"
    folder = tmp_path / PREFIX
    for path in folder.glob(f"*{here.made.pop().partition('.')[0]}*"):
        path.unlink()
    for ending in ("", ".metadata.json"):
        name = f".{there.made[0]}{ending}" if ending else there.made[0]
        (folder / name).rename(folder / name.replace(there.made[0], old))
    for hours in (2, 1):
        here.run(datetime.now(UTC) - timedelta(hours=hours))
        assert len([text for text in here.warnings() if "other sources" in text]) == 1
    done = run_pgstash(["check", "storage"], here.env)
    [line] = [line for line in done.stdout.splitlines() if "other sources" in line]
    assert old in done.stdout
    assert line.startswith("warning")
    listed = json.loads(run_pgstash(["list", "--json"], here.env).stdout)
    both = [word for label in {each["source"] for each in listed} for word in ("--source", label)]
    for options in ([], both):
        assert old in left(tmp_path)
        done = run_pgstash(["prune", *options], here.env)
        assert done.returncode == 0, done.stderr
        assert ("leave   1 backup of another source  " in done.stdout) == (options == [])
    assert old not in left(tmp_path)
    assert set(here.made) <= left(tmp_path)


def test_a_fresh_backup_and_a_proof_of_another_source_count_for_nothing(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, blog = Service(make_database(), tmp_path), Service(make_database(), tmp_path)
    monkeypatch.setenv("PATH", shop.env["PATH"])
    blog.run(datetime.now(UTC))
    assert blog.made[0] in health.healthcheck(blog.settings())
    with pytest.raises(StaleBackupError):
        health.healthcheck(shop.settings())
    [backup] = backups.stored(tmp_path)
    base, backup_id = backup.archive.name.partition(".")[0], backup.manifest["id"]
    now = datetime.now(UTC)
    proof = names.proof_name(base, backup_id, now, encrypted=False)
    (tmp_path / PREFIX / proof).write_bytes(b"{}")
    for service, due in ((blog, False), (shop, True)):
        values = service.settings(VERIFY_INTERVAL="3600")
        assert is_drill_due(values, now) is due
    shop.run(now + timedelta(seconds=10))
    found = drill.unproven(shop.settings(), events.ignore)
    assert len(found) == 1
    assert found[0] != backup.archive.name


def test_every_object_says_of_which_source_it_is(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    backup = backups.back_up(database, tmp_path)
    host = backup.manifest["database"]
    expected = Identity(database.name, host["system"], host["host"], str(host["port"]))
    assert login.identify(database.uri, 10) == expected
    system = database.run_sql("SELECT system_identifier FROM pg_control_system()").strip()
    assert host["system"] == system
    for path in backup.archive.parent.glob(".*.metadata.json"):
        assert Identity.of(json.loads(path.read_text())) == expected, path.name


def test_a_server_that_does_not_tell_its_identifier(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some managed ones: host and port take its place."""
    database = make_database()
    with database.connect() as session:
        session.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        session.execute("CREATE ROLE plain LOGIN IN ROLE pg_read_all_data")
    plain = database.uri.replace(f"//{database.cluster.user}@", "//plain@")
    service = Service(database, tmp_path)
    service.env["DATABASE_URL"] = plain
    monkeypatch.setenv("PATH", service.env["PATH"])
    for after in range(2):
        service.run(datetime.now(UTC) + timedelta(seconds=after))
    assert not [text for text in service.warnings() if "other sources" in text]
    found = login.identify(plain, 10)
    assert found == Identity(database.name, None, "127.0.0.1", str(database.cluster.port))
    assert (
        stored.manifest_of(
            service.settings(), stored.Wanted("latest"), events.ignore
        ).database.system
        is None
    )
    database.cluster.maintenance.run_sql("DROP OWNED BY plain; DROP ROLE plain")


@pytest.mark.long
def test_a_server_that_tells_its_identifier_no_more(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest backup is not one of long ago that says more than those after it."""
    database = make_database()
    with database.connect() as session:
        session.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
        session.execute("CREATE ROLE reticent LOGIN IN ROLE pg_read_all_data")
    service = Service(database, tmp_path)
    monkeypatch.setenv("PATH", service.env["PATH"])
    told = service.env["DATABASE_URL"]
    untold = told.replace(f"//{database.cluster.user}@", "//reticent@")
    start = datetime.now(UTC) - timedelta(hours=9)
    for hours, url in enumerate([told, untold, untold]):
        service.env["DATABASE_URL"] = url
        service.run(start + timedelta(hours=hours))
    assert latest(service) == service.made[-1]
    # Down, or telling it again: nobody knows whose the later ones are.
    down = settings.load(
        service.env | {"DATABASE_URL": f"postgresql://127.0.0.1/{database.name}"}, Path("/none")
    )
    service.env["DATABASE_URL"] = told
    unclear = f"latest: {service.made[-1]} is newer than the backups of {database.name}@"
    for values in (down, service.settings()):
        with pytest.raises(SourceUnclearError, match=unclear) as caught:
            stored.manifest_of(values, stored.Wanted("latest"), events.ignore)
        labels = [line.split()[0].rstrip(":") for line in caught.value.message.splitlines()[1:]]
        for label, made in zip(labels, (service.made[0], service.made[-1]), strict=True):
            wanted = stored.Wanted("latest", source=label)
            assert stored.manifest_of(values, wanted, events.ignore).archive == made
    # A drill is no reason to refuse: it proves what is certain, and says what it leaves out.
    values = service.settings(VERIFY_DATABASE_URL=database.cluster.maintenance.uri)
    drill.drill_backup(values, "latest", Runtime(service.heard.append))
    [proven] = [each.name for each in service.heard if isinstance(each, events.DrillSucceeded)]
    assert proven == service.made[0]
    assert [each for each in service.warnings() if each.startswith(f"{service.made[-1]} is newer")]
    service.run(start + timedelta(hours=5))
    assert latest(service) == service.made[-1]
    before = stored.Wanted("latest", at=start + timedelta(hours=4))
    with pytest.raises(SourceUnclearError, match=unclear.replace(service.made[-1], ".*")):
        stored.manifest_of(service.settings(), before, events.ignore)
    # The command of the warning can be run.
    [_, warning] = [text for text in service.warnings() if "other sources" in text]
    done = run_pgstash(warning.partition("remove them: pgstash ")[2].split(), service.env)
    assert done.returncode == 0, done.stderr
    assert "leave " not in done.stdout
    database.cluster.maintenance.run_sql("DROP OWNED BY reticent; DROP ROLE reticent")
