"""Failed runs leave a record in the store, and the history shows it."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pgstash import events, settings
from pgstash.commands import failure_records, history, last_runs
from pgstash.errors import (
    ConfigurationError,
    DatabaseUnreachableError,
    DrillFailedError,
    Interrupted,
    StorageUnreachableError,
)
from pgstash.failure import fields
from pgstash.format import names
from pgstash.repository import catalog
from pgstash.runtime import Runtime
from pgstash.storage.directory.storage import DirectoryStorage
from support.age_keys import person
from support.kms import ALIAS, Kms, Refusal
from support.swift import SwiftServer

NOW = datetime(2026, 1, 31, 12, 0, 10, tzinfo=UTC)
PASSPHRASE = "a passphrase of more than thirty-two characters"
PASSWORD = "s3cr3t-of-the-database"
ID = "0123456789abcdef"
BASE = "backup_20260131_120000"


@dataclass
class Host:
    """A host with settings, and what its runs report."""

    folder: Path
    more: dict[str, str] = field(default_factory=dict)
    heard: list[events.Event] = field(default_factory=list)

    @property
    def settings(self) -> settings.Settings:
        given = {
            "DATABASE_URL": f"postgresql://u:{PASSWORD}@127.0.0.1:1/shop",
            "STORAGE_URL": self.folder.as_uri(),
            "BACKUP_PREFIX": "p",
        }
        values = {key: value for key, value in (given | self.more).items() if value}
        return settings.load(values, Path("/none"))

    def fail(self, error: BaseException, *during: events.Event, seconds: float = 4.0) -> None:
        """Run a backup, or a drill if its events are given, that fails after 10 seconds."""
        with pytest.raises(type(error)):
            self._run(error, during, seconds)

    def _run(self, error: BaseException, during: Sequence[events.Event], seconds: float) -> None:
        runtime = Runtime(self.heard.append, now=lambda: NOW)
        name, told = f"{BASE}.sql.gz", fields(error)
        failed: events.Event = events.BackupFailed(name, 10.0, **told, database="shop")
        if any(isinstance(each, events.DrillAttempted) for each in during):
            failed = events.DrillFailed(name, 10.0, **told, host="db1", database="shop")
        with failure_records.recorded(self.settings, runtime, seconds) as noted:
            for event in (*during, failed):
                noted.emit(event)
            raise error

    def history(self, days: int = 30) -> list[history.Entry]:
        return history.history(self.settings, NOW - timedelta(days=days), self.heard.append)

    def files(self) -> dict[str, bytes]:
        found = (self.folder / "p").glob("*")
        return {each.name: each.read_bytes() for each in found if each.name[0] != "."}

    def metadata(self, name: str) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.folder / f"p/.{name}.metadata.json").read_text())
        return found

    def words(self) -> str:
        return "\n".join(each.message for each in self.heard if isinstance(each, events.Informed))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


UNREACHABLE = DatabaseUnreachableError(f"no answer for u:{PASSWORD}@127.0.0.1", hint="Wait.")
DUMPING = (
    events.BackupAttempted("127.0.0.1", "shop"),
    events.DumpStarted("x", "16.1", "16.2"),
    events.PhaseStarted("rows"),
)
DRILLING = (events.DrillAttempted("latest"), events.DrillStarted("x", "there"))


def test_a_failed_backup_leaves_its_record(host: Host) -> None:
    host.fail(UNREACHABLE, *DUMPING)
    [(name, data)] = host.files().items()
    run = names.failure_of(name)
    assert run
    assert (run.started, run.kind) == (NOW - timedelta(seconds=10), "record")
    record: dict[str, Any] = json.loads(gzip.decompress(data))
    assert record["message"] == "no answer for u:***@127.0.0.1"
    known = {key: record[key] for key in ("operation", "error", "exit_code", "phase", "seconds")}
    assert known == {
        "operation": "backup",
        "error": "DatabaseUnreachableError",
        "exit_code": 10,
        "phase": "dumping",
        "seconds": 10.0,
    }
    assert record["machine"] == socket.gethostname()
    metadata = host.metadata(name)
    assert {key: metadata[key] for key in ("database", "host", "port", "exit-code")} == {
        "database": "shop",
        "host": "127.0.0.1",
        "port": "1",
        "exit-code": "10",
    }
    assert PASSWORD not in f"{metadata}{record}"
    [*_, failed] = host.heard
    assert isinstance(failed, events.BackupFailed)


def test_a_record_is_no_backup(host: Host) -> None:
    host.fail(UNREACHABLE)
    found = catalog.read(DirectoryStorage(host.folder), "p")
    assert (found.backups, found.suspects) == ([], [])
    since, until = NOW - timedelta(days=1), NOW
    assert catalog.within(DirectoryStorage(host.folder), "p", since=since, until=until) == []
    [run] = found.failures
    assert run.keys == [f"p/{name}" for name in host.files()]


def test_a_long_message_is_cut_without_half_a_secret(host: Host) -> None:
    host.fail(DatabaseUnreachableError("x" * 1990 + f" {PASSWORD} {PASSWORD}" * 1000))
    [data] = host.files().values()
    message = json.loads(gzip.decompress(data))["message"]
    assert len(message) <= 2004
    assert "s3cr3t" not in message


def test_it_is_encrypted_if_backups_are(host: Host) -> None:
    host.more = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_KEY": PASSPHRASE}
    host.fail(UNREACHABLE, *DUMPING)
    [(name, data)] = host.files().items()
    assert name.endswith(".failure.json.gz.enc")
    opened = subprocess.run(
        ["openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-pass", "env:KEY"],
        input=data,
        env={"KEY": PASSPHRASE, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    ).stdout
    assert b"no answer for u:***@" in gzip.decompress(opened)
    assert "no answer" not in str(host.metadata(name))
    [entry] = host.history()
    assert entry.reason
    assert entry.reason.message == "no answer for u:***@127.0.0.1"

    host.more = {}
    [entry] = host.history()
    assert entry.reason is None
    assert entry.failed
    assert (entry.failed.exit_code, entry.failed.phase) == (10, "dumping")
    assert "The reason of 1 failure could not be read: " in host.heard[-1].message  # type: ignore[attr-defined] # a warning


def test_it_is_encrypted_for_recipients(host: Host) -> None:
    ann = person("ann")
    host.more = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_RECIPIENTS": ann.recipient}
    host.fail(UNREACHABLE)
    [record, key] = sorted(host.files())
    assert (record.endswith(".failure.json.gz.enc"), key.endswith(".failure.key.age")) == (
        True,
        True,
    )
    assert host.metadata(key)["recipient-count"] == "1"
    [entry] = host.history()
    assert entry.reason is None
    host.more = {"BACKUP_DECRYPTION_IDENTITY": ann.identity}
    [entry] = host.history()
    assert entry.reason
    assert entry.reason.exit_code == 10


def test_it_is_encrypted_by_kms(host: Host, kms: Kms) -> None:
    host.more = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_RECIPIENTS": ALIAS}
    host.fail(UNREACHABLE)
    assert sorted(name.split(".", 2)[2] for name in host.files()) == [
        "failure.json.gz.enc",
        "failure.key.kms",
    ]
    [entry] = host.history()
    assert entry.reason
    assert entry.reason.exit_code == 10
    before = len(kms.signed)
    without, host.more = host.more, {}
    [entry] = host.history()
    assert (entry.reason, len(kms.signed)) == (None, before)

    host.more = without
    kms.refusals = [Refusal(400, "AccessDeniedException")]
    host.heard.clear()
    host.fail(UNREACHABLE)
    assert "The failure was not recorded in the store: cannot encrypt" in host.words()
    assert len(host.files()) == 2


def test_a_failed_drill_leaves_one_too(host: Host) -> None:
    host.fail(DrillFailedError("a table differs"), *DRILLING, events.PhaseStarted("checks"))
    [entry] = host.history()
    assert entry.failed
    assert (entry.operation, entry.failed.phase, entry.backup) == (
        "drill",
        "checking",
        f"{BASE}.sql.gz",
    )


def test_a_store_that_does_not_answer_delays_the_run_only_briefly(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        host.more = {
            "STORAGE_URL": "",
            "S3_ENDPOINT": f"http://127.0.0.1:{port}",
            "S3_BUCKET": "b",
            "S3_ACCESS_KEY_ID": "k",
            "S3_SECRET_ACCESS_KEY": "secret-of-the-store",
        }
        began = time.monotonic()
        host.fail(UNREACHABLE, seconds=0.3)
        host.fail(Interrupted(15), seconds=60.0)
        assert time.monotonic() - began < 20
    assert "The failure was not recorded in the store within 0.3 seconds" in host.words()
    assert "The failure was not recorded in the store within 1 seconds" in host.words()


def test_nothing_is_tried_if_the_store_did_not_answer_before(host: Host) -> None:
    """A signal leaves a few seconds, which the attempt to abort the upload has used up."""
    host.fail(Interrupted(15), *DUMPING, events.UploadLeftBehind("k", "1", "no answer"))
    assert host.files() == {}
    assert isinstance(host.heard[-1], events.Notice)
    assert "not recorded" in host.heard[-1].message


def test_a_store_that_refuses_is_a_notice(host: Host, swift_server: SwiftServer) -> None:
    host.more = {
        "STORAGE_URL": "",
        "S3_ENDPOINT": swift_server.endpoint,
        "S3_REGION": swift_server.region,
        "S3_BUCKET": "there-is-no-such-bucket",
        "S3_ACCESS_KEY_ID": swift_server.access_key_id,
        "S3_SECRET_ACCESS_KEY": swift_server.secret_access_key,
    }
    host.fail(UNREACHABLE)
    assert "The failure was not recorded in the store: cannot store" in host.words()


def test_a_missing_folder_is_not_created(host: Host) -> None:
    host.folder /= "none"
    host.fail(UNREACHABLE)
    assert not host.folder.exists()
    assert "The failure was not recorded in the store: " in host.words()
    # If the store failed the run, the log says so already.
    host.heard.clear()
    host.fail(StorageUnreachableError("it does not answer"))
    assert host.words() == ""
    assert isinstance(host.heard[-1], events.Notice)


def test_a_run_that_succeeds_leaves_none(host: Host) -> None:
    with failure_records.recorded(host.settings, Runtime(host.heard.append)) as noted:
        noted.emit(events.BackupAttempted("127.0.0.1", "shop"))
    assert host.files() == {}
    assert host.heard == [events.BackupAttempted("127.0.0.1", "shop")]


def test_the_history_has_backups_drills_and_failures_the_newest_first(host: Host) -> None:
    storage, hour = DirectoryStorage(host.folder), timedelta(hours=1)
    source = {"id": ID, "database": "shop", "system": "1", "host": "db1", "port": "5432"}
    for age in (2, 3, 24 * 40):
        base = names.base_name(NOW - age * hour)
        facts = source | {"seconds": "7.5", "tables": "3", "rows": "9" * 5000}
        storage.put(f"p/{names.manifest_name(base, ID, encrypted=False)}", b"x", facts)
        storage.put(f"p/{names.archive_name(base, encrypted=False)}", b"data", source)
    # The drill of a backup that is too old to be shown itself.
    proof = names.proof_name(base, ID, NOW - hour, encrypted=False)
    storage.put(f"p/{proof}", b"x", source | {"restore-seconds": "61.2"})
    # That of another backup of this name, which its id shows.
    other = names.proof_name(base, "f" * 16, NOW - hour, encrypted=False)
    storage.put(f"p/{other}", b"x", {"id": "f" * 16})
    host.fail(UNREACHABLE)
    (host.folder / f"p/backup_20260131_110000.{ID}.failure.json.gz").write_bytes(b"broken")
    (host.folder / f"p/backup_20260131_100000.{ID}.failure.key.age").write_bytes(b"a record is not")
    found = host.history()
    assert [(each.operation, each.failed is None, each.at) for each in found] == [
        ("backup", False, NOW - timedelta(seconds=10)),
        ("drill", True, NOW - hour),
        ("backup", False, NOW - hour - timedelta(seconds=10)),
        ("backup", True, NOW - 2 * hour),
        ("backup", True, NOW - 3 * hour),
    ]
    assert [each.seconds for each in found] == [10.0, 61.2, None, 7.5, 7.5]
    assert found[1].source == "shop@1"
    assert len(host.history(days=50)) == 6
    warned = [each.message for each in host.heard if isinstance(each, events.Warned)]
    assert warned[0].startswith("The reason of 1 failure could not be read: ")


def test_a_record_of_another_failure_gives_no_reason(host: Host) -> None:
    host.fail(UNREACHABLE)
    [(name, data)] = host.files().items()
    moved = name.replace(name.split(".")[1], ID)
    (host.folder / "p" / moved).write_bytes(data)
    reasons = {each.known.get("id") is None: each.reason for each in host.history()}
    assert reasons[True] is None
    assert reasons[False] is not None


def test_a_record_that_is_too_large_is_not_read(host: Host) -> None:
    host.fail(UNREACHABLE)
    [name] = host.files()
    (host.folder / "p" / name).write_bytes(gzip.compress(b"x", 0) + b"\0" * 70_000)
    [entry] = host.history()
    assert entry.reason is None


def test_a_host_that_only_writes_has_no_history(host: Host) -> None:
    host.more = {"STORAGE_ROLE": "writer"}
    with pytest.raises(ConfigurationError, match="pgstash history"):
        host.history()


def test_a_message_asks_for_the_last_run_of_its_own_database(tmp_path: Path) -> None:
    """Another one may have the same prefix."""
    shop = Host(tmp_path)
    blog = Host(tmp_path, {"DATABASE_URL": "postgresql://u@127.0.0.1:1/blog"})
    wiki = Host(tmp_path, {"DATABASE_URL": "postgresql://u@127.0.0.1:1/wiki"})
    shop.fail(DatabaseUnreachableError("down"))
    blog.fail(ConfigurationError(["wrong"]))
    later = NOW + timedelta(hours=1)

    def before(host: Host) -> str | None:
        return last_runs.error_before(host.settings, "backup", later)

    assert before(shop) == "DatabaseUnreachableError"
    assert before(blog) == "ConfigurationError"
    assert before(wiki) == ""
    assert last_runs.error_before(shop.settings, "drill", later) == ""
    assert last_runs.error_before(shop.settings, "backup", NOW - timedelta(seconds=10)) == ""
