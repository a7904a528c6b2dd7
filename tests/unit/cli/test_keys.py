"""What `pgstash keys` lists and changes, without the command around it."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from acceptance.test_keys import KEY, OLD, Scene
from pgstash import events, settings
from pgstash.cli import keys as command
from pgstash.commands import keys
from pgstash.commands.keys import KeyOf
from pgstash.errors import BackupNotFoundError, EncryptionError
from pgstash.pipeline import age
from pgstash.repository.rewrap import Change
from pgstash.runtime import Runtime
from support.age_keys import person
from support.kms import KEY as KMS_KEY
from support.stored import CLOSING, make

ANN, BEN = person("ann"), person("ben")
NO_FILE = Path("/nonexistent/.env")
SSH = f"ssh-ed25519 {'AAAAC3NzaC1lZDI1NTE5AAAAI' + 'B' * 43}"
LABEL = ANN.recipient[:20]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def load(scene: Scene, **more: str) -> settings.Settings:
    values = {"STORAGE_URL": scene.folder.as_uri(), **more}
    return settings.load(values, NO_FILE, needs=["storage"], only_reads=True)


def change(
    scene: Scene, wanted: Change, backup: str | None = None, **more: str
) -> tuple[int, list[str]]:
    """Return how many backups were changed, and the warnings."""
    said: list[events.Event] = []
    values = load(scene, **({"BACKUP_DECRYPTION_IDENTITY": ANN.identity} | more))
    runtime = Runtime(said.append)
    done = keys.change_recipients(values, wanted, runtime, backup=backup, source=None)
    warnings = [event.message for event in said if isinstance(event, events.Warned)]
    return done.number("changed"), warnings


def test_each_key_is_found_by_its_id(scene: Scene) -> None:
    scene.store("backup_20260101_020000", passphrase="of nobody here")
    scene.store("backup_20260102_020000", passphrase=OLD)
    scene.store("backup_20260103_020000", passphrase=KEY)
    scene.store("backup_20260104_020000")
    make(CLOSING, base="backup_20260105_020000").store_as_backup(scene.folder)
    make(CLOSING, base="backup_20260106_020000", passphrase=KEY).store_as_backup(scene.folder)
    known = {"BACKUP_ENCRYPTION_KEY": KEY, "BACKUP_ENCRYPTION_OLD_KEYS": f"x\n{OLD}"}
    found = keys.list_keys(load(scene, **known), newest=None)
    assert [each.key for each in found] == [
        "a passphrase",
        "none",
        "recipients",
        "BACKUP_ENCRYPTION_KEY",
        "BACKUP_ENCRYPTION_OLD_KEYS, line 2",
        "another passphrase",
    ]
    assert found[2] == KeyOf("backup_20260104_020000.sql.gz.enc", "recipients", [LABEL], 1)
    [newest] = keys.list_keys(load(scene), newest=1)
    assert newest.name.startswith("backup_20260106")
    assert {each.key for each in keys.list_keys(load(scene), newest=None)[3:]} == {
        "another passphrase"
    }


def test_recipients_that_metadata_have_no_room_for_are_counted() -> None:
    assert command.shown(KeyOf("b", "recipients", ["age1a", "age1b"], 5)) == (
        "age1a, age1b, and 3 more"
    )
    assert command.shown(KeyOf("b", "recipients", ["age1a"], 1)) == "age1a"
    assert command.shown(KeyOf("b", "none", [], 0)) == "none"


def test_all_of_a_source_or_one_are_changed(scene: Scene) -> None:
    scene.store("backup_20260101_020000")
    scene.store("backup_20260102_020000")
    add = Change(BEN.recipient, removes=False)
    assert change(scene, add, "backup_20260102_020000") == (1, [])
    assert change(scene, add) == (1, [])
    assert change(scene, Change(BEN.recipient, removes=True)) == (2, [])


def test_other_settings_for_new_backups_are_warned_of(scene: Scene) -> None:
    scene.store("backup_20260101_020000")
    on = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient}
    _, [warning] = change(scene, Change(BEN.recipient, removes=False), **on)
    assert warning.startswith(f"New backups are not encrypted for {BEN.recipient[:20]}")
    on["BACKUP_ENCRYPTION_RECIPIENTS"] += f",{BEN.recipient}"
    _, [warning] = change(scene, Change(BEN.recipient[:20], removes=True), **on)
    assert warning.startswith(f"New backups are still encrypted for {BEN.recipient[:20]}")


def test_what_is_missing_is_named(scene: Scene) -> None:
    with pytest.raises(BackupNotFoundError):
        change(scene, Change(BEN.recipient, removes=False))
    scene.store("backup_20260101_020000")
    with pytest.raises(EncryptionError, match="there is no identity to open the wrapped"):
        change(scene, Change(BEN.recipient, removes=False), BACKUP_DECRYPTION_IDENTITY="")


@pytest.mark.parametrize("text", [LABEL, age.label(SSH), KMS_KEY])
def test_a_label_is_enough_to_remove(text: str) -> None:
    assert command.parsed(text, removes=True) == text
    if text == KMS_KEY:
        assert command.parsed(text, removes=False) == text
        return
    with pytest.raises(typer.BadParameter, match="cannot be used"):
        command.parsed(text, removes=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ANN.identity, "secret key"),
        (f"{ANN.recipient},{BEN.recipient}", "one recipient at a time"),
        ("", "names no recipient"),
    ],
)
@pytest.mark.parametrize("removes", [True, False])
def test_what_is_no_single_recipient_is_refused(text: str, reason: str, *, removes: bool) -> None:
    with pytest.raises(typer.BadParameter, match=reason):
        command.parsed(text, removes=removes)
    assert command.parsed(f"{SSH} me@host", removes=removes) == SSH


def test_a_lost_wrapped_passphrase_is_listed_as_lost(scene: Scene) -> None:
    scene.store("backup_20260101_020000").unlink()
    [found] = keys.list_keys(load(scene), newest=None)
    assert command.shown(found) == "recipients, but the wrapped passphrase is missing"


def test_a_copy_without_metadata_is_for_recipients(scene: Scene) -> None:
    scene.store("backup_20260101_020000")
    for sidecar in scene.folder.rglob(".*.metadata.json"):
        sidecar.unlink()
    [found] = keys.list_keys(load(scene), newest=None)
    assert command.shown(found) == "recipients"
