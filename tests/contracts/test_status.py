"""The state of all jobs, by a store in a directory, without a server."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgstash import events, settings
from pgstash.commands import jobs as server_jobs
from pgstash.commands import status
from pgstash.errors import StorageUnreachableError
from pgstash.format import names
from pgstash.format.folders import folder_of
from pgstash.settings import jobs
from pgstash.storage.directory.storage import DirectoryStorage

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ID = "0123456789abcdef"


@dataclass
class Store:
    """A primary in a directory, and a copy in another."""

    folder: Path
    heard: list[events.Event]

    def put(self, database: str | None, age: timedelta, place: str = "primary") -> None:
        """Store a backup of a database, or of the one that has the prefix itself."""
        prefix = f"p/{folder_of(database)}" if database else "p"
        base = names.base_name(NOW - age)
        storage = DirectoryStorage(self.folder / place)
        metadata = {"id": ID, "database": database or "shop", "system": "1"}
        storage.put(f"{prefix}/{names.archive_name(base, encrypted=False)}", b"x", metadata)
        proof = names.proof_name(base, ID, NOW - age, encrypted=False)
        storage.put(f"{prefix}/{proof}", b"x", {"id": ID})

    def overview(self, job: str | None = None, **more: str) -> status.Overview:
        return status.overview(self.load(job, **more), NOW, self.heard.append)

    def load(self, job: str | None = None, **more: str) -> settings.Settings:
        given = {
            "DATABASE_URL": "postgresql://u@127.0.0.1:1/postgres",
            "STORAGE_URL": (self.folder / "primary").as_uri(),
            "BACKUP_PREFIX": "p",
            "BACKUP_INTERVAL": "3600",
        }
        values = settings.load(given | more, Path("/none"), needs=["storage"])
        return jobs.of_job(values, job, may_be_all=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    for name in ("primary", "copy"):
        (tmp_path / name).mkdir()
    return Store(tmp_path, [])


def conditions(found: status.Overview) -> list[tuple[str, str]]:
    return [(line.job, line.condition) for line in found.lines]


def test_without_the_server_the_store_is_shown_the_worst_first(store: Store) -> None:
    for name, age in (("fresh", HOUR), ("Older", 9 * HOUR), ("old", 3 * HOUR), ("test_x", HOUR)):
        store.put(name, age)
    (store.folder / "primary/p/empty").mkdir()
    (store.folder / "primary/p/NoDatabase").mkdir()
    found = store.overview(DATABASES="*,named,!test_*")
    assert conditions(found) == [
        ("named", "never"),
        ("Older", "stale"),
        ("old", "stale"),
        ("fresh", "ok"),
        ("test_x", "gone"),
    ]
    assert "127.0.0.1" in found.unanswered
    assert [line.is_bad for line in found.lines] == [True, True, True, False, False]
    gone = found.lines[-1]
    assert (gone.reason, gone.found.due, gone.found.stale_at) == (
        "not selected by DATABASES",
        None,
        None,
    )
    assert gone.found.last
    assert found.lines[3].found.proven == NOW - HOUR


@pytest.mark.parametrize("pattern", ["*", "shp*"])
def test_nothing_known_is_not_well(store: Store, pattern: str) -> None:
    """A server that does not answer, and no backup of a database that is selected."""
    if pattern != "*":
        store.put("shop", HOUR)
    found = store.overview(DATABASES=pattern)
    assert found.lines[0].is_bad
    assert (found.lines[0].job, found.lines[0].condition) == ("*", "unknown")
    assert [line.condition for line in found.lines[1:]] == ["gone"] * (pattern != "*")


def test_one_job(store: Store) -> None:
    store.put("fresh", HOUR)
    store.put("other", HOUR)
    assert conditions(store.overview("fresh", DATABASES="*")) == [("fresh", "ok")]
    assert conditions(store.overview("none", DATABASES="*")) == [("none", "never")]


def test_without_many_databases(store: Store) -> None:
    database = "postgresql://u@127.0.0.1:1/shop"
    assert conditions(store.overview(DATABASE_URL=database)) == [("shop", "never")]
    store.put(None, HOUR)
    found = store.overview(DATABASE_URL=database)
    assert conditions(found) == [("shop", "ok")]
    assert found.unanswered == "the database does not answer"
    # Without a source, the prefix names the job, and nothing could be asked.
    nameless = store.overview(DATABASE_URL="")
    assert (conditions(nameless), nameless.unanswered) == ([("p", "ok")], "")


def test_which_copies_have_the_newest_backup(store: Store) -> None:
    store.put("a", HOUR)
    store.put("a", HOUR, "copy")
    store.put("b", HOUR)
    store.put("b", 2 * HOUR, "copy")
    copies = {
        "COPY_TO": "usb,off",
        "COPY_USB_STORAGE_URL": (store.folder / "copy").as_uri(),
        "COPY_OFF_STORAGE_URL": (store.folder / "none").as_uri(),
    }
    found = store.overview(DATABASES="*", **copies)
    assert {line.job: line.copies for line in found.lines} == {
        "a": {"usb": True, "off": None},
        "b": {"usb": False, "off": None},
    }
    [warned] = [each for each in store.heard if isinstance(each, events.Warned)]
    assert warned.message.startswith("The copy off cannot be read: ")


def test_a_job_that_cannot_be_read_hides_no_other(store: Store) -> None:
    store.put("a", HOUR)
    store.put("b", HOUR)
    folder = store.folder / "primary/p/a"
    shutil.rmtree(folder)
    folder.symlink_to(store.folder)  # leads out of the store, which is refused
    found = store.overview(DATABASES="a,b")
    assert conditions(found) == [("a", "unknown"), ("b", "ok")]
    assert found.lines[0].is_bad
    assert found.lines[0].reason


def test_a_store_that_does_not_answer_is_an_error(store: Store) -> None:
    shutil.rmtree(store.folder / "primary")
    with pytest.raises(StorageUnreachableError):
        store.overview(DATABASES="*")


def test_the_jobs_that_have_backups(store: Store) -> None:
    store.put("Shop", HOUR)
    store.put("gone", HOUR)
    (store.folder / "primary/p/empty").mkdir()
    found = server_jobs.stored(store.load(DATABASES="S*"))
    assert [(each.name, each.settings.backup_prefix) for each in found] == [
        ("Shop", "p/=53hop"),
        ("gone", "p/gone"),
    ]


def test_if_the_server_is_gone_its_backups_count_wherever_it_was(store: Store) -> None:
    storage = DirectoryStorage(store.folder / "primary")
    name = names.archive_name(names.base_name(NOW - HOUR), encrypted=False)
    for folder, database in (("a", "a"), ("b", "other")):
        storage.put(f"p/{folder}/{name}", b"x", {"database": database, "host": "db", "port": "1"})
    assert conditions(store.overview(DATABASES="*,a,b")) == [("b", "never"), ("a", "ok")]
