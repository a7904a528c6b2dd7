"""The key of a stored backup is found among several, or unwrapped."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pgstash.errors import CorruptedError, EncryptionError, PgstashError, UnverifiedError
from pgstash.format import manifest as manifests
from pgstash.format import names
from pgstash.pipeline import age, encryption
from pgstash.pipeline.age import Wrapped
from pgstash.repository import archive, catalog
from pgstash.repository.access import Access
from pgstash.repository.keys import recipients_metadata
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import Storage
from pgstash.storage.memory import MemoryStorage
from support.age_keys import person
from support.stored import CLOSING, Made, make

ANN, BEN = person("ann"), person("ben")
NEW, OLD, WRONG = "the new passphrase", "the old passphrase", "a wrong passphrase"
SCRIPT = b"SELECT 'something';\n" * 30 + CLOSING
ROUNDS = 20_000
STRICT = Access(NEW, unverified=False, only_encrypted=True)


def opened(storage: Storage, access: Access) -> archive.Archive:
    backup = catalog.find(catalog.read(storage, "p"), "latest", datetime.now(UTC))
    return archive.open_stored(storage, backup, access)


def text_of(found: archive.Archive) -> bytes:
    with found.script() as chunks:
        return b"".join(chunks)


def stored(
    made: Made, storage: Storage | None = None, metadata: Mapping[str, str] | None = None
) -> Storage:
    """Store a backup whose archive has more metadata."""
    storage = storage or MemoryStorage()
    made.store(storage)
    storage.put(made.key, made.archive, {"id": made.manifest.id, **(metadata or {})})
    return storage


def id_of(made: Made) -> str:
    assert made.passphrase is not None
    assert made.manifest.encryption is not None
    salt = bytes.fromhex(made.manifest.encryption.salt)
    return encryption.Key.derive(made.passphrase, salt, made.rounds).id


def wrapped_for(*recipients: str, base: str = "backup_20260131_020000") -> tuple[Made, bytes]:
    """Return a backup with a random passphrase, and that wrapped."""
    passphrase = age.new_passphrase(os.urandom)
    made = make(SCRIPT, passphrase=passphrase, base=base)
    made = made.with_manifest(format=manifests.NEWEST, reader=manifests.NEWEST_READER)
    return made, age.wrap(Wrapped(passphrase, recipients))


def store_wrapped(storage: Storage, made: Made, packed: bytes) -> str:
    stored(made, storage, {"key-wrap": "age"})
    key = f"p/{names.key_name(made.base, made.manifest.id)}"
    storage.put(key, packed, {"id": made.manifest.id})
    return key


@pytest.mark.parametrize("with_id", [True, False], ids=["with id", "without id"])
@pytest.mark.parametrize("used", [NEW, OLD])
def test_the_key_that_it_was_encrypted_with_is_found(used: str, *, with_id: bool) -> None:
    made = make(SCRIPT, passphrase=used)
    storage = stored(made, metadata={"key-id": id_of(made)} if with_id else {})
    found = opened(storage, replace(STRICT, older=[WRONG, OLD]))
    assert text_of(found) == SCRIPT
    assert found.passphrase == used


def test_an_old_key_alone_reads() -> None:
    made = make(SCRIPT, passphrase=OLD)
    access = replace(STRICT, passphrase=None, older=[OLD])
    assert text_of(opened(stored(made), access)) == SCRIPT


class Counting(MemoryStorage):
    """Counts what is read."""

    def __init__(self) -> None:
        super().__init__()
        self.read_keys: list[str] = []

    def read(self, key: str, **where: int | None):  # type: ignore[no-untyped-def]  # noqa: ANN201 - as the class says
        self.read_keys.append(key)
        return super().read(key, **where)  # type: ignore[arg-type] # as given


def test_another_key_is_named_before_anything_is_read() -> None:
    made, storage = make(SCRIPT, passphrase=WRONG), Counting()
    stored(made, storage, {"key-id": id_of(made)})
    with pytest.raises(CorruptedError, match=rf"encrypted with another key \(id {id_of(made)}\)"):
        opened(storage, replace(STRICT, older=[OLD]))
    assert storage.read_keys == []


def test_without_an_id_a_wrong_key_is_told_by_the_manifest() -> None:
    storage = Counting()
    made = make(SCRIPT, passphrase=WRONG)
    stored(made, storage)
    with pytest.raises(CorruptedError, match="a wrong key"):
        opened(storage, replace(STRICT, older=[OLD]))
    assert made.key not in storage.read_keys


def test_an_id_is_another_for_each_object_and_passphrase() -> None:
    salt, other = bytes(8), bytes([1] * 8)
    ids = {
        encryption.Key.derive(passphrase, each, rounds).id
        for passphrase in (NEW, OLD)
        for each in (salt, other)
        for rounds in (10_000, ROUNDS)
    }
    assert len(ids) == 8
    assert {each[:16] for each in ids} == {salt.hex(), other.hex()}
    assert len({each[17:] for each in ids}) == 8


def test_an_id_is_derived_from_what_pbkdf2_returns() -> None:
    """Known answer: HKDF-SHA256 of the 48 bytes, with an info of its own."""
    key = encryption.Key.derive(NEW, b"saltsalt")
    import hashlib  # noqa: PLC0415 - for this answer alone
    import hmac  # noqa: PLC0415 - as above

    derived = hashlib.pbkdf2_hmac("sha256", NEW.encode(), b"saltsalt", 10_000, 48)
    extracted = hmac.digest(bytes(32), derived, "sha256")
    expected = hmac.digest(extracted, b"pgstash key id v1\x01", "sha256")[:8]
    assert key.id == f"{b'saltsalt'.hex()}:{expected.hex()}"


@pytest.mark.parametrize("key_id", ["", "x", "00:11", "0" * 16 + ":" + "g" * 16, "0" * 9999])
def test_an_id_of_no_form_is_damage_or_none(key_id: str) -> None:
    made = make(SCRIPT, passphrase=NEW)
    storage = stored(made, metadata={"key-id": key_id})
    if not key_id:
        assert text_of(opened(storage, STRICT)) == SCRIPT
        return
    with pytest.raises(CorruptedError, match="in a form that is not pgstash's"):
        opened(storage, STRICT)


def recorded(rounds: int) -> dict[str, str]:
    return {"encryption": f"aes-256-cbc pbkdf2 {rounds}"}


@pytest.mark.parametrize("older", [[], [OLD]], ids=["one key", "two keys"])
def test_the_recorded_rounds_are_used(older: list[str]) -> None:
    made = make(SCRIPT, passphrase=NEW, rounds=ROUNDS)
    found = opened(stored(made, metadata=recorded(ROUNDS)), replace(STRICT, older=older))
    assert text_of(found) == SCRIPT
    seeker = found.seek()
    assert b"".join(seeker.member(0)) in SCRIPT
    key = found.new_key(bytes(8))
    assert key == encryption.Key.derive(NEW, bytes(8), ROUNDS)


@pytest.mark.parametrize("used", [10_000, ROUNDS])
def test_a_copy_without_metadata_is_tried_with_the_rounds_of_the_settings(
    used: int, tmp_path: Path
) -> None:
    made = make(SCRIPT, passphrase=OLD, rounds=used)
    made.store(DirectoryStorage(tmp_path))
    for sidecar in tmp_path.glob("p/.*"):
        sidecar.unlink()
    access = replace(STRICT, older=[OLD], rounds=ROUNDS)
    found = archive.open_file(tmp_path / made.key, access)
    assert text_of(found) == SCRIPT


@pytest.mark.parametrize("rounds", [0, 1, 9_999, 10_000_001, 999_999_999_999])
@pytest.mark.parametrize("key_id", [True, False])
def test_other_rounds_are_refused_without_hashing(rounds: int, *, key_id: bool) -> None:
    """Whoever can write to the store could keep a restore busy for hours."""
    made = make(SCRIPT, passphrase=NEW)
    more = {"key-id": id_of(made)} if key_id else {}
    with pytest.raises(CorruptedError, match=f"name {rounds} rounds of PBKDF2"):
        opened(stored(made, metadata=recorded(rounds) | more), STRICT)


def test_no_key_is_derived_by_other_rounds() -> None:
    for rounds in (9_999, 10_000_001):
        with pytest.raises(CorruptedError, match="rounds of PBKDF2 are not between"):
            encryption.Key.derive(NEW, bytes(8), rounds)


def test_rounds_that_were_changed_are_a_wrong_key() -> None:
    made = make(SCRIPT, passphrase=NEW)
    with pytest.raises(CorruptedError, match="a wrong key"):
        opened(stored(made, metadata=recorded(ROUNDS)), STRICT)


@pytest.mark.parametrize("who", [ANN, BEN])
@pytest.mark.parametrize("passphrase", [None, NEW])
def test_a_wrapped_passphrase_is_unwrapped(who: object, passphrase: str | None) -> None:
    made, packed = wrapped_for(ANN.recipient, BEN.recipient)
    storage = MemoryStorage()
    store_wrapped(storage, made, packed)
    identity = getattr(who, "identity", "")
    access = replace(STRICT, passphrase=passphrase, older=[OLD], identity=identity)
    found = opened(storage, access)
    assert text_of(found) == SCRIPT
    assert found.passphrase == made.passphrase
    assert str(made.passphrase) not in repr(found)
    assert identity not in repr(access)


def test_both_kinds_are_read_side_by_side() -> None:
    made, packed = wrapped_for(ANN.recipient, base="backup_20260201_020000")
    storage = stored(make(SCRIPT, passphrase=OLD))
    store_wrapped(storage, made, packed)
    access = replace(STRICT, older=[OLD], identity=ANN.identity)
    for backup in catalog.read(storage, "p").backups:
        assert text_of(archive.open_stored(storage, backup, access)) == SCRIPT


def refused(storage: Storage, access: Access, error: type[PgstashError], reason: str) -> str:
    with pytest.raises(error, match=reason) as caught:
        opened(storage, access)
    return caught.value.hint


def test_without_an_identity_the_setting_is_named() -> None:
    made, packed = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    key = store_wrapped(storage, made, packed)
    reason = "for recipients, and there is no identity"
    hint = refused(storage, STRICT, EncryptionError, reason)
    assert "BACKUP_DECRYPTION_IDENTITY" in hint
    for recipients, shown in (("age1ann, age1ben", True), ("\x1b[2J", False)):
        storage.put(key, packed, {"id": made.manifest.id, "recipients": recipients})
        hint = refused(storage, STRICT, EncryptionError, reason)
        assert (f"recipients ({recipients}), or" in hint) == shown
        assert "\x1b" not in hint


def test_another_identity_does_not_open_it() -> None:
    made, packed = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    store_wrapped(storage, made, packed)
    access = replace(STRICT, identity=BEN.identity)
    refused(storage, access, CorruptedError, "does not open with the identity")


@pytest.mark.parametrize("identity", [None, ANN.identity])
def test_a_lost_wrapped_passphrase_is_named(identity: str | None) -> None:
    made, packed = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    storage.delete([store_wrapped(storage, made, packed)])
    access = replace(STRICT, identity=identity)
    hint = refused(storage, access, CorruptedError, "the wrapped passphrase of .* is missing")
    assert ".key.age" in hint


def test_a_wrapped_passphrase_that_is_too_large_is_not_read_whole() -> None:
    made, _ = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    store_wrapped(storage, made, b"x" * (age.LARGEST + 1))
    access = replace(STRICT, identity=ANN.identity)
    refused(storage, access, CorruptedError, "larger than any that pgstash writes")


def test_the_wrapped_passphrase_of_another_backup_does_not_decrypt() -> None:
    made, _ = wrapped_for(ANN.recipient)
    _, other = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    store_wrapped(storage, made, other)
    refused(storage, replace(STRICT, identity=ANN.identity), CorruptedError, "a wrong key")


def test_a_failed_backup_of_the_same_name_left_its_key(tmp_path: Path) -> None:
    """A copy has no metadata: the ids in the names keep each passphrase with its manifest."""
    made, packed = wrapped_for(ANN.recipient)
    left, left_packed = wrapped_for(ANN.recipient)
    left = left.with_manifest(stored_bytes=1)
    folder = DirectoryStorage(tmp_path)
    for each, key in ((left, left_packed), (made, packed)):
        store_wrapped(folder, each, key)
    for sidecar in tmp_path.glob("p/.*"):
        sidecar.unlink()
    found = archive.open_file(tmp_path / made.key, replace(STRICT, identity=ANN.identity))
    assert text_of(found) == SCRIPT


def test_without_a_manifest_the_key_is_still_found() -> None:
    made, packed = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    store_wrapped(storage, made, packed)
    storage.delete([made.manifest_key])
    access = replace(STRICT, identity=ANN.identity, unverified=True)
    assert text_of(opened(storage, access)) == SCRIPT
    old = stored(make(SCRIPT, passphrase=OLD, rounds=ROUNDS), metadata=recorded(ROUNDS))
    old.delete([each.key for each in old.list("p/") if "manifest" in each.key])
    assert text_of(opened(old, replace(STRICT, older=[OLD], unverified=True))) == SCRIPT


def test_metadata_name_the_recipients_and_their_number() -> None:
    assert recipients_metadata([ANN.recipient, BEN.recipient]) == {
        "recipients": f"{ANN.recipient[:20]}, {BEN.recipient[:20]}",
        "recipient-count": "2",
    }


class Dripping(MemoryStorage):
    """Sends every object byte by byte, as a slow network may."""

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        with super().read(key, start=start, length=length) as chunks:
            yield (bytes([byte]) for chunk in chunks for byte in chunk)


def test_a_key_is_found_though_the_network_is_slow() -> None:
    found = opened(stored(make(SCRIPT, passphrase=OLD), Dripping()), replace(STRICT, older=[OLD]))
    assert found.passphrase == OLD


def test_where_the_passphrase_is_used_a_backup_for_recipients_was_planted() -> None:
    """Anybody can encrypt for a public key. Only the owners know the passphrase."""
    made, packed = wrapped_for(ANN.recipient)
    storage = MemoryStorage()
    store_wrapped(storage, made, packed)
    access = replace(STRICT, identity=ANN.identity, only_passphrase=True)
    hint = refused(storage, access, UnverifiedError, "is encrypted for recipients, and new backups")
    assert "--unverified" in hint
    assert text_of(opened(storage, replace(access, unverified=True))) == SCRIPT


@pytest.mark.parametrize("identity", [None, ANN.identity])
@pytest.mark.parametrize("with_id", [True, False], ids=["with id", "of an older pgstash"])
def test_a_planted_key_does_not_keep_a_backup_with_a_passphrase_from_being_read(
    identity: str | None, *, with_id: bool
) -> None:
    """Whoever may add objects, but neither replace nor delete them, has not spoilt a backup."""
    made = make(SCRIPT, passphrase=NEW)
    more = recorded(encryption.ROUNDS) | ({"key-id": id_of(made)} if with_id else {})
    storage = stored(made, metadata=more)
    planted = age.wrap(Wrapped(age.new_passphrase(os.urandom), [ANN.recipient]))
    storage.put(f"p/{names.key_name(made.base, made.manifest.id)}", planted, {})
    assert text_of(opened(storage, replace(STRICT, identity=identity))) == SCRIPT


def test_a_copy_without_its_wrapped_passphrase_asks_for_that_object(tmp_path: Path) -> None:
    """Somebody who copied the files by hand has no passphrase that could be set."""
    made, packed = wrapped_for(ANN.recipient)
    folder = DirectoryStorage(tmp_path)
    folder.delete([store_wrapped(folder, made, packed)])
    for sidecar in tmp_path.glob("p/.*"):
        sidecar.unlink()
    access = replace(STRICT, passphrase=None, identity=ANN.identity)
    with pytest.raises(EncryptionError, match="there is no key") as raised:
        archive.open_file(tmp_path / made.key, access)
    assert ".key.age must lie next to it" in raised.value.hint
