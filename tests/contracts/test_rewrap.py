"""The wrapped passphrase of a backup is replaced in every store, with its metadata."""

from __future__ import annotations

import os

from pgstash import events
from pgstash.format import names
from pgstash.format.identity import Identity
from pgstash.format.metadata import encoded
from pgstash.pipeline import age
from pgstash.pipeline.age import Wrapped
from pgstash.repository import archive, catalog, object_metadata, rewrap
from pgstash.repository.access import Access
from pgstash.repository.keys import recipients_metadata
from pgstash.repository.rewrap import Change
from pgstash.runtime import Runtime
from pgstash.storage.interface import Storage
from support.age_keys import person
from support.stored import CLOSING, make

ANN, BEN = person("ann"), person("ben")
SSH = f"ssh-ed25519 {'AAAAC3NzaC1lZDI1NTE5AAAAI' + 'B' * 43}"
SHOP = Identity("shöp", "7301234567890123456", "db1", "5432")
SCRIPT = b"SELECT 1;\n" + CLOSING


def test_a_recipient_is_added_and_removed(storage: Storage) -> None:
    passphrase = age.new_passphrase(os.urandom)
    made = make(SCRIPT, passphrase=passphrase)
    made.store(storage)
    key = f"p/{names.key_name(made.base, made.manifest.id)}"
    values = {"id": made.manifest.id, **SHOP.metadata(), **recipients_metadata([ANN.recipient])}
    storage.put(key, age.wrap(Wrapped(passphrase, [ANN.recipient])), encoded(values))

    def change(recipient: str, *, removes: bool) -> dict[str, str]:
        [backup] = catalog.read(storage, "p").backups
        wanted = Change(recipient, removes)
        access = Access(None, unverified=False, only_encrypted=True, identity=ANN.identity)
        done = rewrap.run(storage, [backup], wanted, access, Runtime(events.ignore))
        assert done.number("changed") == 1
        [found] = object_metadata.of_keys(storage, [backup])
        return dict(found)

    found = change(BEN.recipient, removes=False)
    assert found["recipients"] == f"{ANN.recipient[:20]}, {BEN.recipient[:20]}"
    found = change(SSH, removes=False)
    assert found["recipients"].endswith(f", {age.label(SSH)}")
    assert (found["recipient-count"], found["id"]) == ("3", made.manifest.id)
    assert found["database"] == "shöp"
    found = change(age.label(SSH), removes=True)
    assert found["recipient-count"] == "2"

    [backup] = catalog.read(storage, "p").backups
    access = Access(None, unverified=False, only_encrypted=True, identity=BEN.identity)
    with archive.open_stored(storage, backup, access).script() as chunks:
        assert b"".join(chunks) == SCRIPT
