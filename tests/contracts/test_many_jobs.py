"""Many databases in one process: what is listed, found in the store, started and reported."""

from __future__ import annotations

import signal
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import job_survey, jobs, once_for_all, service_of_jobs
from pgstash.errors import DatabaseUnreachableError, Interrupted, JobsFailedError
from pgstash.format.folders import folder_of
from pgstash.runtime import Runtime, utc_now
from support import backups
from support.backups import PREFIX
from support.postgres import Database

if TYPE_CHECKING:
    from pathlib import Path

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
    assert database.name in heard.messages(events.Warned)[-1]


def test_a_server_that_does_not_answer_is_reported_as_a_failed_backup(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.name  # its settings are in the environment
    monkeypatch.setattr(service_of_jobs, "_FIRST_DELAY", timedelta(0))
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
