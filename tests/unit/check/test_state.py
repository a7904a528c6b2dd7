"""The state of the backups of a job, and how little is requested to know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pgstash.check import state
from pgstash.check.state import Plan, State
from pgstash.format import names
from pgstash.format.identity import Identity
from pgstash.repository import databases
from pgstash.repository.object_metadata import in_parallel
from pgstash.repository.owners import Owners
from pgstash.service.schedule import Cron, Interval
from pgstash.storage.interface import StoredObject
from pgstash.storage.memory import MemoryStorage

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
SHOP = Identity("shop", "1", "db.example.com", "5432")


class Counting(MemoryStorage):
    """Counts the requests, and the pages of 1,000 objects of each listing."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        self.asked["list"] += 1
        for number, stored in enumerate(super().list(prefix, start_after=start_after)):
            if number and number % 1000 == 0:
                self.asked["list"] += 1
            yield stored

    def head(self, key: str) -> StoredObject:
        self.asked["head"] += 1
        return super().head(key)


def store(
    storage: MemoryStorage,
    started: datetime,
    size: int = 1,
    *,
    source: Identity = SHOP,
    prefix: str = "p",
    proven: datetime | None = None,
) -> str:
    """Store a backup with its companions; return its name."""
    base, backup_id = names.base_name(started), f"{started.timestamp():016.0f}"
    stored = [names.manifest_name(base, backup_id, encrypted=False)]
    stored.append(names.globals_name(base, backup_id, encrypted=False))
    if proven:
        stored.append(names.proof_name(base, backup_id, proven, encrypted=False))
    for name in stored:
        storage.put(f"{prefix}/{name}", b"", {"id": backup_id})
    name = names.archive_name(base, encrypted=False)
    storage.put(f"{prefix}/{name}", b"x" * size, {"id": backup_id, **source.metadata()})
    return name


def plan(source: Identity | None = SHOP, window: timedelta | None = None) -> Plan:
    def due(last: datetime) -> datetime:
        return last + timedelta(hours=1)

    return Plan("p", source, lambda last: Interval(3600, last), due, window, NOW)


def look(storage: MemoryStorage, asked: Plan | None = None) -> State:
    return state.look(asked or plan(), storage, Owners(storage))


def test_a_recent_backup() -> None:
    storage = MemoryStorage()
    for hours, size in ((5, 100), (4, 100), (3, 900), (2, 120), (1, 110)):
        store(storage, NOW - hours * HOUR - 5 * MINUTE, size)
    store(storage, NOW - 4 * HOUR, 100, proven=NOW - DAY)
    name = store(storage, NOW - 5 * MINUTE, 220)
    found = look(storage)
    assert found.last
    assert (found.last.name, found.last.size, found.usual_size) == (name, 220, 110)
    assert found.proven == NOW - DAY
    assert found.due == NOW + 55 * MINUTE
    assert found.stale_at == NOW + 85 * MINUTE
    assert not found.is_stale(NOW)


def test_a_backup_that_is_too_old() -> None:
    storage = MemoryStorage()
    store(storage, NOW - 3 * HOUR)
    found = look(storage)
    assert found.is_stale(NOW)
    assert (found.due, found.stale_at) == (NOW - 2 * HOUR, NOW - HOUR - 30 * MINUTE)
    assert (found.usual_size, found.proven) == (None, None)


def test_no_backup() -> None:
    storage = MemoryStorage()
    assert look(storage) == State()
    store(storage, NOW - HOUR, 0)  # empty
    store(storage, NOW + 2 * HOUR)  # a wrong clock's
    store(storage, NOW - HOUR, prefix="p/other")
    assert look(storage) == State()
    assert not look(storage).is_stale(NOW)


def test_backups_of_another_server_do_not_count() -> None:
    storage = MemoryStorage()
    name = store(storage, NOW - 3 * HOUR)
    other = store(storage, NOW - MINUTE, source=replace(SHOP, system="2", host="old.example.com"))
    for source, expected in (
        (SHOP, name),
        (replace(SHOP, system=None), name),  # the server did not answer
        (None, other),
        (replace(SHOP, system="3"), None),
    ):
        last = look(storage, plan(source)).last
        assert (last.name if last else None) == expected


def test_one_listing_is_enough_if_backup_and_proof_are_recent() -> None:
    storage = Counting()
    for hours in range(1, 1000):
        store(storage, NOW - hours * HOUR)
    store(storage, NOW - MINUTE, proven=NOW)
    found = look(storage, plan(window=100 * HOUR))
    assert found.proven == NOW
    assert storage.asked == {"list": 1, "head": 1}


@pytest.mark.parametrize("gap", ["backup", "proof"])
def test_everything_is_listed_if_a_backup_or_proof_is_old(gap: str) -> None:
    storage = Counting()
    old = store(storage, NOW - 500 * HOUR, proven=NOW - 400 * HOUR)
    if gap == "proof":
        old = store(storage, NOW - HOUR)
    found = look(storage, plan(window=100 * HOUR))
    assert found.last
    assert (found.last.name, found.proven) == (old, NOW - 400 * HOUR)
    assert storage.asked["list"] == 2


@pytest.mark.parametrize(
    ("schedule", "kept_days", "drilled", "expected"),
    [
        (Cron("0 3 * * *"), 30, 0, None),
        (Interval(3600, NOW), 5, 0, None),
        (Interval(3600, NOW), 30, 0, 100 * HOUR),
        (Interval(3600, NOW), 30, 7 * 86400, 14 * DAY),
        (Interval(60, NOW), 1, 0, 100 * MINUTE),
    ],
)
def test_how_far_back_is_listed(
    schedule: Cron | Interval, kept_days: int, drilled: float, expected: timedelta | None
) -> None:
    assert state.window(schedule, NOW, kept_days=kept_days, drilled=drilled) == expected


@pytest.mark.parametrize("jobs", [500, pytest.param(5000, marks=pytest.mark.long)])
def test_the_requests_for_many_jobs(jobs: int) -> None:
    """docs/explanation/status.md has these numbers."""
    storage = Counting()
    for number in range(jobs):
        name = f"db{number}"
        source = replace(SHOP, database=name)
        store(storage, NOW - MINUTE, source=source, prefix=f"p/{name}", proven=NOW)
    owners = Owners(storage)

    def one(name: str) -> State:
        asked = replace(plan(replace(SHOP, database=name)), prefix=f"p/{name}")
        return state.look(asked, storage, owners)

    found = in_parallel(one, databases.with_folder(storage, "p"))
    assert sum(each.last is not None and each.proven == NOW for each in found) == jobs
    assert storage.asked == {"list": jobs, "head": jobs}
