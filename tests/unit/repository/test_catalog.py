"""What a listing shows: which backups are proven, and how few requests that takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from pgstash.errors import BackupNotFoundError
from pgstash.format import names
from pgstash.repository import catalog, object_metadata
from pgstash.storage.interface import StoredObject
from pgstash.storage.memory import MemoryStorage

FIRST = datetime(2020, 1, 1, tzinfo=UTC)
ID = "0123456789abcdef"
OTHER_ID = "fedcba9876543210"
MANY = 10_000


class Counted(MemoryStorage):
    """A store that counts its requests."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        self.asked["list"] += 1
        return super().list(prefix, start_after=start_after)

    def head(self, key: str) -> StoredObject:
        self.asked["head"] += 1
        return super().head(key)


def store(storage: MemoryStorage, started: datetime, backup_id: str = ID) -> str:
    """Store a backup with its manifest, as pgstash does, and return its base name."""
    base = names.base_name(started)
    beside = names.manifest_name(base, backup_id, encrypted=True)
    facts = {"id": backup_id, "database": "shop", "server": "16.15"}
    storage.put(f"p/{beside}", b"", facts)
    storage.put(f"p/{names.archive_name(base, encrypted=True)}", b"data", {"id": backup_id})
    return base


def prove(storage: MemoryStorage, base: str, when: datetime, backup_id: str = ID) -> None:
    proof = names.proof_name(base, backup_id, when, encrypted=True)
    storage.put(f"p/{proof}", b"", {"id": backup_id})


def hour(number: int) -> datetime:
    return FIRST + timedelta(hours=number)


@pytest.fixture
def storage() -> Counted:
    return Counted()


def test_ten_thousand_of_them_take_one_listing_and_the_heads_of_what_is_shown(
    storage: Counted,
) -> None:
    for number in range(MANY):
        base = store(storage, hour(number))
        prove(storage, base, hour(number + 1))
    newest = catalog.read(storage, "p").backups[::-1][:20]
    assert [each.proven for each in newest] == [hour(MANY - number) for number in range(20)]
    assert storage.asked == {"list": 1}
    assert {each["database"] for each in object_metadata.of_backups(storage, newest)} == {"shop"}
    assert storage.asked["head"] <= 2 * 20
    assert storage.asked["list"] == 1


def test_the_archive_is_asked_for_what_the_manifest_does_not_record(storage: Counted) -> None:
    base = store(storage, hour(0))
    archive = {"id": ID, "host": "db.internal", "tool": "pgstash 0.1.0"}
    storage.put(f"p/{names.archive_name(base, encrypted=True)}", b"data", archive)
    backups = read(storage).backups
    [known] = object_metadata.of_backups(storage, backups)
    assert known["host"] == "db.internal"
    facts = {"id": ID, "database": "shop", "host": "replica"}
    storage.put(f"p/{names.manifest_name(base, ID, encrypted=True)}", b"", facts)
    storage.asked.clear()
    assert object_metadata.of_backups(storage, backups) == [facts]
    assert storage.asked == {"head": 1}
    assert object_metadata.of_backups(storage, backups, complete=True) == [archive | facts]


def test_names_that_do_not_tell_whose_a_proof_is_prove_nothing(storage: Counted) -> None:
    base = store(storage, hour(0))
    prove(storage, base, hour(1))
    prove(storage, base, hour(2), OTHER_ID)
    [backup] = catalog.read(storage, "p").backups
    assert backup.proven is None
    assert storage.asked["head"] == 0
    assert object_metadata.with_own_companions(storage, backup).proven == hour(1)


def test_only_what_is_not_settled_is_asked_for(storage: Counted) -> None:
    for number in range(3):
        base = store(storage, hour(number))
        prove(storage, base, hour(9))
    store(storage, hour(3))
    backups = catalog.read(storage, "p").backups
    assert [object_metadata.with_own_companions(storage, each) for each in backups] == backups
    assert storage.asked["head"] == 0


def test_the_last_drill_that_passed_whichever_backup_it_was_of(storage: Counted) -> None:
    assert catalog.by_proof(read(storage).backups, hour(99)) == []
    bases = [store(storage, hour(number)) for number in range(3)]
    for base, when in ((bases[0], 20), (bases[1], 10), (bases[2], 1000)):
        prove(storage, base, hour(when))
    found = catalog.by_proof(read(storage).backups, hour(99))[0]
    assert (found.name, found.proven) == (f"{bases[0]}.sql.gz.enc", hour(20))
    # By a clock that was wrong for one of two drills.
    prove(storage, bases[0], hour(2000))
    found = catalog.by_proof(read(storage).backups, hour(99))[0]
    assert found.proven_by(hour(99)) == hour(20)
    assert found.proven == hour(2000)


def latest(storage: MemoryStorage, now: datetime) -> str:
    return catalog.find(catalog.read(storage, "p"), "latest", now).name.partition(".")[0]


def test_what_bears_a_time_in_the_future_is_not_the_latest(storage: Counted) -> None:
    old, new, wrong = (store(storage, hour(number)) for number in (0, 24, 24 * 60))
    assert latest(storage, hour(25)) == new
    assert [each.name.partition(".")[0] for each in catalog.ahead(read(storage), hour(25))] == [
        wrong
    ]
    assert latest(storage, hour(24 * 61)) == wrong
    assert catalog.find(read(storage), wrong, hour(25)).started == hour(24 * 60)
    assert latest(storage, hour(1)) == old


def test_clocks_may_be_apart_a_little(storage: Counted) -> None:
    store(storage, hour(0))
    new = store(storage, hour(24))
    assert latest(storage, hour(24) - timedelta(minutes=59)) == new
    assert latest(storage, hour(24) - timedelta(minutes=61)) != new


def test_where_all_bear_such_a_time_the_last_is_the_latest(storage: Counted) -> None:
    store(storage, hour(10))
    last = store(storage, hour(20))
    assert latest(storage, hour(0)) == last


def found(storage: MemoryStorage, name: str) -> str:
    return catalog.find(read(storage), name, hour(99)).name


def test_the_end_of_a_name_finds_it_and_so_does_its_time(storage: Counted) -> None:
    one, other = (f"{store(storage, hour(number))}.sql.gz.enc" for number in (1, 13))
    assert one == "backup_20200101_010000.sql.gz.enc"
    for part in ("20200101_010000", "_010000", "0101_010000.sql.gz.enc", "2020-01-01T01:00:00Z"):
        assert found(storage, part) == one
    assert found(storage, "130000") == other
    for part in ("0000", "0000.sql.gz.enc"):
        with pytest.raises(BackupNotFoundError, match=f"{part} may mean {one} and {other}$"):
            found(storage, part)
    # A name, a time or a part of it as such: nothing that only happens to be in a name.
    for part in (
        "000",
        "gz",
        ".sql.gz.enc",
        "enc",
        "20200101",
        "p_20200101_010000",
        "\u0660" * 4,
        "",
    ):
        with pytest.raises(BackupNotFoundError, match="there is no backup "):
            found(storage, part)


def test_a_whole_name_is_not_a_part_of_another(storage: Counted) -> None:
    base = store(storage, hour(1))
    storage.put(f"p/{base}.sql.gz", b"data", {"id": OTHER_ID})
    assert found(storage, f"{base}.sql.gz") == f"{base}.sql.gz"
    for part in (base, "010000"):
        with pytest.raises(BackupNotFoundError, match=f"may mean {base}.sql.gz and {base}.sql.gz."):
            found(storage, part)


def test_not_every_backup_that_may_be_meant_is_named(storage: Counted) -> None:
    bases = [store(storage, hour(24 * number)) for number in range(8)]
    with pytest.raises(BackupNotFoundError) as refused:
        found(storage, "_000000")
    assert [base for base in bases if base in refused.value.message] == bases[3:]
    assert refused.value.message.endswith("and 3 older backups")


def test_the_newest_before_a_time_and_its_neighbours(storage: Counted) -> None:
    with pytest.raises(BackupNotFoundError, match=r"started at or before 2020-01-01T00:00:00Z$"):
        catalog.find_before(read(storage), hour(0))
    for number in (1, 2, 3):
        store(storage, hour(number))
    backups = read(storage).backups
    chosen = [
        catalog.find_before(read(storage), hour(2) + timedelta(seconds=seconds))
        for seconds in (-1, 0, 1)
    ]
    assert chosen == [backups[0], backups[1], backups[1]]
    found = [catalog.neighbours(read(storage), each) for each in backups]
    assert found == [(None, backups[1]), (backups[0], backups[2]), (backups[1], None)]
    with pytest.raises(BackupNotFoundError, match=f"the oldest is {backups[0].name}"):
        catalog.find_before(read(storage), hour(0))


def read(storage: MemoryStorage) -> catalog.Catalog:
    return catalog.read(storage, "p")
