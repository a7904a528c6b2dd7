"""Many databases in one process: what is listed, found in the store, started and reported."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import job_runs, job_survey, jobs, listings, once_for_all, service_of_jobs
from pgstash.commands.notifications import listening
from pgstash.errors import DatabaseUnreachableError, Interrupted, JobsFailedError
from pgstash.format.folders import folder_of
from pgstash.processes.children import Children, Ended
from pgstash.runtime import Runtime, utc_now
from pgstash.service.dispatcher import Run
from support import backups
from support.backups import PREFIX
from support.hooks import receiving
from support.postgres import Database, free_port

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

NOWHERE = "postgresql://u:p@127.0.0.1:1/x"


class Heard:
    """Collects messages; a message with these words ends the service like SIGTERM."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []
        self.last_words = ""

    def __call__(self, event: events.Event) -> None:
        self.events.append(event)
        if self.last_words and self.last_words in str(event):
            raise Interrupted(signal.SIGTERM)

    def messages(self, kind: type[events.Informed | events.Warned]) -> list[str]:
        return [each.message for each in self.events if isinstance(each, kind)]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def database(
    make_database: MakeDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """A database that the environment of this process selects by its name."""
    database = make_database()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store").mkdir()
    server = Database(database.cluster, "postgres")
    given = backups.settings(server, tmp_path / "store") | {
        "DATABASES": database.name,
        "DUMP_JOBS": "1",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", str(database.bin_dir), prepend=":")
    return database


def test_once_for_all(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    once_for_all.back_up_all(settings.load(), Runtime(heard))
    assert heard.messages(events.Informed) == ["All jobs succeeded: 1 backup"]
    assert (
        len(
            list(
                (tmp_path / "store" / PREFIX / database.name).glob("backup_????????_??????.sql.gz")
            )
        )
        == 1
    )

    values = settings.load()
    found = jobs.on_server(values)
    stored = job_survey.stored(found.jobs, Runtime(heard))[database.name]
    assert stored.backup is not None
    assert utc_now() - stored.backup < timedelta(minutes=10)

    # A database that is gone, and one that never was.
    (tmp_path / "store" / PREFIX / folder_of("was here")).mkdir()
    monkeypatch.setenv("DATABASES", f"was*,{database.name},never")
    monkeypatch.setenv("REQUIRE_TABLES", "missing")
    with pytest.raises(JobsFailedError) as caught:
        once_for_all.back_up_all(settings.load(), Runtime(heard))
    lines = caught.value.message.splitlines()
    assert lines[:2] == ["2 of 2 jobs failed", "never: the server has no such database"]
    assert lines[2].startswith(f"{database.name}: exit status 51: ")
    assert "Not backed up: never. Reason: DATABASES names them" in heard.messages(events.Warned)[0]
    assert heard.messages(events.Informed)[-1].endswith("does not have: was here")


def test_a_database_that_is_named_and_takes_no_connections_has_failed(
    database: Database, heard: Heard
) -> None:
    server = Database(database.cluster, "postgres")
    change = f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS'
    server.run_sql(f"{change} false")
    try:
        with pytest.raises(JobsFailedError) as caught:
            once_for_all.back_up_all(settings.load(), Runtime(heard))
    finally:
        server.run_sql(f"{change} true")
    assert caught.value.message.splitlines() == [
        "1 of 1 job failed",
        f"{database.name}: it takes no connections",
    ]
    [missed] = [each for each in heard.events if isinstance(each, events.BackupFailed)]
    assert missed.name == database.name


@pytest.mark.parametrize("once", [True, False])
def test_a_failure_that_its_process_could_not_post_is_posted(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    once: bool,  # noqa: FBT001 - parameter
) -> None:
    """For no single database: a URL of pings that has a place for its name is not used."""
    environment = {**settings.environment_of_jobs(), "COMPRESSION_LEVEL": "none"}
    seen: list[events.BackupFailed] = []

    def hear(event: events.Event) -> None:
        if isinstance(event, events.BackupFailed):
            seen.append(event)

    def hear_and_end(event: events.Event) -> None:
        hear(event)
        if "next attempt" in str(event):
            raise Interrupted(signal.SIGTERM)

    for module in (once_for_all, service_of_jobs):
        monkeypatch.setattr(module, "environment_of_jobs", lambda: environment)
    with receiving() as receiver:
        hook, ping = receiver.url("/hook"), receiver.url("/ping/{job}")
        values = settings.load(given={"WEBHOOK_URL": hook, "HEALTHCHECK_PING_URL": ping})
        with listening(values) as post:

            def emit(event: events.Event) -> None:
                post(event)
                (hear if once else hear_and_end)(event)

            run = once_for_all.back_up_all if once else service_of_jobs.serve
            with pytest.raises(JobsFailedError if once else Interrupted):
                run(values, Runtime(emit))
        assert receiver.targets == ["/hook"]
    [failed] = seen
    assert (failed.name, failed.database) == (database.name, database.name)
    assert (failed.error, failed.exit_code) == ("RunError", 1)
    assert (failed.next_attempt is None) == once


def test_a_listing_that_fails_for_an_hour_is_posted_and_makes_the_service_unready(
    database: Database, make_database: MakeDatabase, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """Backups of the known databases go on, but a new one would be missed."""
    used = make_database()
    port = free_port()
    monkeypatch.setattr(service_of_jobs, "LISTING", timedelta(0))
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)
    passed = timedelta(0)

    def hear(event: events.Event) -> None:
        nonlocal passed
        heard(event)
        if "due now" in str(event):
            Database(database.cluster, "postgres").run_sql(f'DROP DATABASE "{used.name}"')
        elif "could not be listed" in str(event):
            passed = 2 * listings.UNLISTED
        elif isinstance(event, events.BackupFailed):
            assert event.name == "all databases"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30)
            jobs = json.load(caught.value)["jobs"]
            assert jobs["all databases"]["status"] == "unavailable"
            raise Interrupted(signal.SIGTERM)

    values = settings.load(given={"DATABASE_URL": used.uri, "HEALTH_PORT": str(port)})
    with pytest.raises(Interrupted):
        service_of_jobs.serve(values, Runtime(hear, now=lambda: utc_now() + passed))


def test_the_store_decides_when_a_database_that_comes_back_is_due(
    database: Database, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setattr(service_of_jobs, "LISTING", timedelta(0))
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)
    monkeypatch.setenv("DATABASES", f"{database.name}*")
    once_for_all.back_up_all(settings.load(), Runtime(heard))
    server = Database(database.cluster, "postgres")
    change = f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS'

    def hear(event: events.Event) -> None:
        heard(event)
        if "due now" in str(event):
            server.run_sql(f"{change} true")
        elif database.name in str(event) and "no connections" not in str(event):
            raise Interrupted(signal.SIGTERM)

    server.run_sql(f"{change} false")
    try:
        with pytest.raises(Interrupted):
            service_of_jobs.serve(settings.load(), Runtime(hear))
    finally:
        server.run_sql(f"{change} true")
    again = f"Databases with backups are there again: {database.name}"
    assert heard.messages(events.Informed)[-1] == again


def test_a_signal_without_a_name_is_a_failure() -> None:
    failure = job_runs.failure_of(Ended(Run("a", "backup"), -40, None))
    assert failure is not None
    assert "signal 40" in failure.message
    assert failure.retryable


def test_a_store_that_does_not_answer_is_asked_once(
    database: Database, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    monkeypatch.setenv("DATABASES", "*")
    values = settings.load(given={"STORAGE_URL": "file:///nonexistent/folder"})
    found = jobs.on_server(values)
    assert database.name in {job.name for job in found.jobs}
    assert job_survey.stored(found.jobs, Runtime(heard)) == {}
    assert len(heard.messages(events.Warned)) == 1


def test_the_service_lists_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """It backs up what is there, and ends with the signal when its database is gone."""
    monkeypatch.setattr(service_of_jobs, "LISTING", timedelta(seconds=1))
    store = tmp_path / "store" / PREFIX / database.name

    def hear(event: events.Event) -> None:
        heard(event)
        if "due now" in str(event):
            heard.last_words = "Not backed up any more"

    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)

    def now_and_drop() -> datetime:
        if list(store.glob("backup_????????_??????.sql.gz")):
            Database(database.cluster, "postgres").run_sql(
                f'DROP DATABASE IF EXISTS "{database.name}" WITH (FORCE)'
            )
        return utc_now()

    with pytest.raises(Interrupted):
        service_of_jobs.serve(settings.load(), Runtime(hear, now=now_and_drop))
    assert heard.messages(events.Informed)[0] == "1 database to back up: 1 due now"
    [missed] = [each for each in heard.events if isinstance(each, events.BackupFailed)]
    assert (missed.name, missed.exit_code) == (database.name, 11)
    assert database.name in heard.messages(events.Warned)[-1]


def test_a_database_that_was_invalid_before_it_was_gone_is_reported(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """DROP DATABASE marks it as invalid first, and a listing may fall in between."""
    monkeypatch.setattr(service_of_jobs, "LISTING", timedelta(seconds=1))
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.2)
    store = tmp_path / "store" / PREFIX / database.name
    heard.last_words = "Not backed up any more"

    def now_and_drop() -> datetime:
        server = Database(database.cluster, "postgres")
        if any("left them invalid" in str(each) for each in heard.events):
            server.run_sql(f'DROP DATABASE IF EXISTS "{database.name}" WITH (FORCE)')
        elif list(store.glob("backup_????????_??????.sql.gz")):
            name = database.name.replace("'", "''")
            server.run_sql(f"UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{name}'")
        return utc_now()

    with pytest.raises(Interrupted):
        service_of_jobs.serve(settings.load(), Runtime(heard, now=now_and_drop))
    assert database.name in heard.messages(events.Warned)[-1]


def test_a_server_that_does_not_answer_is_reported_as_a_failed_backup(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.name  # its settings are in the environment
    monkeypatch.setattr(listings, "_FIRST_DELAY", timedelta(0))
    values = settings.load(given={"DATABASE_URL": NOWHERE})
    seen: list[events.BackupFailed] = []

    def hear(event: events.Event) -> None:
        if isinstance(event, events.BackupFailed):
            seen.append(event)
            if len(seen) > 1:
                raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        service_of_jobs.serve(values, Runtime(hear))
    assert [(each.name, each.error, each.repeated) for each in seen] == [
        ("all databases", "DatabaseUnreachableError", False),
        ("all databases", "DatabaseUnreachableError", True),
    ]
    with pytest.raises(DatabaseUnreachableError):
        once_for_all.back_up_all(values, Runtime(events.ignore))


def test_a_name_that_the_locale_cannot_represent_fails_alone() -> None:
    """The service, and the other databases, go on."""
    children: Children[Run] = Children({})
    with children.ending():
        failure = job_runs.start(children, Run("\ud800", "backup"), Runtime(events.ignore))
    assert failure is not None
    assert "LC_ALL" in failure.message
    assert not failure.retryable


def test_what_runs_for_hours_is_reported_each_hour(
    database: Database, monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """It is not ended: a large database may take longer than any limit."""
    monkeypatch.setattr(service_of_jobs, "LONGEST_NAP", 0.05)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    later = timedelta(0)

    def is_job(pid: str) -> bool:
        try:
            return b"--report-to" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def now() -> datetime:
        nonlocal later
        if any(map(is_job, children.read_text().split())):
            later += timedelta(minutes=10)
        return utc_now() + later

    said: list[int] = []

    def hear(event: events.Event) -> None:
        heard(event)
        if found := re.search(
            rf"backup of {database.name} has been running for (\d+) h", str(event)
        ):
            said.append(int(found[1]))
        if len(said) > 1 or isinstance(event, events.BackupFailed):
            raise Interrupted(signal.SIGTERM)

    with pytest.raises(Interrupted):
        service_of_jobs.serve(settings.load(), Runtime(hear, now=now))
    assert 0 < said[0] < said[1]
