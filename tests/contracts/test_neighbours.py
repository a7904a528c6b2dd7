"""What the bucket tells of others who write under our prefix, over every store."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from pgstash import events, neighbours
from pgstash.errors import StorageRefusedError
from pgstash.storage.directory import DirectoryStorage
from pgstash.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.storage.interface import Storage

OLD = "db/backup_20200101_000000.sql.gz"
NEW = "db/backup_20200102_000000.sql.gz"


def look(storage: Storage, *, later: timedelta = timedelta(), shop: str = "shop") -> list[str]:
    """Return the warnings."""
    heard: list[events.Event] = []
    now = datetime.now(UTC) + later
    neighbours.look(storage, "db", shop, now=now, emit=heard.append)
    return [event.message for event in heard if isinstance(event, events.Warned)]


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
        assert look(storage, later=neighbours.YOUNG + timedelta(minutes=1)) == []


def test_the_newest_backup_of_another_database(storage: Storage) -> None:
    assert look(storage) == []
    storage.put(OLD, b"data", {"database": "caf%C3%A9", "host": "db1"})
    [warning] = look(storage)
    assert 'backup_20200101_000000.sql.gz, is of the database "café", not of "shop"' in warning
    assert look(storage, shop="caf%C3%A9") == []
    storage.put(NEW, b"data", {"database": "shop", "host": "db2"})
    assert look(storage) == []


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
    neighbours.look(storage, "db", "shop", now=datetime.now(UTC), emit=heard.append)
    assert [type(event) for event in heard] == [events.Notice, events.Warned]


def test_a_folder_with_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    loop = tmp_path / "db" / "backup_loop"
    loop.symlink_to(loop)
    assert look(DirectoryStorage(tmp_path)) == []
