"""Copies of backups: what arrives, with every store, and what never becomes visible."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pgstash import events
from pgstash.copying import behind, same_place
from pgstash.copying import run as copying
from pgstash.copying.place import Place
from pgstash.errors import (
    CorruptedError,
    ObjectDamagedError,
    ObjectExistsError,
)
from pgstash.format import kms, metadata, names
from pgstash.repository import archive, catalog
from pgstash.repository.access import Access
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage, StoredObject
from pgstash.storage.memory import MemoryStorage
from support.stored import CLOSING, Made, make

NO_KEY = Access(None, unverified=False, only_encrypted=False)
KEY = "a passphrase of more than thirty-two characters"
WITH_KEY = Access(KEY, unverified=False, only_encrypted=False)
ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
SCRIPT = b"SELECT 'a row';\n" * 50 + CLOSING


def store(storage: Storage, made: Made, *, digest: bool = True) -> Made:
    """Store a backup as pgstash does, with roles; without ``digest`` as an earlier version did."""
    facts = metadata.facts(made.manifest, 1.0)
    if not digest:
        del facts[metadata.SHA256]
    id_ = {"id": made.manifest.id}
    roles = names.globals_name(made.base, made.manifest.id, encrypted=bool(made.passphrase))
    storage.put(made.manifest_key, made.packed_manifest(), facts)
    storage.put(f"p/{roles}", b"\x1f\x8b" * 20 if made.passphrase else made.archive, id_)
    storage.put(made.key, made.archive, id_ | {"database": "shop"})
    return made


def wrapped_for(who: str, key: str) -> bytes:
    """Return what has the form of a wrapped passphrase under this key."""
    found = names.companion_of(key.rpartition("/")[2])
    if found and found.kind == "kms":
        return kms.dump(found.id, [kms.Wrap(ARN, ARN, who.encode())])
    return b"age-encryption.org/v1\n-> X25519 %s\n--- mac\n" % who.encode() + b"x" * 109


def contents(storage: Storage, prefix: str = "p") -> dict[str, tuple[bytes, Mapping[str, str]]]:
    """Return every object under a prefix by its name."""
    found = {}
    for each in storage.list(f"{prefix}/"):
        with storage.read(each.key) as chunks:
            data = b"".join(chunks)
        found[each.key.removeprefix(f"{prefix}/")] = (data, storage.head(each.key).metadata)
    return found


def copy(
    source: Storage,
    target: Storage,
    *,
    access: Access = NO_KEY,
    emit: events.Emit = events.ignore,
    go_on: Callable[[], None] = lambda: None,
    prefix: str = "p",
) -> copying.Copied:
    """Copy the newest backup."""
    plan = copying.Plan(Place(source, "p"), Place(target, prefix), access, go_on)
    return copying.run(plan, catalog.read(source, "p").backups[-1], Runtime(emit))


@pytest.mark.parametrize("passphrase", [None, KEY], ids=["plain", "encrypted"])
def test_a_copy_has_the_same_objects_and_metadata(storage: Storage, passphrase: str | None) -> None:
    source = MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=passphrase))
    done = copy(source, storage, prefix="other/place")
    assert contents(storage, "other/place") == contents(source)
    assert done == copying.Copied(
        made.manifest.archive,
        storage.url(f"other/place/{made.manifest.archive}"),
        sum(len(data) for data, _ in contents(source).values()),
        already=False,
        verified=True,
    )
    found = catalog.read(storage, "other/place")
    access = WITH_KEY if passphrase else NO_KEY
    with archive.open_stored(storage, found.backups[0], access).script() as chunks:
        assert b"".join(chunks) == SCRIPT


def test_a_copy_is_made_from_every_store(storage: Storage) -> None:
    store(storage, make(SCRIPT))
    target = MemoryStorage()
    copy(storage, target)
    assert contents(target) == contents(storage)


@pytest.mark.plainest_stores_first
def test_what_is_there_is_not_sent_again(storage: Storage) -> None:
    source = MemoryStorage()
    store(source, make(SCRIPT))
    copy(source, storage)
    before = [(each.key, each.modified) for each in storage.list("p/")]
    done = copy(source, storage)
    assert (done.already, done.sent_bytes, done.verified) == (True, 0, None)
    assert [(each.key, each.modified) for each in storage.list("p/")] == before


def test_a_large_archive_arrives_in_parts(s3: Callable[..., Storage]) -> None:
    source, target = MemoryStorage(), s3()
    data = bytes(range(256)) * (12 * 4096)
    made = make(SCRIPT)
    source.put("p/backup_20260131_020000.sql.gz", data, {"id": made.manifest.id})
    facts = {"id": made.manifest.id, "sha256": hashlib.sha256(data).hexdigest()}
    source.put(made.manifest_key, made.packed_manifest(), facts)
    copy(source, target)
    assert contents(target) == contents(source)


# What is not copied.


class Journal(MemoryStorage):
    """A store that records what was stored, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[str] = []

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        super().put(key, data, metadata)
        self.stored.append(key)

    def _publish(self, pending: object, data: bytes, metadata: Mapping[str, str]) -> None:
        super()._publish(pending, data, metadata)  # type: ignore[arg-type]
        self.stored.append("the archive")


def test_the_archive_becomes_visible_after_its_companions() -> None:
    source, target = MemoryStorage(), Journal()
    made = store(source, make(SCRIPT))
    copy(source, target)
    assert sorted(target.stored[:-1]) == sorted(
        [made.manifest_key, f"p/{names.globals_name(made.base, made.manifest.id, encrypted=False)}"]
    )
    assert target.stored[-1] == "the archive"


@pytest.mark.plainest_stores_first
@pytest.mark.parametrize("passphrase", [None, KEY], ids=["plain", "encrypted"])
def test_a_damaged_archive_is_not_copied(storage: Storage, passphrase: str | None) -> None:
    source = MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=passphrase))
    damaged = bytearray(made.archive)
    damaged[len(damaged) // 2] ^= 1
    source.put(made.key, bytes(damaged), {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match=r"damaged in memory:///p: its bytes .* not copied"):
        copy(source, storage)
    assert contents(storage) == {}
    assert list(storage.pending("p/")) == []


def test_a_truncated_archive_is_not_copied() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=KEY), digest=False)
    source.put(made.key, made.archive[:-16], {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match=f"bytes instead of {len(made.archive)}"):
        copy(source, target)
    assert contents(target) == {}


def test_a_damaged_companion_is_not_copied() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    made = store(source, make(SCRIPT))
    roles = f"p/{names.globals_name(made.base, made.manifest.id, encrypted=False)}"
    source.put(roles, made.archive[:-4] + b"oops", {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match=r"globals.gz is damaged in memory:///p"):
        copy(source, target)
    assert f"p/{made.manifest.archive}" not in [each.key for each in target.list("p/")]


@pytest.mark.plainest_stores_first
def test_another_backup_of_the_same_name_is_never_overwritten(storage: Storage) -> None:
    source = MemoryStorage()
    store(source, make(SCRIPT))
    other = store(storage, make(CLOSING))
    before = contents(storage)
    with pytest.raises(ObjectExistsError, match=f"its id is {other.manifest.id}"):
        copy(source, storage)
    assert contents(storage) == before


def test_a_damaged_copy_is_reported() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    made = store(source, make(SCRIPT))
    target.put(made.key, made.archive[:-1], {"id": made.manifest.id})
    with pytest.raises(ObjectDamagedError, match="this copy is damaged"):
        copy(source, target)


@pytest.mark.plainest_stores_first
@pytest.mark.parametrize("kind", ["globals", "manifest"])
def test_a_damaged_companion_takes_the_place_of_no_intact_one(storage: Storage, kind: str) -> None:
    source = MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=KEY))
    copy(source, storage)
    before = contents(storage)
    roles = f"p/{names.globals_name(made.base, made.manifest.id, encrypted=True)}"
    key = roles if kind == "globals" else made.manifest_key
    source.put(key, b"damaged", source.head(key).metadata)
    with pytest.raises(ObjectDamagedError, match="has 7 bytes: one of them is damaged") as caught:
        copy(source, storage)
    assert "Delete the damaged one" in caught.value.hint
    assert contents(storage) == before


@pytest.mark.parametrize("named", [names.key_name, names.kms_name], ids=["age", "kms"])
@pytest.mark.parametrize(
    "damaged",
    [b"", b"x" * 500, wrapped_for("ben", "")[:-90], b"age-encryption.org/v1\n" + b"x" * 500],
    ids=["empty", "other", "truncated", "without header"],
)
def test_a_damaged_wrapped_passphrase_takes_the_place_of_no_intact_one(
    damaged: bytes, named: Callable[[str, str], str]
) -> None:
    source, target = MemoryStorage(), MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=KEY))
    name, id_ = named(made.base, made.manifest.id), {"id": made.manifest.id}
    source.put(f"p/{name}", wrapped_for("ann", name), id_)
    copy(source, target)
    before = contents(target)
    source.put(f"p/{name}", damaged, id_)
    with pytest.raises(CorruptedError, match=f"{name} is damaged in memory:///p"):
        copy(source, target)
    assert contents(target) == before


# Which digest.


@pytest.mark.parametrize(
    ("passphrase", "access", "verified"),
    [(None, NO_KEY, True), (KEY, WITH_KEY, True), (KEY, NO_KEY, False)],
    ids=["plain", "with the key", "without the key"],
)
def test_a_backup_of_an_earlier_version_is_compared_with_its_manifest(
    passphrase: str | None, access: Access, *, verified: bool
) -> None:
    source, target = MemoryStorage(), MemoryStorage()
    store(source, make(SCRIPT, passphrase=passphrase), digest=False)
    assert copy(source, target, access=access).verified == verified
    assert contents(target) == contents(source)


def test_a_backup_without_a_manifest_is_copied_by_its_size() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    source.put("p/backup_20260131_020000.sql.gz", b"of the shell service", {})
    assert not copy(source, target).verified
    assert contents(target) == contents(source)
    assert copy(source, target).already


def test_another_key_does_not_prevent_a_copy() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    store(source, make(SCRIPT, passphrase=KEY), digest=False)
    wrong = Access("another passphrase", unverified=False, only_encrypted=False)
    assert not copy(source, target, access=wrong).verified


def test_a_damaged_manifest_of_a_plain_backup_is_an_error() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    made = store(source, make(SCRIPT), digest=False)
    facts = source.head(made.manifest_key).metadata
    source.put(made.manifest_key, made.packed_manifest()[:-9], facts)
    with pytest.raises(CorruptedError):
        copy(source, target)


# What changes later.


@pytest.mark.plainest_stores_first
@pytest.mark.parametrize("named", [names.key_name, names.kms_name], ids=["age", "kms"])
def test_a_later_proof_and_another_wrapped_passphrase_are_copied(
    storage: Storage, named: Callable[[str, str], str]
) -> None:
    source = MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=KEY))
    id_ = {"id": made.manifest.id}
    wrapped = f"p/{named(made.base, made.manifest.id)}"
    source.put(wrapped, wrapped_for("ann", wrapped), id_ | {"recipients": "ann"})
    copy(source, storage)
    proof = names.proof_name(
        made.base, made.manifest.id, catalog.read(source, "p").backups[0].started, encrypted=True
    )
    source.put(f"p/{proof}", b"proof", id_)
    source.put(wrapped, wrapped_for("ben", wrapped), id_ | {"recipients": "ben"})
    done = copy(source, storage)
    assert (done.already, done.sent_bytes) == (False, len(b"proof" + wrapped_for("ben", wrapped)))
    assert contents(storage) == contents(source)


@pytest.mark.parametrize("named", [names.key_name, names.kms_name], ids=["age", "kms"])
def test_two_listings_show_what_a_copy_lacks(named: Callable[[str, str], str]) -> None:
    source, target = MemoryStorage(), MemoryStorage()
    bases = ("backup_20260131_020000", "backup_20260201_020000", "backup_20260202_020000")
    made = [store(source, make(SCRIPT, base=base, passphrase=KEY)) for base in bases]
    first, second, third = catalog.read(source, "p").backups

    def lacking() -> tuple[list[catalog.Backup], list[catalog.Backup]]:
        found = catalog.read(source, "p").backups, catalog.read(target, "p").backups
        return behind.missing(*found), behind.outdated(*found)

    assert lacking() == ([third, second, first], [])
    copy(source, target)
    assert lacking() == ([second, first], [])
    id_ = {"id": made[2].manifest.id}
    source.put(
        f"p/{names.proof_name(bases[2], made[2].manifest.id, third.started, encrypted=True)}",
        b"x",
        id_,
    )
    assert [each.name for each in lacking()[1]] == [third.name]
    copy(source, target)
    assert lacking()[1] == []
    wrapped = named(bases[2], made[2].manifest.id)
    source.put(f"p/{wrapped}", wrapped_for("ann", wrapped), id_)
    copy(source, target)
    assert lacking()[1] == []
    source.put(f"p/{wrapped}", wrapped_for("ben", wrapped), id_)
    assert [each.name for each in lacking()[1]] == [third.name]
    # A companion that a failed backup left is never copied, and nothing is missing without it.
    copy(source, target)
    source.put(f"p/{bases[2]}.0123456789abcdef.globals.gz.enc", b"x", {"id": "0123456789abcdef"})
    assert lacking()[1] == []
    # A backup of another source, started in the same second, is no copy.
    other = MemoryStorage()
    ours = store(other, make(SCRIPT, base=bases[0], passphrase=KEY))
    there = catalog.read(other, "p").backups
    assert (there[0].name, there[0].size) == (first.name, first.size)
    assert ours.manifest.id != made[0].manifest.id
    assert behind.missing([first], there) == [first]
    assert behind.missing([first], [replace(there[0], companions=())]) == []
    # A copy of another size has to be shown.
    target.put(made[2].key, b"short", id_)
    assert lacking()[0][0].name == third.name


def test_one_place_under_two_urls_is_found_out() -> None:
    source, target = MemoryStorage(), MemoryStorage()
    made = store(source, make(SCRIPT))

    def is_one(storage: Storage, prefix: str = "p") -> bool:
        return same_place.is_one(Place(source, "p"), Place(storage, prefix), os.urandom)

    before = contents(source)
    assert is_one(source)
    assert contents(source) == before
    assert not is_one(source, "other")
    assert not is_one(target)
    copy(source, target)
    assert not is_one(target)

    class Coarse(MemoryStorage):
        """A store whose clock stands still."""

        def head(self, key: str) -> StoredObject:
            return replace(super().head(key), modified=source.head(made.key).modified)

    coarse = Coarse()
    copy(source, coarse)
    assert not is_one(coarse)
    assert contents(coarse) == before


class Changing(MemoryStorage):
    """A store in which `pgstash keys` replaces a wrapped passphrase while it is being read."""

    def __init__(self, *later: bytes) -> None:
        super().__init__()
        self.later = list(later)

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        if key.endswith(names.AGE_ENDING) and self.later:
            self.put(key, self.later.pop(0), self.head(key).metadata)
        with super().read(key, start=start, length=length) as chunks:
            yield chunks


def test_a_wrapped_passphrase_that_changes_while_it_is_copied_arrives_whole() -> None:
    more = [wrapped_for(each, "") for each in ("ann, ben", "ann, ben, and cem")]
    source, target = Changing(*more), MemoryStorage()
    made = store(source, make(SCRIPT, passphrase=KEY))
    wrapped = f"p/{names.key_name(made.base, made.manifest.id)}"
    source.put(wrapped, wrapped_for("ann", wrapped), {"id": made.manifest.id})
    copy(source, target)
    assert source.later == []
    assert contents(target) == contents(source)


def test_a_wrapped_passphrase_that_never_rests_is_an_error() -> None:
    source, target = (
        Changing(*(wrapped_for("a" * each, "") for each in range(4, 99))),
        MemoryStorage(),
    )
    made = store(source, make(SCRIPT, passphrase=KEY))
    wrapped = f"p/{names.key_name(made.base, made.manifest.id)}"
    source.put(wrapped, wrapped_for("ann", wrapped), {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match="keeps changing while it is copied"):
        copy(source, target)
    assert f"p/{made.manifest.archive}" not in [each.key for each in target.list("p/")]
