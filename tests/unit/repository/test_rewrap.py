"""The recipients of stored backups are changed without touching their archives."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pyrage
import pytest

from pgstash import events
from pgstash.errors import (
    BackupNotFoundError,
    CorruptedError,
    EncryptionError,
    Interrupted,
    NewerFormatError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.format import names
from pgstash.pipeline import age
from pgstash.pipeline.age import Wrapped
from pgstash.repository import archive, catalog, object_metadata, rewrap
from pgstash.repository.access import Access
from pgstash.repository.rewrap import Change
from pgstash.runtime import Runtime
from pgstash.signals import Interruption
from pgstash.storage.memory import MemoryStorage
from support.age_keys import person
from support.stored import CLOSING, Made, make

ANN, BEN, EVE = person("ann"), person("ben"), person("eve")
SCRIPT = b"SELECT 1;\n" + CLOSING
BASES = ["backup_20260131_020000", "backup_20260201_020000", "backup_20260202_020000"]
ADD_BEN, REMOVE_BEN = Change(BEN.recipient, removes=False), Change(BEN.recipient, removes=True)


class Store(MemoryStorage):
    """A store with backups for recipients, which records writes and may refuse some."""

    def __init__(self, *recipients: str, bases: list[str] = BASES) -> None:
        super().__init__()
        self.written: list[str] = []
        self.refused: dict[str, Exception] = {}
        self.made = [self.make_one(base, recipients) for base in bases]
        self.written.clear()

    def make_one(self, base: str, recipients: tuple[str, ...]) -> Made:
        passphrase = age.new_passphrase(os.urandom)
        made = make(SCRIPT, passphrase=passphrase, base=base)
        made.store(self)
        self.put(self.key(made), age.wrap(Wrapped(passphrase, recipients)), of(made))
        return made

    def key(self, made: Made) -> str:
        return f"p/{names.key_name(made.base, made.manifest.id)}"

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        if key in self.refused:
            raise self.refused[key]
        self.written.append(key)
        super().put(key, data, metadata)

    def backups(self) -> list[catalog.Backup]:
        return list(catalog.read(self, "p").backups)

    def readers(self) -> list[set[str]]:
        """Return who can read each backup, oldest first."""
        found = []
        for backup in self.backups():
            able = set()
            for name in ("ann", "ben", "eve"):
                access = reading(person(name).identity)
                try:
                    opened = archive.open_stored(self, backup, access)
                except CorruptedError:
                    continue
                with opened.script() as chunks:
                    assert b"".join(chunks) == SCRIPT
                able.add(name)
            found.append(able)
        return found


def of(made: Made) -> dict[str, str]:
    return {"id": made.manifest.id, "database": "shop", "host": "db"}


def reading(identity: str) -> Access:
    return Access(None, unverified=False, only_encrypted=True, identity=identity)


def change(
    store: Store,
    wanted: Change,
    identity: str = ANN.identity,
    said: list[events.Event] | None = None,
) -> rewrap.Rewrapped:
    emit = events.ignore if said is None else said.append
    return rewrap.run(store, store.backups(), wanted, reading(identity), Runtime(emit))


def test_a_recipient_is_added_to_all_and_archives_stay() -> None:
    store, said = Store(ANN.recipient), list[events.Event]()
    before = {key: store.head(key) for key in (made.key for made in store.made)}
    done = change(store, ADD_BEN, said=said)
    assert done.number("changed") == 3
    assert store.readers() == [{"ann", "ben"}] * 3
    assert store.written == [store.key(made) for made in store.made]
    assert {key: store.head(key) for key in before} == before
    assert said[0] == events.Informed(
        f"{BEN.recipient[:20]} was added to the recipients of {store.made[0].manifest.archive}"
    )
    metadata = store.head(store.key(store.made[0])).metadata
    assert metadata == of(store.made[0]) | {
        "recipients": f"{ANN.recipient[:20]}, {BEN.recipient[:20]}",
        "recipient-count": "2",
    }
    [known, *_] = object_metadata.of_keys(store, store.backups())
    assert known["recipient-count"] == "2"


def test_added_again_nothing_is_written() -> None:
    store = Store(ANN.recipient, BEN.recipient)
    assert change(store, ADD_BEN).number("unchanged") == 3
    assert store.written == []


@pytest.mark.parametrize("named", [BEN.recipient, age.label(BEN.recipient)], ids=["key", "label"])
def test_a_removed_recipient_reads_no_more(named: str) -> None:
    store = Store(ANN.recipient, BEN.recipient)
    done = change(store, Change(named, removes=True))
    assert done.number("changed") == 3
    assert store.readers() == [{"ann"}] * 3
    assert change(store, Change(named, removes=True)).number("unchanged") == 3


def test_somebody_may_remove_themselves() -> None:
    store = Store(ANN.recipient, BEN.recipient)
    change(store, REMOVE_BEN, BEN.identity)
    assert store.readers() == [{"ann"}] * 3


def test_the_last_recipient_stays() -> None:
    store, said = Store(ANN.recipient), list[events.Event]()
    with pytest.raises(EncryptionError, match="has no other recipient: nobody could read it"):
        change(store, Change(ANN.recipient, removes=True), said=said)
    assert store.written == []
    assert len(said) == 3


def test_a_label_of_several_is_refused() -> None:
    other = ANN.recipient[:20] + "x" * 42
    with pytest.raises(EncryptionError, match="several recipients of it begin like age1"):
        Change(ANN.recipient[:20], removes=True).apply("it", [ANN.recipient, other, BEN.recipient])


def test_an_identity_of_nobody_changes_nothing() -> None:
    store = Store(ANN.recipient)
    with pytest.raises(CorruptedError, match="does not open with the identity"):
        change(store, ADD_BEN, EVE.identity)
    assert store.written == []


def test_one_that_cannot_be_changed_stops_no_other_and_a_second_run_completes() -> None:
    store, said = Store(ANN.recipient), list[events.Event]()
    store.refused = {store.key(store.made[1]): StorageRefusedError("refused")}
    with pytest.raises(StorageRefusedError):
        change(store, ADD_BEN, said=said)
    assert store.readers() == [{"ann", "ben"}, {"ann"}, {"ann", "ben"}]
    assert [type(event) for event in said] == [events.Informed, events.Warned, events.Informed]
    store.refused = {}
    done = change(store, ADD_BEN)
    assert (done.number("changed"), done.number("unchanged")) == (1, 2)
    assert store.readers() == [{"ann", "ben"}] * 3


def test_a_store_that_is_gone_ends_it_at_once() -> None:
    store, said = Store(ANN.recipient), list[events.Event]()
    store.refused = {store.key(store.made[0]): StorageUnreachableError("gone")}
    with pytest.raises(StorageUnreachableError):
        change(store, ADD_BEN, said=said)
    assert said == []
    assert store.written == []


def test_a_signal_ends_it_between_two() -> None:
    store = Store(ANN.recipient)

    class Signalled(Interruption):
        """As if a signal came while the first object was written, and could not interrupt that."""

        def raise_if_interrupted(self) -> None:
            if store.written:
                raise Interrupted(15)

    runtime = Runtime(events.ignore, Signalled())
    with pytest.raises(Interrupted):
        rewrap.run(store, store.backups(), ADD_BEN, reading(ANN.identity), runtime)
    assert store.readers() == [{"ann", "ben"}, {"ann"}, {"ann"}]


def test_backups_without_recipients_are_left_alone() -> None:
    store = Store(ANN.recipient, bases=BASES[:1])
    make(SCRIPT, base=BASES[1]).store(store)
    make(SCRIPT, base=BASES[2], passphrase="a passphrase").store(store)
    done = change(store, ADD_BEN)
    assert (done.number("changed"), done.number("not wrapped")) == (1, 2)
    others = Store(bases=[])
    make(SCRIPT, base=BASES[2], passphrase="a passphrase").store(others)
    with pytest.raises(BackupNotFoundError, match="none of these backups is encrypted for"):
        change(others, ADD_BEN)


def test_a_passphrase_that_was_replaced_is_not_passed_on() -> None:
    """Anyone can wrap a passphrase for public keys, with a list of recipients that they like."""
    store = Store(ANN.recipient, bases=BASES[:1])
    [made] = store.made
    forged = age.wrap(Wrapped(age.new_passphrase(os.urandom), [ANN.recipient, EVE.recipient]))
    store.put(store.key(made), forged, of(made))
    store.written.clear()
    with pytest.raises(CorruptedError, match="is not the one that it was encrypted with"):
        change(store, ADD_BEN)
    assert store.written == []


def test_recipients_in_metadata_are_not_believed() -> None:
    store = Store(ANN.recipient, bases=BASES[:1])
    [made] = store.made
    packed = age.wrap(Wrapped(str(made.passphrase), [ANN.recipient]))
    store.put(store.key(made), packed, of(made) | {"recipients": EVE.recipient})
    change(store, ADD_BEN)
    assert store.readers() == [{"ann", "ben"}]


def test_a_recipient_of_a_later_pgstash_is_not_lost() -> None:
    store = Store(ANN.recipient, bases=BASES[:1])
    [made] = store.made
    text = f"{made.passphrase}\nfor {ANN.recipient}\nfor age2later\n".encode()
    packed = pyrage.encrypt(text, [pyrage.x25519.Recipient.from_str(ANN.recipient)])
    store.put(store.key(made), packed, of(made))
    store.written.clear()
    with pytest.raises(EncryptionError, match="could not be wrapped"):
        change(store, ADD_BEN)
    assert store.written == []


def test_a_later_format_is_left_alone() -> None:
    store = Store(ANN.recipient, bases=BASES[:1])
    [made] = store.made
    store.put(made.key, made.archive, of(made) | {"format": "9", "reader": "9.0.0"})
    with pytest.raises(NewerFormatError):
        change(store, ADD_BEN)


def test_metadata_have_room_for_few_of_many_recipients() -> None:
    """S3 keeps 2 KB of metadata; the age file holds all of them."""
    many = [str(pyrage.x25519.Identity.generate().to_public()) for _ in range(120)]
    store = Store(ANN.recipient, *many, bases=BASES[:1])
    assert change(store, ADD_BEN).number("changed") == 1
    metadata = store.head(store.key(store.made[0])).metadata
    assert metadata["recipient-count"] == "122"
    assert metadata["recipients"].startswith(ANN.recipient[:20])
    assert len(metadata["recipients"]) < 256
    assert store.readers() == [{"ann", "ben"}]


@pytest.mark.parametrize("wanted", [ADD_BEN, REMOVE_BEN], ids=["add", "remove"])
def test_one_that_was_wrapped_by_hand_loses_nobody(wanted: Change) -> None:
    """Without a list nobody knows for whom: to wrap it anew would lock somebody out."""
    store = Store(ANN.recipient, bases=BASES[:1])
    [made] = store.made
    readers = [pyrage.x25519.Recipient.from_str(each.recipient) for each in (ANN, EVE)]
    store.put(store.key(made), pyrage.encrypt(f"{made.passphrase}\n".encode(), readers), of(made))
    store.written.clear()
    with pytest.raises(CorruptedError, match="does not list its recipients") as raised:
        change(store, wanted)
    assert "`for RECIPIENT`" in raised.value.hint
    assert store.written == []
    assert store.readers() == [{"ann", "eve"}]


def test_a_copy_without_metadata_is_changed_though_a_failed_backup_left_its_key() -> None:
    """The archive has no id then: each passphrase that a manifest belongs to is changed."""
    for _ in range(4):  # the ids are random, and so is which of them is listed first
        store = Store(ANN.recipient, BEN.recipient, bases=BASES[:1])
        [made] = store.made
        left = store.make_one(BASES[0], (ANN.recipient, BEN.recipient))
        left = left.with_manifest(stored_bytes=1)
        store.put(left.manifest_key, left.packed_manifest(), {})
        store.put(made.key, made.archive, {})
        assert change(store, REMOVE_BEN).number("changed") == 1
        with store.read(store.key(made)) as chunks, pytest.raises(CorruptedError):
            age.unwrap("it", b"".join(chunks), BEN.identity)
        assert store.readers() == [{"ann"}]


def test_one_whose_wrapped_passphrase_is_lost_is_no_success() -> None:
    store, said = Store(ANN.recipient, bases=BASES[:2]), list[events.Event]()
    lost, _ = store.made
    store.put(lost.key, lost.archive, of(lost) | {"key-wrap": "age"})
    store.delete([store.key(lost)])
    with pytest.raises(CorruptedError, match=r"the wrapped passphrase of .* is missing"):
        change(store, ADD_BEN, said=said)
    assert [type(event) for event in said] == [events.Warned, events.Informed]
