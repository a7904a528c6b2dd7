"""What follows a backup if COPY_TO is set: copies, pruning there, and never a failure."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import copies_after_backup
from pgstash.commands.copies_after_backup import BackgroundCopies, copy_and_prune
from pgstash.format.identity import Identity
from pgstash.format.metadata import SHA256, encoded
from pgstash.runtime import Runtime
from pgstash.settings import Settings
from pgstash.storage.directory.storage import DirectoryStorage
from support.stored import CLOSING, make

if TYPE_CHECKING:
    from support.swift import SwiftServer

NOW = datetime(2026, 2, 10, tzinfo=UTC)
SHOP = Identity("shop", "7301234567890123456", "db1", "5432")
BLOG = Identity("blog", "7301234567890123456", "db1", "5432")
PREFIX = "postgres-backups"


class Scene:
    """A primary and two copies, in folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for each in ("primary", "offsite", "disk"):
            (root / each).mkdir()
        self.heard: list[events.Event] = []

    def store(self, days: int, source: Identity = SHOP) -> str:
        """Store a backup that began so many days ago; return its name."""
        storage = DirectoryStorage(self.root / "primary")
        base = (NOW - timedelta(days=days)).strftime("backup_%Y%m%d_%H%M%S")
        made = make(CLOSING, base=base)
        facts = {"id": made.manifest.id, **encoded(source.metadata())}
        digest = {SHA256: made.manifest.sha256}
        key = made.manifest_key.replace("p/", f"{PREFIX}/")
        storage.put(key, made.packed_manifest(), facts | digest)
        storage.put(f"{PREFIX}/{made.manifest.archive}", made.archive, facts)
        return made.manifest.archive

    def settings(self, **more: str) -> Settings:
        values = {
            "DATABASE_URL": "postgresql://u@h/shop",
            "STORAGE_URL": (self.root / "primary").as_uri(),
            "BACKUP_RETENTION_DAYS": "30",
            "COPY_TO": "offsite,disk",
            "COPY_OFFSITE_STORAGE_URL": (self.root / "offsite").as_uri(),
            "COPY_DISK_STORAGE_URL": (self.root / "disk").as_uri(),
        }
        return settings.load(values | more, Path("/nonexistent/.env"))

    def copy(
        self, source: Identity = SHOP, go_on: Callable[[], None] = lambda: None, /, **more: str
    ) -> None:
        runtime = Runtime(self.heard.append, now=lambda: NOW)
        copy_and_prune(self.settings(**more), source, runtime, go_on, lambda _settings: NOW)

    def of(self, copy: str) -> list[str]:
        found = (self.root / copy / PREFIX).glob("backup_????????_??????.sql.gz")
        return sorted(each.name for each in found)

    def states(self) -> dict[str, events.CopyCompared]:
        return {each.copy: each for each in self.heard if isinstance(each, events.CopyCompared)}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_each_copy_gets_what_it_lacks_of_the_source_the_newest_first(scene: Scene) -> None:
    old, new = scene.store(9), scene.store(1)
    scene.store(2, BLOG)
    scene.copy()
    assert scene.of("offsite") == scene.of("disk") == [old, new]
    copied = [
        (each.copy, each.name) for each in scene.heard if isinstance(each, events.CopySucceeded)
    ]
    assert copied == [("offsite", new), ("offsite", old), ("disk", new), ("disk", old)]
    state = scene.states()["offsite"]
    assert state == events.CopyCompared("offsite", new, NOW - timedelta(days=1), 0)
    scene.heard.clear()
    scene.copy()
    assert not [each for each in scene.heard if isinstance(each, events.CopySucceeded)]


def test_a_copy_has_a_retention_of_its_own(scene: Scene) -> None:
    names = [scene.store(days) for days in (20, 10, 5, 1)]
    scene.copy(COPY_OFFSITE_BACKUP_RETENTION_DAYS="7", COPY_DISK_BACKUP_RETENTION_DAYS="60")
    assert scene.of("offsite") == names[2:]
    assert scene.of("disk") == names
    assert scene.states()["offsite"].missing == 0
    # What has become too old there is pruned, and nothing is copied to be pruned.
    scene.copy(COPY_OFFSITE_BACKUP_RETENTION_DAYS="2", COPY_DISK_BACKUP_RETENTION_DAYS="60")
    assert scene.of("offsite") == names[3:]
    removed = [each.name for each in scene.heard if isinstance(each, events.BackupRemoved)]
    assert removed == [names[2]]
    assert len(scene.of("primary")) == 4


def test_the_primary_under_another_url_is_no_copy_and_is_not_pruned(
    scene: Scene, swift_server: SwiftServer, s3_bucket: str
) -> None:
    scene.store(20)
    new = scene.store(1)
    store = {
        "S3_BUCKET": s3_bucket,
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
    }
    alias = {f"COPY_OFFSITE_{name}": value for name, value in store.items()} | {
        "COPY_OFFSITE_S3_ENDPOINT": f"http://localhost:{swift_server.port}",
        "COPY_OFFSITE_STORAGE_URL": "",
        "COPY_TO": "offsite",
    }
    scene.copy(**alias)
    assert scene.states()["offsite"].missing == 0
    scene.heard.clear()
    endpoint = f"http://127.0.0.1:{swift_server.port}"
    more = {"STORAGE_URL": "", "COPY_OFFSITE_BACKUP_RETENTION_DAYS": "7"}
    scene.copy(**alias | store | more, S3_ENDPOINT=endpoint)
    [failed] = [each for each in scene.heard if isinstance(each, events.CopyFailed)]
    assert "The copy offsite is the primary under another URL: " in failed.message
    assert not [each for each in scene.heard if isinstance(each, events.BackupRemoved)]
    assert scene.states()["offsite"].problem == failed.message
    assert scene.states()["offsite"].newest == new


def test_a_copy_that_cannot_be_reached_is_a_warning_and_keeps_no_other_back(scene: Scene) -> None:
    name = scene.store(1)
    (scene.root / "offsite").rmdir()
    scene.copy()
    assert scene.of("disk") == [name]
    [failed] = [each for each in scene.heard if isinstance(each, events.CopyFailed)]
    assert (failed.copy, failed.after_backup, failed.database) == ("offsite", True, "shop")
    offsite, disk = scene.states()["offsite"], scene.states()["disk"]
    assert (offsite.newest, offsite.missing) == (None, None)
    assert offsite.problem == failed.message
    assert disk.missing == 0


def test_a_hint_names_the_settings_of_the_copy(scene: Scene) -> None:
    scene.store(1)
    scene.copy(
        COPY_TO="nowhere",
        COPY_NOWHERE_S3_ENDPOINT="http://127.0.0.1:1",
        COPY_NOWHERE_S3_BUCKET="copies",
        COPY_NOWHERE_S3_ACCESS_KEY_ID="key",
        COPY_NOWHERE_S3_SECRET_ACCESS_KEY="secret",
        RETRY_ATTEMPTS="0",
    )
    [failed] = [each for each in scene.heard if isinstance(each, events.CopyFailed)]
    assert "COPY_NOWHERE_S3_ENDPOINT" in failed.hint


def test_a_damaged_backup_keeps_no_other_back_and_nothing_is_pruned_there(scene: Scene) -> None:
    old, damaged, new = scene.store(9), scene.store(5), scene.store(1)
    archive = scene.root / "primary" / PREFIX / damaged
    archive.write_bytes(archive.read_bytes()[:-1] + b"?")
    scene.copy(COPY_OFFSITE_BACKUP_RETENTION_DAYS="60")
    assert scene.of("offsite") == [old, new]
    state = scene.states()["offsite"]
    assert state.missing == 1
    assert damaged in state.problem
    scene.copy(COPY_OFFSITE_BACKUP_RETENTION_DAYS="6")
    assert scene.of("offsite") == [old, new]


@pytest.mark.parametrize(
    "value", ["a\r\nx-amz-acl: public-read", "caf\u00e9", "a\0b", "\udcff", " a"]
)
@pytest.mark.parametrize("kind", ["", "manifest"])
def test_a_backup_whose_metadata_no_store_takes_keeps_no_other_back(
    scene: Scene, value: str, kind: str
) -> None:
    old, planted = scene.store(9), scene.store(1)
    storage = DirectoryStorage(scene.root / "primary")
    [key] = [
        each.key
        for each in storage.list(f"{PREFIX}/{planted.partition('.')[0]}.")
        if (kind in each.key if kind else each.key.endswith(planted))
    ]
    sidecar = scene.root / "primary" / f"{PREFIX}/.{key.rpartition('/')[2]}.metadata.json"
    sidecar.write_text(json.dumps(dict(storage.head(key).metadata) | {"server": value}))
    scene.copy(COPY_TO="offsite")
    assert scene.of("offsite") == [old]
    [failed] = [each for each in scene.heard if isinstance(each, events.CopyFailed)]
    assert (failed.name, failed.error) == (planted, "CorruptedError")
    assert "has characters that pgstash never writes" in failed.message
    assert value not in failed.message


def test_an_unexpected_error_is_a_warning(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_settings: Settings) -> object:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(copies_after_backup, "policy_of", broken)
    scene.store(1)
    scene.copy()
    warnings = [each.message for each in scene.heard if isinstance(each, events.Warned)]
    assert warnings == [
        f"The copy {name} was not brought up to date: RuntimeError: unexpected"
        for name in ("offsite", "disk")
    ]


# In the background.


class Gate:
    """What holds the copying back in a test: it listens to events, and waits at each copy."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.reached, self.open = threading.Event(), threading.Event()

    def __call__(self, event: events.Event) -> None:
        self.scene.heard.append(event)
        if isinstance(event, events.Informed) and event.message.startswith("Copying "):
            self.reached.set()
            assert self.open.wait(60)


@pytest.fixture
def gate(scene: Scene) -> Iterator[Gate]:
    gate = Gate(scene)
    yield gate
    gate.open.set()


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_backup_waits_for_no_copy_and_the_newest_is_copied_first(
    scene: Scene, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_after_backup, "prune_after_backup", lambda *_: None)
    first, second = scene.store(9), scene.store(8)
    copying = BackgroundCopies(scene.settings(), Runtime(gate, now=lambda: NOW))
    copying.start()
    copying.request(SHOP)
    assert gate.reached.wait(60)
    newest = scene.store(1)
    copying.request(SHOP)  # as the next backup does: nobody waits
    copying.request(SHOP)
    assert scene.of("offsite") == []
    gate.open.set()
    wait_for(lambda: scene.of("disk") == [first, second, newest])
    copying.end()
    copied = [
        each.name
        for each in scene.heard
        if isinstance(each, events.CopySucceeded) and each.copy == "offsite"
    ]
    assert copied == [second, newest, first]
    assert not [each for each in scene.heard if isinstance(each, events.CopyStarted)]


def test_the_end_waits_for_a_limited_time_and_reports_what_may_be_left(
    scene: Scene, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_after_backup, "SECONDS_TO_END", 0.1)
    scene.store(1)
    copying = BackgroundCopies(scene.settings(), Runtime(gate, now=lambda: NOW))
    copying.start()
    copying.request(SHOP)
    assert gate.reached.wait(60)
    copying.end()
    [warning] = [each.message for each in scene.heard if isinstance(each, events.Warned)]
    assert "An unfinished upload may take up space" in warning
    # Once it goes on, it sees that it has to end.
    gate.open.set()
    wait_for(lambda: not copying._thread.is_alive())  # noqa: SLF001 - the thread in question
    assert scene.of("offsite") == []


def test_without_copies_there_is_no_thread(scene: Scene) -> None:
    without = scene.settings(COPY_TO="")
    before = threading.active_count()
    with copies_after_backup.in_background(without, Runtime(events.ignore)) as request:
        request(SHOP)
        assert threading.active_count() == before
