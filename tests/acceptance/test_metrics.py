"""Metrics for Prometheus: by the service, in a file, to a Pushgateway, for one job and for many."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families as families

from pgstash.monitoring.job_metrics import COUNTERS, GAUGES
from pgstash.monitoring.metrics import PREFIX
from support import backups
from support.cli import environment, run_pgstash, started_pgstash
from support.hooks import receiving
from support.postgres import Database, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.postgres import MakeDatabase

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus"
PATIENCE = 120.0
NAMES = {
    *(PREFIX + name for name in GAUGES),
    *(f"{PREFIX}{name}_total" for name in COUNTERS),
    f"{PREFIX}build_info",
}


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Return each value by the name, the database, and the other labels."""
    found = {}
    for family in families(text):
        for each in family.samples:
            others = sorted(
                f"{name}={value}"
                for name, value in each.labels.items()
                if name not in ("job", "database", "server")
            )
            found[each.name.removeprefix(PREFIX), each.labels.get("database", ""), *others] = (
                each.value
            )
    return found


def scraped(port: int, until: Callable[[dict[tuple[str, ...], float]], bool]) -> str:
    """Return the metrics of a service when they are so."""
    give_up = time.monotonic() + PATIENCE
    text = ""
    while time.monotonic() < give_up:
        try:
            url = f"http://127.0.0.1:{port}/metrics"
            with urllib.request.urlopen(url, timeout=30) as answer:
                text = str(answer.read(), "utf-8")
            if until(samples(text)):
                return text
        except urllib.error.URLError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"waited in vain: {text}")


def test_a_service_is_scraped_and_knows_the_store_after_a_restart(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    database.run_sql("CREATE TABLE t AS SELECT 1 AS n")
    (store := tmp_path / "store").mkdir()
    port, name = free_port(), database.name
    env = environment(
        database.bin_dir,
        **backups.settings(database, store, encrypted=True),
        HEALTH_PORT=str(port),
    )
    planned = "backup_next_run_timestamp_seconds", name
    with started_pgstash(["backup"], env) as process:
        text = scraped(port, lambda found: ("backup_last_rows", name) in found and planned in found)
        found = samples(text)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert found["backup_runs_total", name, "error=", "result=success"] == 1
    assert found["backup_last_rows", name] == 1
    assert found[planned] > time.time()
    began = found["backup_last_success_timestamp_seconds", name]
    assert found["backup_stale_at_timestamp_seconds", name] == began + 5400
    assert {each.name for each in families(text)} <= {each.removesuffix("_total") for each in NAMES}
    [archive] = backups.stored(store)
    for secret in (backups.PASSPHRASE, archive.archive.name, database.uri):
        assert secret not in text

    time.sleep(1.1)  # names of records have seconds
    assert run_pgstash(["once"], env | {"REQUIRE_TABLES": "none"}).returncode == 51
    again = env | {"BACKUP_ON_START": "false"}
    with started_pgstash(["backup"], again) as process:
        found = samples(scraped(port, lambda found: ("backup_last_rows", name) in found))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert found["backup_last_success_timestamp_seconds", name] == began
    assert (found["backup_last_rows", name], found["backup_last_tables", name]) == (1, 1)
    assert found["backup_failures_in_a_row", name] == 1
    assert found["backup_last_attempt_timestamp_seconds", name] >= began


def test_runs_of_cron_write_a_file_and_push(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    (store := tmp_path / "store").mkdir()
    path, name = tmp_path / "pgstash.prom", database.name
    with receiving() as gateway:
        env = environment(
            database.bin_dir,
            **backups.settings(database, store),
            METRICS_FILE=str(path),
            METRICS_PUSHGATEWAY=gateway.url("/secret-path-of-the-gateway"),
        )
        assert run_pgstash(["once"], env).returncode == 0
        first = samples(path.read_text())
        for count in (1, 2):
            failed = run_pgstash(["once"], env | {"REQUIRE_TABLES": "none"})
            assert failed.returncode == 51
            found = samples(path.read_text())
            assert found["backup_failures_in_a_row", name] == count
        pushed = gateway.received
    assert os.stat(path).st_mode & 0o777 == 0o644  # noqa: PTH116 - the mode alone
    assert found["backup_runs_total", name, "error=RequiredTableError", "result=failure"] == 2
    assert found["backup_runs_total", name, "error=", "result=success"] == 1
    key = ("backup_last_success_timestamp_seconds", name)
    assert found[key] == first[key]
    assert [each.method for each in pushed] == ["POST"] * 3
    assert {each.target.rpartition("/")[0] for each in pushed} == {
        "/secret-path-of-the-gateway/metrics/job@base64"
    }
    assert samples(pushed[0].body.decode())[key] == first[key]
    assert b"_total" not in pushed[0].body


def test_a_gateway_or_a_folder_that_is_gone_is_a_warning(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    (store := tmp_path / "store").mkdir()
    env = environment(
        database.bin_dir,
        **backups.settings(database, store),
        METRICS_FILE=str(tmp_path / "none/pgstash.prom"),
        METRICS_PUSHGATEWAY=f"http://user:secret-of-the-gateway@127.0.0.1:{free_port()}",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr
    assert "WARNING The Pushgateway could not be delivered in 1 try: no connection" in done.stderr
    assert "pgstash.prom cannot be written: No such file or directory" in done.stderr
    assert "secret-of-the-gateway" not in done.stdout + done.stderr


def test_many_jobs_share_one_file(make_database: MakeDatabase, tmp_path: Path) -> None:
    well, lacking = make_database(), make_database()
    well.run_sql("CREATE TABLE t AS SELECT 1 AS n")
    (store := tmp_path / "store").mkdir()
    path = tmp_path / "pgstash.prom"
    env = environment(
        well.bin_dir,
        **backups.settings(Database(well.cluster, "postgres"), store),
        DATABASES=f"{well.name},{lacking.name}",
        REQUIRE_TABLES="t",
        METRICS_FILE=str(path),
        DUMP_JOBS="1",
    )
    assert run_pgstash(["once"], env).returncode == 53
    found = samples(path.read_text())
    assert found["backup_last_rows", well.name] == 1
    assert found["backup_failures_in_a_row", lacking.name] == 1
    assert run_pgstash(["once", "--job", well.name], env).returncode == 0
    found = samples(path.read_text())
    assert found["backup_runs_total", well.name, "error=", "result=success"] == 2
    assert found["backup_failures_in_a_row", lacking.name] == 1

    port = free_port()
    with started_pgstash(["backup"], env | {"HEALTH_PORT": str(port)}) as process:
        key, rows = ("backup_failures_in_a_row", lacking.name), ("backup_last_rows", well.name)
        served = samples(scraped(port, lambda found: found.get(key, 0) >= 1 and rows in found))
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert served[rows] == 1
    assert served["backup_next_run_timestamp_seconds", lacking.name] > time.time() - PATIENCE
    assert samples(path.read_text())["backup_last_rows", well.name] == 1


@pytest.mark.parametrize(
    "path",
    [
        RULES / "pgstash.rules.yml",
        RULES / "pgstash.test.yml",
        ROOT / "deploy/grafana/pgstash.json",
        ROOT / "docs/how-to/monitor.md",
    ],
    ids=lambda path: path.name,
)
def test_only_metrics_that_exist_are_named(path: Path) -> None:
    named = set(re.findall(r"\bpgstash_[a-z_]+", path.read_text()))
    assert named
    assert named <= NAMES
    if path.suffix == ".json":
        dashboard = json.loads(path.read_text())
        queries = [each["expr"] for panel in dashboard["panels"] for each in panel["targets"]]
        assert len(queries) == len(dashboard["panels"])
        assert all("pgstash_" in query for query in queries)
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)


def test_each_alert_has_a_test() -> None:
    rules, tests = ((RULES / f"pgstash.{name}.yml").read_text() for name in ("rules", "test"))
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert alerts == set(re.findall(r"alertname: (\w+)", tests))
    assert len(re.findall(r"severity: (?:critical|warning)$", rules, re.MULTILINE)) == len(alerts)


@pytest.mark.long
def test_the_alerts_by_promtool() -> None:
    promtool = ROOT / ".cache/prometheus/usr/bin/promtool"
    for arguments in (
        ["check", "rules", "pgstash.rules.yml"],
        ["test", "rules", "pgstash.test.yml"],
    ):
        done = subprocess.run(
            [promtool, *arguments], cwd=RULES, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
