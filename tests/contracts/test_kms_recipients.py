"""Backups for keys of AWS KMS: how they are read, and how their recipients change."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgstash import events
from pgstash.backup.sealing import Keys, sealing_of
from pgstash.check import kms as check
from pgstash.errors import CorruptedError, EncryptionError, PgstashError
from pgstash.format import kms as stored
from pgstash.format import manifest as manifests
from pgstash.format import names
from pgstash.kms.client import KmsClient
from pgstash.pipeline import age
from pgstash.repository import archive, catalog, object_metadata, rewrap
from pgstash.repository.access import Access
from pgstash.repository.keys import recipients_metadata
from pgstash.repository.rewrap import Change
from pgstash.runtime import Runtime
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import Storage
from pgstash.storage.memory import MemoryStorage
from support.age_keys import person
from support.kms import ALIAS, FAR, KEY, OTHER, Kms, Refusal
from support.stored import CLOSING, Made, make

ANN, BEN = person("ann"), person("ben")
SCRIPT = b"SELECT 1;\n" + CLOSING
Open = Callable[..., KmsClient]


def store(storage: Storage, client: KmsClient, recipients: Sequence[str], **made: Any) -> Made:
    """Store a backup for these recipients as a run does."""
    backup_id = made.pop("backup_id", os.urandom(8).hex())
    sealing = sealing_of(Keys(None, recipients, kms=lambda: client), os.urandom, backup_id)
    found = make(SCRIPT, passphrase=sealing.passphrase, **made)
    found = found.with_manifest(id=backup_id, format=sealing.format, reader=sealing.reader)
    found.store(storage)
    metadata = {"id": backup_id, "database": "shop", "host": "db"}
    storage.put(found.key, found.archive, metadata | {"key-wrap": sealing.wraps})
    for name, packed in ((names.key_name, sealing.wrapped), (names.kms_name, sealing.kms)):
        if packed is not None:
            own = [each for each in recipients if stored.is_arn(each) == (name is names.kms_name)]
            key = f"p/{name(found.base, backup_id)}"
            storage.put(key, packed, metadata | recipients_metadata(own))
    return found


def access(client: KmsClient | None, identity: str | None = None) -> Access:
    plain = Access(None, unverified=False, only_encrypted=True, identity=identity)
    return plain if client is None else replace(plain, kms=lambda: client)


def text_of(storage: Storage, how: Access) -> bytes:
    [backup] = catalog.read(storage, "p").backups
    with archive.open_stored(storage, backup, how).script() as chunks:
        return b"".join(chunks)


def change(storage: Storage, how: Access, recipient: str, *, removes: bool = False) -> int:
    backups = catalog.read(storage, "p").backups
    wanted = Change(recipient, removes)
    return rewrap.run(storage, backups, wanted, how, Runtime(events.ignore)).number("changed")


def objects(storage: Storage) -> set[str]:
    """Return the kinds of wrapped passphrases in the store."""
    return {each.key[-3:] for each in storage.list("p/") if ".key." in each.key}


def shown(storage: Storage) -> tuple[str, str]:
    [found] = object_metadata.of_keys(storage, catalog.read(storage, "p").backups)
    return found["recipients"], found["recipient-count"]


@pytest.mark.parametrize("recipients", [[KEY], [ALIAS, FAR]], ids=["a key", "an alias and a key"])
def test_kms_alone_reads_it(kms: Kms, open_kms: Open, recipients: list[str]) -> None:
    storage, client = MemoryStorage(), open_kms()
    made = store(storage, client, recipients)
    assert (made.manifest.format, made.manifest.reader) == (2, manifests.NEWEST_READER)
    assert text_of(storage, access(client)) == SCRIPT
    assert {each for _, _, each in map(frozen, kms.asked)} == {("pgstash-backup", made.manifest.id)}
    assert objects(storage) == {"kms"}
    assert shown(storage) == (", ".join(recipients), str(len(recipients)))


def frozen(asked: tuple[str, str, Any]) -> tuple[str, str, tuple[str, str]]:
    operation, arn, context = asked
    [pair] = context.items()
    return operation, arn, pair


def test_a_copy_in_a_folder_is_read_without_metadata(
    kms: Kms, open_kms: Open, tmp_path: Path
) -> None:
    client, folder = open_kms(), DirectoryStorage(tmp_path)
    made = store(folder, client, [KEY])
    for sidecar in tmp_path.glob("p/.*"):
        sidecar.unlink()
    with archive.open_file(tmp_path / made.key, access(client)).script() as chunks:
        assert b"".join(chunks) == SCRIPT
    assert kms.asked[-1][0] == "Decrypt"


def test_an_identity_needs_no_kms_and_kms_no_identity(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [ANN.recipient, KEY])
    assert objects(storage) == {"age", "kms"}
    assert shown(storage) == (f"{ANN.recipient[:20]}, {KEY}", "2")
    kms.asked.clear()
    assert text_of(storage, access(client, ANN.identity)) == SCRIPT
    assert kms.asked == []
    for identity in (None, BEN.identity):
        assert text_of(storage, access(client, identity)) == SCRIPT
    assert len(kms.asked) == 2


def test_if_nothing_opens_it_both_reasons_are_given(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [ANN.recipient, KEY])
    kms.refusals = [Refusal(400, "AccessDeniedException")]
    with pytest.raises(EncryptionError, match="KMS denies it") as raised:
        text_of(storage, access(client))
    assert "kms:Decrypt" in raised.value.hint
    assert raised.value.hint.endswith("secret key of one of the recipients.")
    with pytest.raises(EncryptionError, match="The identity does not open it either") as raised:
        text_of(storage, access(client, BEN.identity))
    assert "KMS denies it" in raised.value.message


def test_where_kms_cannot_be_asked_the_message_says_so() -> None:
    storage, client = MemoryStorage(), Recorded()
    store(storage, client, [KEY])
    with pytest.raises(EncryptionError, match="AWS KMS cannot be asked here"):
        text_of(storage, access(None))


class Recorded(KmsClient):
    """Wraps without a service, for what never gets to it."""

    def __init__(self) -> None:
        pass

    def encrypt(self, arn: str, plain: bytes, context: Any) -> stored.Wrap:
        del plain, context
        return stored.Wrap(arn, arn, b"something")


@pytest.mark.parametrize("what", ["damaged", "of another backup", "of another key"])
def test_a_replaced_object_opens_nothing(kms: Kms, open_kms: Open, what: str) -> None:
    storage, client = MemoryStorage(), open_kms()
    made = store(storage, client, [KEY])
    key = f"p/{names.kms_name(made.base, made.manifest.id)}"
    other = age.new_passphrase(os.urandom).encode()
    forged = client.encrypt(KEY, other, stored.context(made.manifest.id))
    storage.put(
        key,
        {
            "damaged": b"{}",
            "of another backup": stored.dump("f" * 16, [forged]),
            "of another key": stored.dump(made.manifest.id, [forged]),
        }[what],
        {},
    )
    with pytest.raises(CorruptedError):
        text_of(storage, access(client))
    assert kms.asked[0][0] == "Encrypt"


def test_keys_of_kms_are_added_and_removed(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    made = store(storage, client, [KEY])
    how, before = access(client), storage.head(made.key)
    assert change(storage, how, FAR) == 1
    assert change(storage, how, FAR) == 0
    assert shown(storage) == (f"{KEY}, {FAR}", "2")
    assert change(storage, how, KEY, removes=True) == 1
    assert change(storage, how, KEY, removes=True) == 0
    kms.arns = (FAR,)
    assert text_of(storage, how) == SCRIPT
    assert storage.head(made.key) == before
    metadata = storage.head(f"p/{names.kms_name(made.base, made.manifest.id)}").metadata
    assert metadata["id"] == made.manifest.id
    assert metadata["database"] == "shop"


def test_the_key_of_an_alias_is_known_by_both_names(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [ALIAS, OTHER])
    how = access(client)
    assert change(storage, how, KEY) == 0
    kms.aliases = {ALIAS: OTHER}  # it leads to another key now: what KEY encrypted opens with KEY
    assert text_of(storage, how) == SCRIPT
    assert change(storage, how, KEY, removes=True) == 1
    assert shown(storage) == (OTHER, "1")


@pytest.mark.parametrize("removed", [KEY, ANN.recipient, ANN.recipient[:20]])
def test_the_last_recipient_stays(kms: Kms, open_kms: Open, removed: str) -> None:
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [KEY if removed == KEY else ANN.recipient])
    with pytest.raises(EncryptionError, match="has no other recipient"):
        change(storage, access(client, ANN.identity), removed, removes=True)
    assert text_of(storage, access(client, ANN.identity)) == SCRIPT
    assert len(objects(storage)) == 1
    assert {each[0] for each in kms.asked} <= {"Encrypt", "Decrypt"}


def test_from_a_public_key_to_kms_and_back(open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [ANN.recipient])
    ann, nobody = access(client, ANN.identity), access(client)
    assert change(storage, ann, KEY) == 1
    assert objects(storage) == {"age", "kms"}
    assert text_of(storage, nobody) == SCRIPT
    assert change(storage, ann, ANN.recipient, removes=True) == 1
    assert objects(storage) == {"kms"}
    assert text_of(storage, nobody) == SCRIPT
    assert change(storage, nobody, BEN.recipient, removes=True) == 0
    assert change(storage, nobody, BEN.recipient) == 1
    assert shown(storage) == (f"{BEN.recipient[:20]}, {KEY}", "2")
    ben = access(client, BEN.identity)
    assert change(storage, ben, KEY, removes=True) == 1
    assert objects(storage) == {"age"}
    assert text_of(storage, access(None, BEN.identity)) == SCRIPT


def test_public_keys_are_changed_only_with_an_identity(kms: Kms, open_kms: Open) -> None:
    """Without one nobody knows who the present ones are."""
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [ANN.recipient, KEY])
    for removes in (False, True):
        with pytest.raises(EncryptionError, match="there is no identity"):
            change(storage, access(client), BEN.recipient, removes=removes)
    assert change(storage, access(client), FAR) == 1
    assert shown(storage) == (f"{ANN.recipient[:20]}, {KEY}, {FAR}", "3")
    kms.refusals = [Refusal(400, "AccessDeniedException", "Decrypt")]
    assert change(storage, access(client, ANN.identity), OTHER) == 1


def test_what_is_left_must_open_it(kms: Kms, open_kms: Open) -> None:
    """A list of keys that anyone can write is no reason to remove the last one that works."""
    storage, client = MemoryStorage(), open_kms()
    made = store(storage, client, [ANN.recipient, KEY])
    ann = access(client, ANN.identity)
    kms.refusals = [Refusal(400, "DisabledException")]
    with pytest.raises(EncryptionError, match="the key is disabled"):
        change(storage, ann, ANN.recipient, removes=True)
    with pytest.raises(EncryptionError, match="there is no identity"):
        change(storage, access(client), KEY, removes=True)
    assert objects(storage) == {"age", "kms"}
    kms.refusals = []
    other = age.new_passphrase(os.urandom).encode()
    forged = client.encrypt(KEY, other, stored.context(made.manifest.id))
    key = f"p/{names.kms_name(made.base, made.manifest.id)}"
    storage.put(key, stored.dump(made.manifest.id, [forged]), {})
    with pytest.raises(CorruptedError, match="is not the one that it was encrypted with"):
        change(storage, ann, ANN.recipient, removes=True)
    with pytest.raises(CorruptedError, match="is not the one that it was encrypted with"):
        change(storage, access(client), FAR)
    assert text_of(storage, access(None, ANN.identity)) == SCRIPT


def test_a_key_that_cannot_encrypt_changes_nothing(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    made = store(storage, client, [KEY])
    key = f"p/{names.kms_name(made.base, made.manifest.id)}"
    before = storage.head(key)
    kms.refusals = [Refusal(400, "AccessDeniedException", "Encrypt")]
    with pytest.raises(EncryptionError, match="KMS denies it"):
        change(storage, access(client), FAR)
    assert storage.head(key) == before


def test_if_kms_does_not_answer_no_other_backup_is_tried(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    for day in range(1, 4):
        store(storage, client, [KEY], base=f"backup_2026010{day}_020000")
    kms.refusals = [Refusal(503, "KMSInternalException")]
    kms.signed.clear()
    with pytest.raises(EncryptionError) as raised:
        change(storage, access(client), FAR)
    assert raised.value.retryable
    assert len(kms.signed) == 3  # one request and its retries


def test_each_of_several_backups_is_changed(kms: Kms, open_kms: Open) -> None:
    storage, client = MemoryStorage(), open_kms()
    store(storage, client, [KEY], base="backup_20260101_020000")
    store(storage, client, [OTHER], base="backup_20260102_020000")
    kms.refusals = [Refusal(400, "DisabledException", arn=KEY)]
    with pytest.raises(EncryptionError):
        change(storage, access(client), FAR)
    kms.refusals = []
    assert change(storage, access(client), FAR) == 1


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (Refusal(400, "DisabledException", arn=KEY), "the key is disabled"),
        (Refusal(500, "KMSInternalException", arn=KEY), "KMS answered KMSInternalException"),
    ],
    ids=["disabled", "down"],
)
def test_what_kms_does_not_wrap_makes_no_backup(
    kms: Kms, open_kms: Open, refusal: Refusal, error: str
) -> None:
    kms.refusals = [refusal]
    client = open_kms()
    keys = Keys(None, [ANN.recipient, OTHER, KEY], kms=lambda: client)
    with pytest.raises(PgstashError, match=error):
        sealing_of(keys, os.urandom, "id")


@pytest.mark.parametrize(
    ("recipients", "wraps"),
    [([KEY], "kms"), ([ANN.recipient, KEY], "age kms"), ([ANN.recipient], "age"), ([], "")],
)
def test_metadata_name_how_the_passphrase_is_wrapped(
    open_kms: Open, recipients: list[str], wraps: str
) -> None:
    sealing = sealing_of(Keys("x", recipients, kms=open_kms), os.urandom, "id")
    key = sealing.new_key(os.urandom)
    assert sealing.wraps == wraps
    assert sealing.metadata(key).get("key-wrap", "") == wraps
    assert (sealing.kms is not None) == ("kms" in wraps)
    assert str(sealing.passphrase) not in repr(sealing)


def test_the_check_lets_each_key_encrypt_and_stores_nothing(kms: Kms, open_kms: Open) -> None:
    kms.refusals = [Refusal(400, "AccessDeniedException", arn=OTHER)]
    client = open_kms()
    plan = check.Plan([ALIAS, OTHER], lambda: client, os.urandom)
    first, second = check.look(plan)
    assert (first.state, first.found) == ("ok", f"{ALIAS} encrypts")
    assert second.state == "failure"
    assert f"with {OTHER}: KMS denies it" in second.found
    assert "kms:Encrypt" in second.remedy
    assert [each[0] for each in kms.asked] == ["Encrypt"]
