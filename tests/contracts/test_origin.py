"""The store that a command reads: the primary, a copy that --from names, or one that answers."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import origin, stored
from pgstash.commands.stored import Wanted
from pgstash.errors import (
    BackupNotFoundError,
    ConfigurationError,
    CorruptedError,
    ObjectDamagedError,
    PgstashError,
    SourceUnclearError,
    StorageUnreachableError,
    WrongClockError,
)
from pgstash.settings import Need, Settings
from pgstash.storage.directory.storage import DirectoryStorage
from support.proxy import Answer, HttpProxy
from support.stored import CLOSING, make

if TYPE_CHECKING:
    from support.swift import SwiftServer

NOWHERE = {
    "STORAGE_URL": "s3://backups",
    "S3_ENDPOINT": "http://127.0.0.1:1",
    "S3_ACCESS_KEY_ID": "PlantedKey1",
    "S3_SECRET_ACCESS_KEY": "PlantedSecret1",
    "RETRY_ATTEMPTS": "0",
}
NOW = datetime(2026, 3, 1, tzinfo=UTC)
OLDER, NEWER = "backup_20260131_020000", "backup_20260201_020000"


@dataclass
class Places:
    """A primary and two copies, which are directories."""

    folder: Path
    heard: list[events.Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("primary", "disk", "usb"):
            (self.folder / name).mkdir()

    def load(self, needs: list[Need] | None = None, /, **more: str) -> Settings:
        values = {
            "STORAGE_URL": (self.folder / "primary").as_uri(),
            "COPY_TO": "disk,usb",
            "COPY_DISK_STORAGE_URL": (self.folder / "disk").as_uri(),
            "COPY_USB_STORAGE_URL": (self.folder / "usb").as_uri(),
        }
        given = {name: value for name, value in (values | more).items() if value}
        return settings.load(given, Path("/none"), needs=needs or ["storage"], only_reads=True)

    def put(self, place: str, base: str, **metadata: str) -> Path:
        """Store a backup; return the file of its archive."""
        made = make(CLOSING, base=base)
        storage = DirectoryStorage(self.folder / place)
        for key, data in ((made.key, made.archive), (made.manifest_key, made.packed_manifest())):
            own = {"id": made.manifest.id} | metadata
            storage.put(key.replace("p/", "postgres-backups/"), data, own)
        return self.folder / place / "postgres-backups" / made.manifest.archive

    def warnings(self) -> list[str]:
        return [each.message for each in self.heard if isinstance(each, events.Warned)]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def opened(places: Places, chosen: Settings, name: str = "latest") -> str:
    return stored.open_archive(chosen, Wanted(name), places.heard.append).name


def test_the_primary_is_read_if_it_answers(places: Places) -> None:
    places.put("primary", OLDER)
    places.put("disk", NEWER)
    found = places.load()
    assert origin.readable(found, places.heard.append) is found
    assert opened(places, found) == f"{OLDER}.sql.gz"
    assert places.heard == []


def test_without_copies_the_store_is_not_asked_first(places: Places) -> None:
    found = settings.load(dict(NOWHERE), Path("/none"), needs=["storage"])
    assert origin.readable(found, places.heard.append) is found


def test_a_primary_that_is_gone_is_replaced_by_the_first_copy_that_answers(
    places: Places,
) -> None:
    shutil.rmtree(places.folder / "primary")
    shutil.rmtree(places.folder / "disk")
    places.put("usb", NEWER)
    assert opened(places, places.load()) == f"{NEWER}.sql.gz"
    no_disk, instead = places.warnings()
    assert no_disk.startswith("The copy disk cannot be read either: ")
    assert instead.startswith("The primary store cannot be read: ")
    assert str(places.folder / "primary") in instead
    assert instead.endswith("Reading the copy usb instead. The primary may have newer backups")


def test_a_primary_that_nobody_serves_is_replaced(places: Places) -> None:
    places.put("disk", OLDER)
    found = places.load(**NOWHERE)
    assert origin.readable(found, places.heard.append).copy_name == "disk"
    assert len(places.warnings()) == 1


@pytest.mark.parametrize(
    ("answer", "replaced"),
    [
        (Answer(404, "NoSuchBucket"), True),
        (Answer(403, "AccessDenied"), True),
        (Answer(503, "ServiceUnavailable"), True),
        (None, False),
    ],
    ids=["no-bucket", "denied", "down", "works"],
)
def test_which_answers_of_s3_make_a_copy_take_its_place(
    places: Places,
    swift_server: SwiftServer,
    s3_bucket: str,
    answer: Answer | None,
    *,
    replaced: bool,
) -> None:
    places.put("disk", OLDER)
    with HttpProxy(swift_server.port) as proxy:
        if answer:
            proxy.rule("ListObjectsV2", answer)
        found = places.load(
            STORAGE_URL=f"s3://{s3_bucket}",
            S3_ENDPOINT=proxy.endpoint,
            S3_ACCESS_KEY_ID=swift_server.access_key_id,
            S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
            RETRY_ATTEMPTS="0",
        )
        chosen = origin.readable(found, places.heard.append)
    assert chosen.copy_name == ("disk" if replaced else "")
    assert len(places.warnings()) == replaced


def test_if_nothing_answers_the_error_is_that_of_the_primary(places: Places) -> None:
    for name in ("disk", "usb"):
        shutil.rmtree(places.folder / name)
    found = places.load(**NOWHERE)
    with (
        pytest.raises(StorageUnreachableError) as caught,
        origin.suggested(found, places.heard.append) as emit,
    ):
        origin.readable(found, emit)
    assert "s3://backups" in caught.value.message
    assert caught.value.hint.endswith("\nNo copy can be read either.")
    assert [each.partition(" cannot")[0] for each in places.warnings()] == [
        "The copy disk",
        "The copy usb",
    ]


def test_a_copy_whose_settings_cannot_be_used_is_passed_over(places: Places) -> None:
    shutil.rmtree(places.folder / "primary")
    found = places.load(COPY_DISK_S3_OBJECT_LOCK_DAYS="3")
    assert origin.readable(found, places.heard.append).copy_name == "usb"
    assert "COPY_DISK_S3_OBJECT_LOCK_DAYS is set" in places.warnings()[0]


@pytest.mark.parametrize("wanted", [Wanted("latest"), Wanted("latest", at=NOW)])
def test_what_a_database_holds_is_replaced_by_a_copy_only_when_asked_for(
    places: Places, wanted: Wanted
) -> None:
    shutil.rmtree(places.folder / "primary")
    shutil.rmtree(places.folder / "disk")
    places.put("usb", OLDER)
    wanted = replace(wanted, or_copy=False)
    with (
        pytest.raises(StorageUnreachableError) as caught,
        origin.suggested(places.load(), places.heard.append) as emit,
    ):
        stored.open_archive(places.load(), wanted, emit)
    assert str(places.folder / "primary") in caught.value.message
    assert caught.value.hint.endswith("To restore from the copy, add --from usb.")
    assert caught.value.hint.count("--from") == 1
    chosen = places.load().of_copy("usb")
    assert stored.open_archive(chosen, wanted, events.ignore).name == f"{OLDER}.sql.gz"


@pytest.mark.parametrize("place", ["primary", "disk"])
def test_a_damaged_backup_is_not_taken_from_a_copy_but_the_copy_is_named(
    places: Places, place: str
) -> None:
    archive = places.put(place, OLDER)
    places.put("usb", OLDER)
    [manifest] = archive.parent.glob(f"{OLDER}.*.manifest.json.gz")
    manifest.write_bytes(b"damaged")
    found = places.load()
    chosen = origin.of_copy(found, None if place == "primary" else place)
    with (
        pytest.raises((CorruptedError, ObjectDamagedError)) as caught,
        origin.suggested(chosen, places.heard.append) as emit,
    ):
        stored.open_archive(chosen, Wanted(OLDER), emit)
    others = "--from disk or --from usb" if place == "primary" else "--from usb"
    assert caught.value.hint.endswith(f"\nA copy may have it intact: {others}")
    assert places.warnings() == []


def test_a_backup_that_the_primary_lacks_is_not_taken_from_a_copy(places: Places) -> None:
    places.put("disk", OLDER)
    with (
        pytest.raises(BackupNotFoundError) as caught,
        origin.suggested(places.load(), places.heard.append) as emit,
    ):
        stored.open_archive(places.load(), Wanted(OLDER), emit)
    assert caught.value.hint.endswith("--from disk or --from usb")


def failed(error: type[PgstashError]) -> events.RestoreFailed:
    return events.RestoreFailed(OLDER, 1.0, "it failed", "Check S3_BUCKET.", "", error.__name__, 1)


def test_the_event_of_a_failure_names_the_copies_too(places: Places) -> None:
    primary = places.load()
    for chosen, own in ((primary, ""), (primary.of_copy("usb"), "COPY_USB_")):
        with origin.suggested(chosen, places.heard.append) as emit:
            emit(failed(CorruptedError))
            emit(failed(WrongClockError))
        of_store, other = places.heard[-2:]
        assert isinstance(of_store, events.RestoreFailed)
        assert of_store.hint.startswith(
            f"Check {own}S3_BUCKET.\nA copy may have it intact: --from d"
        )
        assert other == failed(WrongClockError)
    alone = places.load(COPY_TO="", COPY_DISK_STORAGE_URL="", COPY_USB_STORAGE_URL="")
    with origin.suggested(alone, places.heard.append) as emit:
        emit(failed(CorruptedError))
    assert places.heard[-1] == failed(CorruptedError)


def test_the_owner_check_holds_for_a_copy(places: Places) -> None:
    for base, system in ((OLDER, "1"), (NEWER, "2")):
        places.put("disk", base, database="shop", system=system)
    with pytest.raises(SourceUnclearError):
        opened(places, places.load().of_copy("disk"))


def test_which_copy_is_meant(places: Places) -> None:
    found = places.load(COPY_TO="disk,usb,off-site", COPY_OFF_SITE_STORAGE_URL="file:///off")
    assert origin.of_copy(found, None) is found
    for place in ("file:///mnt/disk", "/mnt/disk", "./disk"):
        assert origin.of_copy(found, place) is found
    for written in ("USB", " usb "):
        assert origin.of_copy(found, written).copy_name == "usb"
    assert origin.of_copy(found, "Off_Site").copy_name == "off-site"
    with pytest.raises(ConfigurationError, match=r"which names disk, usb, off-site\. For"):
        origin.of_copy(found, "tape")
    alone = places.load(COPY_TO="", COPY_DISK_STORAGE_URL="", COPY_USB_STORAGE_URL="")
    with pytest.raises(ConfigurationError, match=r"which is not set\. For a folder"):
        origin.of_copy(alone, "tape")


def test_the_latest_in_a_copy_is_compared_with_the_primary(places: Places) -> None:
    places.put("disk", OLDER)
    copy = places.load().of_copy("disk")

    def warned(chosen: Settings, name: str = "latest") -> list[str]:
        places.heard.clear()
        assert opened(places, chosen, name) == f"{OLDER}.sql.gz"
        return places.warnings()

    about = f"{OLDER}.sql.gz is the newest in the copy disk"
    assert warned(copy) == []  # the primary has none
    places.put("primary", OLDER)
    assert warned(copy) == []
    assert (
        events.Informed(
            f"Reading the copy disk: {(places.folder / 'disk' / 'postgres-backups').as_uri()}/"
        )
        in places.heard
    )
    places.put("primary", NEWER)
    assert warned(copy) == [f"{about}, but the primary has a newer one: {NEWER}.sql.gz"]
    assert warned(copy, OLDER) == []
    [unknown] = warned(places.load(**NOWHERE).of_copy("disk"))
    assert unknown.startswith(f"{about}. Could not ask the primary for a newer one: ")
    for incomplete in (
        {"STORAGE_URL": ""},
        {"STORAGE_URL": "", "S3_BUCKET": "b", "S3_ACCESS_KEY_ID": "x"},
    ):
        [unset] = warned(places.load(["copies"], **incomplete).of_copy("disk"))
        assert unset == f"{about}. No primary store is configured that might have a newer one"


def test_a_url_takes_the_place_of_the_store_for_one_command(places: Places) -> None:
    values = {
        "STORAGE_URL": "s3://backups/of/primary",
        "S3_ENDPOINT": "https://s3.example.com",
        "S3_BUCKET": "backups",
        "S3_ACCESS_KEY_ID": "x",
        "S3_SECRET_ACCESS_KEY": "y",
        "S3_OBJECT_LOCK_DAYS": "3",
        "COPY_TO": "disk",
        "COPY_DISK_STORAGE_URL": (places.folder / "disk").as_uri(),
    }

    def load(url: str, **more: str) -> Settings:
        return settings.load(
            values | more, Path("/none"), needs=["storage"], given={"STORAGE_URL": url}
        )

    disk = load(values["COPY_DISK_STORAGE_URL"], BACKUP_PREFIX="of/primary")
    assert disk.storage_folder == places.folder / "disk"
    assert (disk.s3_object_lock_days, disk.backup_prefix) == (None, "of/primary")
    assert (disk.copy_names, disk.warnings()) == ([], [])
    bucket = load("s3://other/elsewhere", BACKUP_PREFIX="of/primary")
    assert (bucket.s3_bucket, bucket.backup_prefix) == ("other", "elsewhere")
    assert bucket.s3_url == "https://s3.example.com"
    with pytest.raises(ConfigurationError, match=r"^--from must not contain credentials"):
        load("s3://key:PlantedSecret1@other")
