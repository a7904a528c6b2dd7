"""A prefix without backups: the message names the place, and others that have some."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import StorageRefusedError, StorageUnreachableError
from pgstash.format import names
from pgstash.repository import empty_prefix
from pgstash.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pgstash.errors import StorageError
    from pgstash.storage.interface import StoredObject

ID = "0123456789abcdef"


class Store(MemoryStorage):
    """A store that counts its requests, and fails those for some folders."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.fails: dict[str, StorageError] = {}

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        self._ask("list", prefix)
        return super().list(prefix, start_after=start_after)

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        self._ask("folders", within)
        return super().folders(within, complete=complete)

    def _ask(self, what: str, where: str) -> None:
        self.asked[what] += 1
        if error := self.fails.get(where):
            raise error


def store(storage: MemoryStorage, prefix: str, *, encrypted: bool = True) -> None:
    """Store a backup, its manifest and a proof, whose names come before that of the archive."""
    base = names.base_name(datetime(2026, 1, 1, tzinfo=UTC))
    for name in (
        names.archive_name(base, encrypted=encrypted),
        names.manifest_name(base, ID, encrypted=encrypted),
        *(
            names.proof_name(base, ID, datetime(2026, 1, day, tzinfo=UTC), encrypted=encrypted)
            for day in range(1, 30)
        ),
    ):
        storage.put(f"{prefix}/{name}", b"", {"id": ID})


@pytest.fixture
def storage() -> Store:
    return Store()


def hint(storage: Store, prefix: str) -> str:
    error = empty_prefix.error(storage, prefix)
    assert error.message == f"there is no backup under memory:///{prefix}/"
    return error.hint


def test_no_backup_anywhere(storage: Store) -> None:
    storage.put("logs/backup_20260101_000000.log", b"", {})
    storage.put("logs/backup_20261301_000000.sql.gz.part", b"", {})
    storage.put("backup_20260101_000000.sql.gz", b"", {})  # no prefix leads to it
    assert hint(storage, "db").startswith("Check BACKUP_PREFIX, and S3_BUCKET or STORAGE_URL")


@pytest.mark.parametrize(
    ("own", "others", "told"),
    [
        ("db", ["dbs"], "dbs"),
        ("db", ["db/shop"], "db/shop"),
        ("prod/shpo", ["prod/shop", "test/shop"], "prod/shop and test/shop"),
        ("prod/shop/daily", ["prod/shop"], "prod/shop"),
        ("db", ["a/b/c"], "a/b/c"),
        # The neighbours first, and no more than three.
        ("x/own", ["a", "b", "c", "x/y", "x/z"], "x/y, x/z and a"),
    ],
)
def test_other_prefixes_are_named(storage: Store, own: str, others: list[str], told: str) -> None:
    for prefix in others:
        store(storage, prefix)
    storage.put("unrelated/file", b"", {})
    assert hint(storage, own) == (
        f"There are backups under {told}. Set BACKUP_PREFIX to the right prefix."
    )


def test_a_large_bucket_is_not_searched_to_its_end(storage: Store) -> None:
    for number in range(1000):
        storage.put(f"customer-{number:03}/invoices/1.pdf", b"", {})
    store(storage, "postgres")
    assert hint(storage, "db").startswith("Check")
    assert storage.asked["list"] <= 25
    assert storage.asked["folders"] <= 30


def test_folders_that_may_not_be_listed_are_left_out(storage: Store) -> None:
    store(storage, "a")
    store(storage, "b")
    storage.fails = {"a/backup_": StorageRefusedError("no"), "x/": StorageRefusedError("no")}
    assert hint(storage, "x/own").startswith("There are backups under b.")
    storage.fails = {"": StorageRefusedError("no")}
    assert hint(storage, "db").startswith("Check")


def test_a_store_that_stops_answering_is_not_asked_on(storage: Store) -> None:
    for prefix in "abcd":
        store(storage, prefix)
    storage.fails = {"b/backup_": StorageUnreachableError("down")}
    assert hint(storage, "db").startswith("There are backups under a.")
    assert storage.asked["list"] == 2
