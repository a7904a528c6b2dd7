"""What metrics take from the store, and where they go, according to the settings."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pgstash import events, settings
from pgstash.commands import metrics
from pgstash.commands.jobs import Job
from pgstash.commands.metrics_of_jobs import MetricsOfJobs
from pgstash.commands.notifications import listening
from pgstash.errors import Interrupted, StorageError
from pgstash.format import failure_record, names
from pgstash.format.failure_record import Failure
from pgstash.format.identity import Identity
from pgstash.processes.children import Ended
from pgstash.processes.outcome import Outcome
from pgstash.service.dispatcher import Run
from pgstash.storage.directory.storage import DirectoryStorage
from support.hooks import receiving

if TYPE_CHECKING:
    from collections.abc import Mapping

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
ID = "0123456789abcdef"
SHOP = Identity("shop", "7", "db1", "5432")
NAME = "backup_20260131_110000.sql.gz"
SUCCEEDED = events.BackupSucceeded(NAME, 7.5, "s3://b/k", 524, 102, 3, 12)
FAILED = events.BackupFailed(NAME, 1.0, "no", "", error="DumpError", exit_code=13)


def load(folder: Path, **more: str) -> settings.Settings:
    given = {
        "DATABASE_URL": "postgresql://u:planted-password@db1:5432/shop",
        "STORAGE_URL": folder.as_uri(),
        "BACKUP_PREFIX": "p",
    }
    return settings.load(given | more, Path("/none"))


class Store:
    """A store in a directory."""

    def __init__(self, folder: Path) -> None:
        self.storage = DirectoryStorage(folder)

    def backup(
        self, at: datetime, source: Identity = SHOP, facts: Mapping[str, str] | None = None
    ) -> str:
        base, known = names.base_name(at), {"id": ID, **source.metadata()}
        manifest = names.manifest_name(base, ID, encrypted=False)
        self.storage.put(f"p/{manifest}", b"x", known | dict(facts or {}))
        self.storage.put(f"p/{names.archive_name(base, encrypted=False)}", b"data", known)
        return base

    def proof(self, base: str, at: datetime, seconds: str) -> None:
        name = names.proof_name(base, ID, at, encrypted=False)
        self.storage.put(f"p/{name}", b"x", {"id": ID, "restore-seconds": seconds})

    def failure(
        self,
        at: datetime,
        operation: failure_record.Operation = "backup",
        source: Identity = SHOP,
    ) -> None:
        found = Failure(1, "t", operation, ID, "", 1.0, "dumping", "E", 13, "", "", "", "m")
        name = names.failure_name(names.base_name(at), ID, encrypted=False)
        self.storage.put(f"p/{name}", b"x", failure_record.facts(found, source))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return Store(tmp_path / "store")


def remembered(folder: Path, **more: str) -> dict[str, float]:
    values = load(folder, **more)
    figures = metrics.figures_of(values)
    metrics.remember(values, figures, SHOP, NOW)
    gauges, counters = figures.values()
    assert counters == {}
    return {"/".join(key): value for key, value in gauges.items()}


def test_the_store_has_the_figures_from_before(store: Store, tmp_path: Path) -> None:
    facts = {"raw-bytes": str(5 * 10**12), "tables": "3", "rows": "12", "seconds": "7.5"}
    store.failure(NOW - 5 * HOUR)
    base = store.backup(NOW - 3 * HOUR, facts=facts)
    store.backup(NOW - 2 * HOUR, Identity("blog", "7", "db1", "5432"))
    store.proof(base, NOW - 2 * HOUR, "61.5")
    store.failure(NOW - HOUR)
    store.failure(NOW - HOUR / 2)
    store.failure(NOW - HOUR / 3, source=Identity("blog", "7", "db1", "5432"))
    store.failure(NOW - HOUR / 4, "drill")
    began = (NOW - 3 * HOUR).timestamp()
    assert remembered(tmp_path / "store") == {
        "backup_last_success_timestamp_seconds": began,
        "backup_last_attempt_timestamp_seconds": (NOW - HOUR / 2).timestamp(),
        "backup_stale_at_timestamp_seconds": began + 5400,
        "backup_last_duration_seconds": 7.5,
        "backup_last_raw_bytes": 5 * 10**12,
        "backup_last_stored_bytes": 4,
        "backup_last_rows": 12,
        "backup_last_tables": 3,
        "backup_failures_in_a_row": 2,
        "drill_last_success_timestamp_seconds": (NOW - 2 * HOUR).timestamp(),
        "drill_last_restore_seconds": 61.5,
        "drill_failures_in_a_row": 1,
    }
    assert remembered(tmp_path / "store", STORAGE_ROLE="writer") == {}


def test_a_store_without_a_backup(store: Store, tmp_path: Path) -> None:
    assert remembered(tmp_path / "store") == {
        "backup_failures_in_a_row": 0,
        "drill_failures_in_a_row": 0,
    }
    store.failure(NOW - HOUR)
    # A backup dated in the future is no success.
    store.backup(NOW + 30 * HOUR)
    found = remembered(tmp_path / "store")
    assert found["backup_failures_in_a_row"] == 1
    assert "backup_last_success_timestamp_seconds" not in found


def test_the_labels_of_a_job(tmp_path: Path) -> None:
    labels = metrics.labels_of(load(tmp_path))
    assert (labels.job, labels.database, labels.server) == ("shop", "shop", "db1:5432")


def test_listeners_write_and_push(tmp_path: Path) -> None:
    path = tmp_path / "pgstash.prom"
    with receiving() as gateway:
        values = load(
            tmp_path, METRICS_FILE=str(path), METRICS_PUSHGATEWAY=gateway.url("/planted-path")
        )
        with listening(values) as emit:
            emit(events.BackupAttempted("db1", "shop"))
            emit(SUCCEEDED)
        [pushed] = gateway.received
        assert b'pgstash_backup_last_rows{database="shop",job="shop",server="db1:5432"} 12.0' in (
            pushed.body
        )
        path.unlink()
        # The process that started this one writes the file.
        with listening(values, live=False) as emit:
            emit(events.BackupAttempted("db1", "shop"))
            emit(FAILED)
        assert len(gateway.received) == 2
        assert not path.exists()
    assert "planted-path" in " ".join(values.secrets())


def test_other_commands_write_nothing(tmp_path: Path) -> None:
    values = load(tmp_path, METRICS_FILE=str(tmp_path / "pgstash.prom"))
    with listening(values) as emit:
        emit(events.Informed("a listing"))
    assert not (tmp_path / "pgstash.prom").exists()


def test_without_the_library_there_is_a_warning_and_a_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(metrics, "is_available", lambda: False)
    monkeypatch.setattr(metrics, "_warn", warned.append)
    values = load(tmp_path, METRICS_FILE=str(tmp_path / "pgstash.prom"))
    with listening(values) as emit:
        emit(events.BackupAttempted("db1", "shop"))
        emit(SUCCEEDED)
    with MetricsOfJobs().written(values):
        pass
    assert not (tmp_path / "pgstash.prom").exists()
    remedy = "It needs the extra metrics. Install it: pip install 'pgstash[metrics]'"
    assert warned == [f"METRICS_FILE is ignored. {remedy}"] * 2


def test_a_signal_ends_the_wait_for_the_file(tmp_path: Path) -> None:
    values = load(tmp_path, METRICS_FILE=str(tmp_path / "pgstash.prom"))
    began = time.monotonic()

    def interrupted() -> None:
        with listening(values) as emit:
            emit(events.BackupAttempted("db1", "shop"))
            emit(FAILED)
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        interrupted()
    assert time.monotonic() - began < 30
    assert "DumpError" in (tmp_path / "pgstash.prom").read_text()


def test_the_runs_of_many_jobs_report_their_figures(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "pgstash.prom"
    values = load(tmp_path / "store", METRICS_FILE=str(path))
    store.backup(NOW - 3 * HOUR, facts={"rows": "12"})
    measured, run = MetricsOfJobs(), Run("shop", "backup")
    with measured.written(values):
        blog = {"DATABASE_URL": "postgresql://u:planted-password@db1:5432/blog"}
        silent = Job("blog", load(tmp_path / "none", **blog))
        measured.added([silent, Job("shop", values)], remember=True)
        assert measured.metrics.of("blog")
        figures = measured.metrics.of("shop")
        assert figures
        give_up = time.monotonic() + 30
        while ("backup_last_rows",) not in figures.values()[0]:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        measured.started(run)
        assert figures.values()[0]["running", "backup"] == 1
        child = metrics.figures_of(values)
        child(FAILED)
        report = Outcome("no", retryable=True, figures=child.text())
        measured.ended(run, Ended(run, 13, report), NOW)
        measured.ended(run, Ended(run, -9, None))
        measured.ended(run, None)
        measured.ended(run, Ended(run, 0, None))
        gauges, counters = figures.values()
        assert gauges["backup_failures_in_a_row",] == 3
        assert counters["backup_runs", "failure", "DumpError"] == 1
        assert counters["backup_runs", "failure", "unexpected"] == 2
        assert gauges["backup_next_run_timestamp_seconds",] == NOW.timestamp()
        measured.planned("shop", NOW + HOUR)
        measured.changed(Job("shop", load(tmp_path / "store", BACKUP_INTERVAL="7200")))
        gauges, _ = figures.values()
        stale = gauges["backup_stale_at_timestamp_seconds",]
        assert stale == (NOW - 3 * HOUR).timestamp() + 10_800
        assert gauges["backup_next_run_timestamp_seconds",] == (NOW + HOUR).timestamp()
        unknown = Run("gone", "drill")
        measured.changed(Job("gone", values))
        measured.started(unknown)
        measured.ended(unknown, None)
    assert 'pgstash_backup_failures_in_a_row{database="shop",job="shop"' in path.read_text()
    measured.removed("shop")
    assert measured.metrics.of("shop") is None


def test_a_store_that_does_not_answer_leaves_the_figures_unknown(tmp_path: Path) -> None:
    values = load(tmp_path / "none")
    with pytest.raises(StorageError):
        metrics.remember(values, metrics.figures_of(values), SHOP, NOW)
    measured = MetricsOfJobs()
    measured.added([Job("shop", values)], remember=True)
    with measured.written(values):
        assert measured.metrics.of("shop")
