"""A backup takes the first second that no other one of its prefix began in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgstash import events
from pgstash.backup.job import unused_name
from pgstash.errors import ObjectExistsError
from pgstash.runtime import Runtime
from pgstash.storage.memory import MemoryStorage

# Just before the next second, so that nobody waits for it.
FIRST = datetime(2026, 1, 31, 2, 0, 0, 999_999, UTC)


def runtime() -> Runtime:
    """Return one in which each look at the clock is a second later."""
    seconds = iter(range(1000))
    return Runtime(events.ignore, now=lambda: FIRST + timedelta(seconds=next(seconds)))


@pytest.mark.parametrize(
    "taken",
    [
        ["backup_20260131_020000.sql.gz"],
        ["backup_20260131_020000.sql.gz.enc", "backup_20260131_020001.sql.gz"],
        ["backup_20260131_020000.0123456789abcdef.manifest.json.gz"],
    ],
    ids=["plain", "two", "a manifest alone"],
)
def test_a_name_that_is_taken_is_passed_over(taken: list[str]) -> None:
    storage = MemoryStorage()
    for name in taken:
        storage.put(f"p/{name}", b"", {})
    started, base = unused_name(storage, "p", runtime())
    assert started == FIRST + timedelta(seconds=len(taken))
    assert base == f"backup_20260131_02000{len(taken)}"


def test_names_of_another_prefix_are_free() -> None:
    storage = MemoryStorage()
    storage.put("q/backup_20260131_020000.sql.gz", b"", {})
    assert unused_name(storage, "p", runtime())[0] == FIRST


def test_it_is_not_tried_for_ever() -> None:
    storage = MemoryStorage()
    for second in range(60):
        storage.put(f"p/backup_20260131_0200{second:02}.sql.gz", b"", {})
    with pytest.raises(ObjectExistsError):
        unused_name(storage, "p", runtime())
