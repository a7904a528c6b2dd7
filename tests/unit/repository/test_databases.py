"""The databases that have backups under a shared prefix."""

from __future__ import annotations

from pgstash.format import names
from pgstash.format.folders import folder_of
from pgstash.repository import databases
from pgstash.storage.memory import MemoryStorage

ARCHIVE = "backup_20260101_000000.sql.gz"
MANIFEST = names.manifest_name("backup_20260101_000000", "0" * 16, encrypted=False)
NAMES = ["Shop", "a/b", "shop", "ünï 'x\"\n", "..", "x" * 63]


def store(*keys: str) -> MemoryStorage:
    storage = MemoryStorage()
    for key in keys:
        storage.put(key, b"", {})
    return storage


def test_each_database_with_a_backup_is_found_by_its_folder() -> None:
    stored = store(*(f"p/{folder_of(name)}/{ARCHIVE}" for name in NAMES))
    assert databases.with_folder(stored, "p") == sorted(NAMES)
    assert databases.with_backups(stored, "p") == sorted(NAMES)


def test_other_folders_are_ignored() -> None:
    stored = store(
        f"p/shop/{ARCHIVE}",
        f"p/Shop/{ARCHIVE}",  # not as pgstash writes it: =53hop
        f"p/=6/{ARCHIVE}",
        f"p/=ff/{ARCHIVE}",  # not UTF-8
        f"p/=61/{ARCHIVE}",  # an a has no need of it
        f"p/a b/{ARCHIVE}",
        f"p-other/x/{ARCHIVE}",
        f"p/{ARCHIVE}",
        f"q/{ARCHIVE}",
    )
    assert databases.with_folder(stored, "p") == ["shop"]
    assert databases.with_backups(stored, "p") == ["shop"]
    assert databases.with_backups(stored, "none") == []
    assert databases.other_folders(stored, "p") == ["=6", "=61", "=ff", "Shop", "a b"]
    assert databases.other_folders(store(f"p/Shop/{MANIFEST}"), "p") == []


def test_a_folder_without_a_backup_does_not_count() -> None:
    stored = store(
        f"p/empty/{MANIFEST}", "p/other/notes.txt", f"p/deeper/x/{ARCHIVE}", f"p/shop/{ARCHIVE}"
    )
    assert databases.with_folder(stored, "p") == ["deeper", "empty", "other", "shop"]
    assert databases.with_backups(stored, "p") == ["shop"]
