"""Metrics as Prometheus reads them: over HTTP, and in a file that several processes write."""

from __future__ import annotations

import builtins
import http.client
import json
import stat
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as open_families,
)
from prometheus_client.parser import text_string_to_metric_families as families

from pgstash import __version__, events
from pgstash.monitoring import metrics as metrics_module
from pgstash.monitoring.health_server import Health
from pgstash.monitoring.job_metrics import COUNTERS, GAUGES, JobMetrics
from pgstash.monitoring.metrics import HELP, Labels, Metrics
from pgstash.monitoring.metrics_file import MetricsFile
from pgstash.monitoring.probes import serving
from pgstash.monitoring.redaction import Scrubber

NAME = "backup_20260131_020000.sql.gz"
STARTED = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
SUCCEEDED = events.BackupSucceeded(NAME, 7.5, "s3://b/k", 524, 102, 3, 12)
FAILED = events.BackupFailed(NAME, 1.0, "a secret message", "", error="DumpError", exit_code=13)
SHOP = Labels("eu/shop", "shop", "db1:5432")


def metrics(*happened: events.Event, labels: Labels = SHOP) -> Metrics:
    made, figures = Metrics(), JobMetrics(lambda last: last + timedelta(hours=1))
    made.add(labels, figures)
    for event in happened:
        figures(event)
    return made


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return each value by the name, the job, and the other labels."""
    found = {}
    for family in families(text):
        for each in family.samples:
            others = [
                value
                for name, value in sorted(each.labels.items())
                if name not in ("job", "database", "server")
            ]
            found[each.name.removeprefix("pgstash_"), each.labels.get("job", ""), *others] = (
                each.value
            )
    return found


def get(port: int, accept: str = "") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
    with connection.getresponse() as response:
        kind = response.getheader("Content-Type") or ""
        return response.status, kind, response.read().decode()


def test_each_metric_has_a_help_text() -> None:
    assert sorted(HELP) == sorted([*GAUGES, *COUNTERS])


def test_a_scrape() -> None:
    known = Health(Scrubber(), lambda last: last)
    odd = Labels('a"b\\c\n', "\udcff", "")
    made = metrics(SUCCEEDED, FAILED)
    made.add(odd, JobMetrics(lambda last: last))
    figures = made.of(odd.job)
    assert figures
    figures(SUCCEEDED)
    with serving(0, known, made) as port:
        status, kind, text = get(port)
        assert (status, kind.partition(";")[0]) == (200, "text/plain")
        accepts = "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"
        _, kind, open_text = get(port, accepts)
        assert kind.startswith("application/openmetrics-text; version=1.0.0")
    found = samples(text)
    assert found["backup_last_rows", "eu/shop"] == 12
    assert found["backup_runs_total", "eu/shop", "DumpError", "failure"] == 1
    assert found["backup_last_success_timestamp_seconds", 'a"b\\c\n'] == STARTED.timestamp()
    assert found["build_info", "", __version__] == 1
    opened = open_families(open_text)  # type: ignore[no-untyped-call] # it has no types
    assert {each.name for each in opened} >= {
        "pgstash_backup_runs",
        "pgstash_backup_last_rows",
    }
    for each in (text, open_text):
        assert "secret" not in each
        assert NAME not in each


def test_a_server_without_metrics() -> None:
    with serving(0, Health(Scrubber(), lambda last: last)) as port:
        status, _, body = get(port)
    assert (status, json.loads(body)["error"]) == (404, "try /healthz, /readyz or /metrics")


def test_the_library_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *others: Any, **more: Any) -> Any:
        if name.startswith("prometheus_client"):
            raise ImportError(name)
        return real(name, *others, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with serving(0, Health(Scrubber(), lambda last: last), metrics(SUCCEEDED)) as port:
        status, _, body = get(port)
    assert (status, "pip install 'pgstash[metrics]'" in body) == (501, True)
    assert not metrics_module.is_available()


def written(path: Path, made: Metrics, *happened: events.Event) -> dict[tuple[str, ...], float]:
    """Let a process write its file after these events, and return what is in it."""
    warned: list[str] = []
    [figures] = made.jobs().values()
    file = MetricsFile(path, made, warned.append)
    for event in happened:
        figures(event)
        file(event)
    file.finish(30)
    assert warned == []
    return samples(path.read_text())


def test_a_file_for_the_textfile_collector(tmp_path: Path) -> None:
    path = tmp_path / "pgstash.prom"
    found = written(path, metrics(), SUCCEEDED)
    assert found["backup_runs_total", "eu/shop", "", "success"] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    # Another run of the same job, which fails, and then one more.
    for count in (1, 2):
        found = written(path, metrics(), FAILED)
        assert found["backup_failures_in_a_row", "eu/shop"] == count
        assert found["backup_runs_total", "eu/shop", "DumpError", "failure"] == count
    assert found["backup_last_success_timestamp_seconds", "eu/shop"] == STARTED.timestamp()
    assert found["backup_runs_total", "eu/shop", "", "success"] == 1
    # Another job: the series of both stay.
    other = Labels("eu/blog", "blog", "db1:5432")
    found = written(path, metrics(labels=other), SUCCEEDED, events.DumpStarted("x", "1", "1"))
    assert found["running", "eu/blog", "dumping"] == 1
    assert found["backup_failures_in_a_row", "eu/shop"] == 2
    assert found["backup_failures_in_a_row", "eu/blog"] == 0
    # What ran when a process was killed does not run for ever.
    found = written(path, metrics(labels=other), SUCCEEDED)
    assert ("running", "eu/blog", "dumping") not in found


def test_a_service_counts_each_run_once(tmp_path: Path) -> None:
    path, made = tmp_path / "pgstash.prom", metrics()
    [figures] = made.jobs().values()
    file, key = (
        MetricsFile(path, made, pytest.fail),
        ("backup_runs_total", "eu/shop", "", "success"),
    )
    for count in range(1, 4):
        figures(SUCCEEDED)
        file(SUCCEEDED)
        give_up = time.monotonic() + 30
        while not path.exists() or samples(path.read_text())[key] < count:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert samples(path.read_text())[key] == count
    file.finish(30)
    assert samples(path.read_text())[key] == 3


def test_processes_of_many_jobs_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "pgstash.prom"
    names = [f"job-{number}" for number in range(8)]
    threads = [
        threading.Thread(
            target=written, args=(path, metrics(labels=Labels(name, name, "")), SUCCEEDED)
        )
        for name in names
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = samples(path.read_text())
    assert {key[1] for key in found if key[0] == "backup_last_rows"} == {*names}


@pytest.mark.parametrize("damage", ["", "pgstash_backup_runs_total{", "\0\n", "x 1\n" * 10])
def test_a_file_that_is_damaged_or_of_another_is_replaced(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "pgstash.prom"
    path.write_text(damage)
    found = written(path, metrics(), SUCCEEDED)
    assert found["backup_last_rows", "eu/shop"] == 12
    assert ("x", "") not in found


def test_a_folder_that_is_missing_is_a_warning(tmp_path: Path) -> None:
    warned: list[str] = []
    path = tmp_path / "none" / "pgstash.prom"
    file = MetricsFile(path, metrics(SUCCEEDED), warned.append)
    for _ in range(3):
        file(SUCCEEDED)
    file.finish(30)
    assert warned == [f"METRICS_FILE={path} cannot be written: No such file or directory"]
    assert not path.parent.exists()
