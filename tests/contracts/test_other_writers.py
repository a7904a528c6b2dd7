"""What the bucket tells of others who write under our prefix, over every store."""

from __future__ import annotations

import shlex
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

import pytest

from pgstash import events
from pgstash.backup import other_writers
from pgstash.errors import StorageRefusedError
from pgstash.format import identity
from pgstash.format.identity import Identity
from pgstash.format.metadata import encoded, header
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.storage.interface import Storage

OLD = "db/backup_20200101_000000.sql.gz"
NEW = "db/backup_20200102_000000.sql.gz"


SHOP = Identity("shop", "7301234567890123456", "db1", "5432")


def look(storage: Storage, *, later: timedelta = timedelta(), source: Identity = SHOP) -> list[str]:
    """Return the warnings."""
    return looked(storage, later=later, source=source)[0]


def looked(
    storage: Storage, *, later: timedelta = timedelta(), source: Identity = SHOP
) -> tuple[list[str], other_writers.OtherWriters]:
    heard: list[events.Event] = []
    now = datetime.now(UTC) + later
    found = other_writers.look(
        storage, "db", source, Owners(storage), Runtime(heard.append, now=lambda: now)
    )
    return [event.message for event in heard if isinstance(event, events.Warned)], found


@pytest.mark.usefixtures("uploads_are_listed")
def test_an_upload_that_is_on_its_way(storage: Storage) -> None:
    with ExitStack() as uploads:
        for key in ("db2/backup_20200101_000000.sql.gz", "db/video.mp4", "db/other/" + OLD):
            uploads.enter_context(storage.upload(key, metadata={}, expected_size=1))
        assert look(storage) == []
        uploads.enter_context(storage.upload(OLD, metadata={}, expected_size=1))
        [pending] = [each for each in storage.pending("") if each.key == OLD]
        [warning] = look(storage, later=timedelta(minutes=5, seconds=30))
        assert f"{storage.url(OLD)}, begun 5 minutes ago" in warning
        assert f"(upload id {pending.upload_id})." in warning
        uploads.enter_context(storage.upload(NEW, metadata={}, expected_size=1))
        assert ", and 1 more. " in look(storage)[0]
        assert look(storage, later=other_writers.YOUNG + timedelta(minutes=1)) == []


def store(storage: Storage, day: int, metadata: dict[str, str]) -> None:
    storage.put(f"db/backup_202001{day:02}_000000.sql.gz", b"data", encoded(metadata))


def back_up(storage: Storage, day: int, source: Identity = SHOP) -> list[str]:
    """Look and store what a backup would; return the warnings."""
    warnings, known = looked(storage, source=source)
    store(storage, day, known.metadata(datetime(2020, 1, day, tzinfo=UTC)))
    return warnings


@pytest.mark.plainest_stores_first
def test_each_other_source_is_reported_once(storage: Storage) -> None:
    cafe, moved = Identity("café", "1", "db1"), Identity("shop", "2", "db1", "5432")
    assert back_up(storage, 1) == []
    store(storage, 2, cafe.metadata())
    [warning] = back_up(storage, 3)
    assert f"other sources: {cafe.label}. This source is {SHOP.label}." in warning
    assert f"--source {SHOP.label} --source {shlex.quote(cafe.label)}" in warning
    assert back_up(storage, 4) == []
    store(storage, 5, cafe.metadata())
    store(storage, 6, moved.metadata())
    [warning] = back_up(storage, 7)
    assert f"other sources: {moved.label}. " in warning
    assert back_up(storage, 8) == []
    # A failover: the host is another, the server's identifier the same.
    assert back_up(storage, 9, replace(SHOP, host="db2")) == []


@pytest.mark.plainest_stores_first
def test_more_sources_than_metadata_hold(storage: Storage) -> None:
    for day in range(1, 10):
        store(storage, day, Identity("other", str(day)).metadata())
    [warning] = back_up(storage, 10)
    assert f"{Identity('other', '5').label} and 4 more." in warning
    many = identity.reported_after([], [Identity("other", str(number)) for number in range(100)])
    assert len(header(many)) == len(many) <= 255


@pytest.mark.plainest_stores_first
def test_where_the_bucket_does_not_tell_the_next_backup_asks_anew(storage: Storage) -> None:
    store(storage, 1, Identity("other", "1").metadata())
    assert len(back_up(storage, 2)) == 1
    store(storage, 3, other_writers.OtherWriters(SHOP).metadata(datetime.now(UTC)))
    warnings, known = looked(storage)
    assert warnings == []
    assert known.since == datetime(2020, 1, 2, tzinfo=UTC)


@pytest.mark.plainest_stores_first
def test_a_backup_that_does_not_say(storage: Storage) -> None:
    storage.put(OLD, b"data", {})
    assert look(storage) == []


class Mute(MemoryStorage):
    """A store that does not list uploads."""

    def pending(self, prefix: str) -> NoReturn:
        raise StorageRefusedError(f"cannot list the uploads under {prefix}: NotImplemented")


def test_a_store_that_cannot_list_uploads() -> None:
    storage = Mute()
    storage.put(OLD, b"data", {"database": "other"})
    heard: list[events.Event] = []
    other_writers.look(storage, "db", SHOP, Owners(storage), Runtime(heard.append))
    assert [type(event) for event in heard] == [events.Notice, events.Warned]


def test_a_folder_with_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    loop = tmp_path / "db" / "backup_loop"
    loop.symlink_to(loop)
    assert look(DirectoryStorage(tmp_path)) == []
