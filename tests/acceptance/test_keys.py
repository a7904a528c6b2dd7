"""`pgstash keys`: who reads stored backups, and changing that."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from pgstash.format import names
from pgstash.pipeline import age, encryption
from pgstash.repository.keys import recipients_metadata
from pgstash.storage.directory.storage import DirectoryStorage
from support.age_keys import opened_by_age, person, ssh_person
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.stored import CLOSING, make

ANN, BEN = person("ann"), person("ben")
KEY, OLD = "the key of today, long enough for it", "the key of yesterday, long enough too"
SOURCE = {"database": "shop", "host": "db.internal", "port": "5432"}
OTHER = {"database": "blog", "host": "db.internal", "port": "5432"}
SCRIPT = b"SELECT 1;\n" + CLOSING


@dataclass(frozen=True)
class Scene:
    """A folder with backups of any keys."""

    folder: Path

    def store(
        self, base: str, *, passphrase: str | None = None, source: dict[str, str] = SOURCE
    ) -> Path:
        """Store a backup with this passphrase, or one for Ann; return its wrapped passphrase."""
        used = passphrase or age.new_passphrase(os.urandom)
        made = make(SCRIPT, passphrase=used, base=base)
        made.store_as_backup(self.folder)
        metadata = {"id": made.manifest.id, **source, "encryption": "aes-256-cbc pbkdf2 10000"}
        storage = DirectoryStorage(self.folder)
        wrapped = f"{PREFIX}/{names.key_name(base, made.manifest.id)}"
        if passphrase:
            assert made.manifest.encryption
            salt = bytes.fromhex(made.manifest.encryption.salt)
            metadata["key-id"] = encryption.Key.derive(used, salt).id
        else:
            metadata["key-wrap"] = "age"
            more = recipients_metadata([ANN.recipient])
            data = age.wrap(age.Wrapped(used, [ANN.recipient]))
            storage.put(wrapped, data, {"id": made.manifest.id, **source, **more})
        storage.put(f"{PREFIX}/{made.manifest.archive}", made.archive, metadata)
        return self.folder / wrapped

    def keys(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        given = {"BACKUP_DECRYPTION_IDENTITY": ANN.identity} | settings
        env = environment(STORAGE_URL=self.folder.as_uri(), **given)
        return run_pgstash(["keys", *arguments], env)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "store").mkdir()
    return Scene(tmp_path / "store")


def test_each_key_is_named_without_an_identity(scene: Scene) -> None:
    scene.store("backup_20260101_020000", passphrase="of nobody here")
    scene.store("backup_20260102_020000", passphrase=OLD)
    scene.store("backup_20260103_020000", passphrase=KEY)
    scene.store("backup_20260104_020000")
    make(SCRIPT, base="backup_20260105_020000").store_as_backup(scene.folder)
    make(SCRIPT, base="backup_20260106_020000", passphrase=KEY).store_as_backup(scene.folder)
    known = {
        "BACKUP_ENCRYPTION_KEY": KEY,
        "BACKUP_ENCRYPTION_OLD_KEYS": f"x\n{OLD}",
        "BACKUP_DECRYPTION_IDENTITY": "",
    }
    listed = scene.keys("list", **known)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split("  ")[-1].strip() for line in listed.stdout.splitlines()] == [
        "KEY",
        "a passphrase",
        "none",
        ANN.recipient[:20],
        "BACKUP_ENCRYPTION_KEY",
        "BACKUP_ENCRYPTION_OLD_KEYS, line 2",
        "another passphrase",
    ]
    as_json = json.loads(scene.keys("list", "--json", **known).stdout)
    assert as_json[2] == {
        "name": "backup_20260104_020000.sql.gz.enc",
        "key": "recipients",
        "recipients": [ANN.recipient[:20]],
        "recipient_count": 1,
    }


def test_a_recipient_is_added_and_another_removed(scene: Scene, tmp_path: Path) -> None:
    wrapped = [scene.store("backup_20260101_020000"), scene.store("backup_20260102_020000")]
    other = scene.store("backup_20260101_030000", source=OTHER)
    kept = other.read_bytes()
    ssh = ssh_person(tmp_path)

    done = scene.keys("add", ssh.recipient, "--source", "shop")
    assert done.returncode == 0, done.stderr
    label = age.label(" ".join(ssh.recipient.split()[:2]))
    assert f"{label} was added to the recipients of backup_20260102" in done.stdout
    assert "Changed the recipients of 2 backups; 0 had it already" in done.stdout
    identity = tmp_path / "id_ed25519"
    text = opened_by_age(wrapped[0], identity)
    assert text == opened_by_age(wrapped[0], ANN.file(tmp_path))
    again = scene.keys("add", ssh.recipient, "--source", "shop")
    assert "Changed the recipients of 0 backups; 2 had it already" in again.stdout

    alone = scene.keys("remove", ANN.recipient, "--backup", "20260102_020000")
    assert alone.returncode == 0, alone.stderr
    assert opened_by_age(wrapped[0], ANN.file(tmp_path)) == text
    with pytest.raises(subprocess.CalledProcessError):
        opened_by_age(wrapped[1], ANN.file(tmp_path))
    assert opened_by_age(wrapped[1], identity).startswith("pgstash-key-")

    back = scene.keys("remove", label, "--backup", "20260101_020000")
    assert back.returncode == 0, back.stderr
    assert f"{label} was removed from the recipients" in back.stdout
    assert other.read_bytes() == kept


def test_what_the_settings_say_otherwise_is_warned_of(scene: Scene) -> None:
    scene.store("backup_20260101_020000")
    on = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient}
    added = scene.keys("add", BEN.recipient, **on)
    label = BEN.recipient[:20]
    assert f"New backups are not encrypted for {label}: add it to BACKUP_ENC" in added.stderr
    on["BACKUP_ENCRYPTION_RECIPIENTS"] += f",{BEN.recipient}"
    removed = scene.keys("remove", label, **on)
    assert f"New backups are still encrypted for {label}: remove it from BAC" in removed.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["add", "age1wrong"], 2, "cannot be used"),
        (["add", ANN.identity], 2, "contains a secret key"),
        (["add", f"{ANN.recipient},{BEN.recipient}"], 2, "give one recipient at a time"),
        (["remove", "age1wrong"], 2, "cannot be used"),
        (["add", BEN.recipient, "--backup", "x", "--source", "y"], 2, "cannot be combined"),
        (["add", BEN.recipient, "--backup", "latest"], 25, "none of these backups is encrypted"),
        (["remove", ANN.recipient, "--source", "shop"], 30, "nobody could read it any more"),
        (["add", BEN.recipient, "--source", "nobody"], 27, "no source"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_explained(
    scene: Scene, arguments: list[str], status: int, words: str
) -> None:
    wrapped = scene.store("backup_20260101_020000")
    scene.store("backup_20260102_020000", passphrase=KEY)
    before = wrapped.read_bytes()
    done = scene.keys(*arguments)
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stderr
    assert ANN.identity not in done.stdout + done.stderr
    assert wrapped.read_bytes() == before


def test_without_an_identity_nothing_is_changed(scene: Scene) -> None:
    scene.store("backup_20260101_020000")
    done = scene.keys("add", BEN.recipient, BACKUP_DECRYPTION_IDENTITY="")
    assert done.returncode == 30, done.stderr
    assert "BACKUP_DECRYPTION_IDENTITY" in done.stderr


def test_an_empty_prefix_is_an_error_of_a_change_alone(scene: Scene) -> None:
    assert scene.keys("add", BEN.recipient).returncode == 25
    assert scene.keys("list").returncode == 0
