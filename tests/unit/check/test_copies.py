"""`pgstash check storage` checks the store of each copy, whose failures fail no backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import copies
from pgstash.commands.check import check
from pgstash.errors import ConfigurationError
from pgstash.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

    from pgstash.check.finding import Finding

MORE = {"DATABASE_URL": "postgresql://u@127.0.0.1:1/shop", "COPY_TO": "disk,usb"}


def load(folder: Path, **more: str) -> Settings:
    for name in ("primary", "disk"):
        (folder / name).mkdir()
    values = {
        "STORAGE_URL": (folder / "primary").as_uri(),
        "COPY_DISK_STORAGE_URL": (folder / "disk").as_uri(),
        "COPY_USB_STORAGE_URL": (folder / "usb").as_uri(),
    }
    return settings.load(MORE | values | more, folder / ".env")


def findings(folder: Path, **more: str) -> dict[str, Finding]:
    found = list(check(load(folder, **more), "storage", events.ignore))
    assert len({each.topic for each in found}) == len(found)
    return {each.topic: each for each in found}


def test_a_copy_is_checked_like_the_primary_and_only_warns(tmp_path: Path) -> None:
    found = findings(tmp_path)
    tried = [topic for topic in found if not topic.startswith("copy ")]
    tried.remove("other sources")
    for name in ("disk", "usb"):
        assert [f"copy {name}: {topic}" for topic in tried] == [
            topic for topic in found if topic.startswith(f"copy {name}: ")
        ]
    assert {found[f"copy disk: {topic}"].state for topic in tried} == {"ok"}
    assert found["copy usb: bucket"].state == "warning"
    assert str(tmp_path / "usb") in found["copy usb: bucket"].found
    assert "failure" not in {each.state for each in found.values()}
    assert [path for path in (tmp_path / "disk").rglob("*.*") if path.suffix != ".lock"] == []


def test_remedies_name_the_settings_of_the_copy(tmp_path: Path) -> None:
    found = findings(
        tmp_path,
        COPY_USB_STORAGE_URL="s3://copies",
        COPY_USB_S3_ENDPOINT="http://127.0.0.1:1",
        COPY_USB_S3_ACCESS_KEY_ID="Planted",
        COPY_USB_S3_SECRET_ACCESS_KEY="Planted",
        COPY_USB_RETRY_ATTEMPTS="0",
        COPY_USB_S3_OBJECT_LOCK_DAYS="30",
    )
    assert found["copy usb: bucket"].state == "warning"
    assert "COPY_USB_S3_ENDPOINT" in found["copy usb: bucket"].remedy
    assert "COPY_USB_BACKUP_RETENTION_DAYS" in found["copy usb: object lock"].found


def test_a_copy_that_cannot_be_opened_does_not_hide_the_rest(tmp_path: Path) -> None:
    found = findings(tmp_path, COPY_DISK_S3_OBJECT_LOCK_DAYS="30")
    assert found["copy disk: settings"].state == "warning"
    assert found["copy disk: settings"].found.startswith("COPY_DISK_S3_OBJECT_LOCK_DAYS is set")
    assert "copy usb: bucket" in found


def test_a_copy_that_cannot_be_opened_names_its_own_settings(tmp_path: Path) -> None:
    [disk, _] = copies.of(load(tmp_path, COPY_DISK_S3_OBJECT_LOCK_DAYS="30"))
    with pytest.raises(ConfigurationError, match=r"^COPY_DISK_S3_OBJECT_LOCK_DAYS is set"):
        disk.open(events.ignore)


def test_the_stores_of_copies_are_opened_one_by_one(tmp_path: Path) -> None:
    [disk, usb] = copies.of(load(tmp_path))
    assert [disk.name, usb.name] == ["disk", "usb"]
    disk.open(events.ignore).put("postgres-backups/x", b"1", {})
    assert (tmp_path / "disk/postgres-backups/x").is_file()
    assert disk.open(events.ignore, prompt=True).url("x") == (tmp_path / "disk/x").as_uri()
