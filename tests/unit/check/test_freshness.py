"""Which backup is the newest, and how little is listed to know it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pgstash.check import freshness
from pgstash.format.identity import Identity
from pgstash.format.names import base_name
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.service.schedule import Cron, Interval, stale_at
from pgstash.storage.interface import StoredObject
from pgstash.storage.memory import MemoryStorage

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


class Counting(MemoryStorage):
    """Counts what is listed."""

    listed = 0

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        for stored in super().list(prefix, start_after=start_after):
            self.listed += 1
            yield stored


def store(storage: MemoryStorage, started: datetime, data: bytes = b"x") -> str:
    name = f"{base_name(started)}.sql.gz"
    storage.put(f"p/{name}", data, {})
    storage.put(f"p/{base_name(started)}.0123456789abcdef.manifest.json.gz", b"m", {})
    return name


def hourly(last: datetime) -> datetime:
    return stale_at(Interval(3600, last), last)


def daily(last: datetime) -> datetime:
    return stale_at(Cron("0 3 * * *"), last)


def yearly(last: datetime) -> datetime:
    return stale_at(Cron("0 3 1 3 *"), last)


def newest(storage: MemoryStorage, rule: freshness.StaleAt) -> catalog.Backup | None:
    plan = freshness.Plan("p", Identity("shop", "1"), rule, NOW)
    return freshness.newest(plan, storage, Owners(storage))


@pytest.mark.parametrize(
    ("rule", "age"),
    [
        (hourly, timedelta(minutes=10)),
        (hourly, timedelta(minutes=80)),
        (daily, 20 * HOUR),
        (daily, 40 * HOUR),
        (yearly, 30 * DAY),
        (yearly, 300 * DAY),
    ],
)
def test_the_newest_is_found_within_what_may_be_fresh(
    rule: freshness.StaleAt, age: timedelta
) -> None:
    storage = MemoryStorage()
    for days in (0, 400, 800):
        name = store(storage, NOW - age - days * DAY)
    store(storage, NOW + HOUR)  # a wrong clock's
    store(storage, NOW - timedelta(seconds=1), b"")  # nothing is in it
    found = newest(storage, rule)
    assert found
    assert found.started == NOW - age
    assert found.name != name
    assert (found.size, found.companions) == (1, ())


def test_none_is_found_where_there_is_none_or_all_are_too_old() -> None:
    storage = Counting()
    assert newest(storage, hourly) is None
    store(storage, NOW + HOUR)
    store(storage, NOW - 2 * DAY)
    assert newest(storage, hourly) is None


@pytest.mark.parametrize("late", [timedelta(), 30 * DAY])
def test_ten_thousand_keys_cost_no_more_than_a_few(late: timedelta) -> None:
    storage = Counting()
    for hours in range(5000):
        store(storage, NOW - late - hours * HOUR)
    found = newest(storage, hourly)
    assert (found is None) is bool(late)
    assert storage.listed <= 60
