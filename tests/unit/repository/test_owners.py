"""The sources of backups: how few archives are read, and each only once."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from pgstash.errors import SourceUnclearError, StorageUnreachableError
from pgstash.format import identity, names
from pgstash.format.identity import Identity
from pgstash.format.metadata import encoded
from pgstash.repository import catalog
from pgstash.repository.catalog import Backup
from pgstash.repository.owners import Owners, Seen
from pgstash.storage.interface import StoredObject
from pgstash.storage.memory import MemoryStorage

FIRST = datetime(2020, 1, 1, tzinfo=UTC)
SHOP = Identity("shop", "1", "db1", "5432")
BLOG = Identity("blog", "1", "db1", "5432")
EARLIER = Identity("shop", None, "db1")
NOBODY = Identity()


class Counted(MemoryStorage):
    """A store that counts the metadata requests for archives, and may be down."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.down = False

    def head(self, key: str) -> StoredObject:
        self.asked[key] += 1
        if self.down:
            raise StorageUnreachableError("down")
        return super().head(key)


@pytest.fixture
def storage() -> Counted:
    return Counted()


def store(storage: Counted, *sources: Identity, size: int = 4) -> list[Backup]:
    """Store a backup of each, one per hour, and return all stored ones."""
    begun = len(catalog.read(storage, "p").backups)
    for hour, source in enumerate(sources, start=begun):
        base = names.base_name(FIRST + timedelta(hours=hour))
        since = {identity.SINCE: "2020-01-01T01:00:00Z"} if source.system else {}
        metadata = encoded({**source.metadata(), **since})
        storage.put(f"p/{base}.sql.gz", b"x" * size, metadata)
    return list(catalog.read(storage, "p").backups)


def test_each_archive_is_asked_once_in_a_process(storage: Counted) -> None:
    backups = store(storage, *[SHOP, BLOG] * 20)
    seen: Seen = {}
    for _ in range(2):
        own = Owners(storage, seen).of(backups, [SHOP])
        assert own == backups[::2]
    assert set(storage.asked.values()) == {1}
    assert len(storage.asked) == 40


def test_the_newest_alone_is_asked_if_it_tells_enough(storage: Counted) -> None:
    backups = store(storage, *[SHOP] * 1000)
    owners = Owners(storage)
    assert owners.first(reversed(backups), SHOP) == (backups[-1], True)
    assert storage.asked.total() == 1
    assert owners.usual_size(backups, SHOP) == 4
    assert storage.asked.total() == 17


def test_the_first_of_a_source_and_whether_that_is_certain(storage: Counted) -> None:
    backups = store(storage, NOBODY, SHOP, EARLIER, BLOG)
    newest_first = backups[::-1]
    owners = Owners(storage)
    assert owners.first(newest_first, SHOP) == (backups[1], True)
    assert owners.first(newest_first[:2], SHOP) == (backups[2], False)
    assert owners.first(newest_first[:1], SHOP) is None
    assert owners.first([], SHOP) is None


def test_sizes_are_compared_with_those_of_the_same_source(storage: Counted) -> None:
    store(storage, EARLIER, SHOP)
    store(storage, BLOG, size=4000)
    store(storage, EARLIER, NOBODY, size=400)  # of another source: ours name their server by then
    backups = store(storage, SHOP)
    owners = Owners(storage)
    expected = [backups[5], backups[1], backups[0]]
    assert list(owners.newest_first(backups, SHOP)) == expected
    assert owners.usual_size(backups, SHOP) == 4
    assert owners.usual_size(backups, BLOG) == 4000
    assert owners.usual_size(backups, Identity("other", "1")) == 400  # who knows
    assert owners.usual_size(backups[1:3], Identity("other", "1")) is None


def test_who_goes_back_stops_at_the_last_report(storage: Counted) -> None:
    store(storage, BLOG, SHOP)
    base = names.base_name(FIRST + timedelta(hours=2))
    reported = {**SHOP.metadata(), identity.OTHERS: "none"}
    storage.put(f"p/{base}.sql.gz", b"data", reported)
    backups = store(storage, BLOG)
    origins = Owners(storage).back_to_last(backups, SHOP)
    assert [origin.identity for origin in origins] == [BLOG, SHOP]
    assert origins[-1].reported == frozenset()


def test_the_source_that_is_meant(storage: Counted) -> None:
    owners = Owners(storage)
    assert owners.choose([]) == []
    backups = store(storage, EARLIER, SHOP)
    assert owners.choose(backups) == [SHOP]
    assert owners.choose(backups, settings=Identity("shop", None, "other.example.com")) == [SHOP]
    backups = store(storage, Identity("shop", "2", "db2"))
    with pytest.raises(SourceUnclearError, match="several sources under this prefix") as caught:
        owners.choose(backups)
    assert caught.value.message.splitlines()[1:] == [
        "  shop@1: 2 backups, the newest is backup_20200101_010000.sql.gz",
        "  shop@2: 1 backup, the newest is backup_20200101_020000.sql.gz",
    ]
    assert owners.choose(backups, settings=Identity("shop", None, "DB1")) == [SHOP]
    by_name = Identity("shop")
    with pytest.raises(SourceUnclearError, match="several sources under this prefix"):
        owners.choose(backups, settings=by_name)
    assert owners.choose(backups, settings=by_name, ask=lambda: SHOP) == [SHOP]
    assert owners.choose(backups, named=["shop@2", "shop@1"])[1] == SHOP
    with pytest.raises(SourceUnclearError, match='several sources have a database "shop"'):
        owners.choose(backups, named=["shop"])


def test_one_source_and_what_is_certainly_not_its_own(storage: Counted) -> None:
    backups = store(storage, SHOP, NOBODY)
    with pytest.raises(SourceUnclearError, match="unnamed: 1 backup"):
        Owners(storage).choose(backups)
    assert Owners(storage).choose(backups, settings=Identity("shop")) == [SHOP]


def test_a_store_that_is_down_tells_nothing_wrong(storage: Counted) -> None:
    backups = store(storage, SHOP)
    storage.down = True
    seen: Seen = {}
    with pytest.raises(StorageUnreachableError):
        Owners(storage, seen).of(backups, [SHOP])
    assert seen == {}


def test_what_is_newer_and_may_be_of_the_source(storage: Counted) -> None:
    silent = Identity("shop", None, "db1", "5432")
    backups = store(storage, NOBODY, SHOP, silent, BLOG, NOBODY)
    owners = Owners(storage)
    assert owners.doubtful(backups, [SHOP], backups[-1].started) == [backups[2], backups[4]]
    assert owners.doubtful(backups, [SHOP], backups[3].started) == [backups[2]]
    assert owners.doubtful(store(storage, SHOP), [SHOP], FIRST + timedelta(days=1)) == []


def test_what_is_listed_as_a_source_can_be_named(storage: Counted) -> None:
    silent = Identity("shop", None, "db1", "5432")
    backups = store(storage, SHOP, Identity("blog", "2"), silent, NOBODY)
    owners = Owners(storage)
    labels = {label: newest for label, _, newest in owners.counted(backups, [])}
    assert list(labels) == ["shop@1", "blog@2", "shop@db1:5432", "unnamed"]
    for number, label in enumerate(labels):
        chosen = owners.choose(backups, named=[label])
        assert backups[number] in owners.of(backups, chosen)
    assert owners.of(backups, owners.choose(backups, named=["unnamed"])) == [backups[3]]
    both = owners.choose(backups, named=["shop@1", "unnamed"])
    assert owners.of(backups, both) == [backups[0], backups[3]]
    assert owners.choose(backups, named=["shop"]) == [SHOP]
