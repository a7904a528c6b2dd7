"""The metrics of all jobs in the formats of Prometheus; the only user of its library.

That is an extra. No metric has the name of a backup or a message, so their number is limited, and
they hold no secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pgstash import __version__
from pgstash.monitoring.job_metrics import COUNTERS, GAUGES, JobMetrics, Key

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PREFIX = "pgstash_"
OWN = ("job", "database", "server")
"""The labels of a job."""

HELP: Mapping[str, str] = {
    "backup_last_success_timestamp_seconds": "When the newest backup began.",
    "backup_last_attempt_timestamp_seconds": "When the last backup was tried.",
    "backup_last_duration_seconds": "How long the newest backup took.",
    "backup_last_raw_bytes": "The size of the newest backup's script.",
    "backup_last_stored_bytes": "The size of the newest backup in the store.",
    "backup_last_rows": "The number of rows in the newest backup.",
    "backup_last_tables": "The number of tables in the newest backup.",
    "backup_stale_at_timestamp_seconds": "When the newest backup is too old by the schedule.",
    "backup_next_run_timestamp_seconds": "When the next backup is due.",
    "backup_failures_in_a_row": "How many backups have failed since the newest one.",
    "drill_last_success_timestamp_seconds": "When the last drill passed.",
    "drill_last_restore_seconds": "How long the restore in that drill took.",
    "drill_failures_in_a_row": "How many drills have failed since the last that passed.",
    "copy_newest_timestamp_seconds": "When the newest backup in a copy began.",
    "copy_missing_backups": "How many backups are still to be copied.",
    "running": "1 while a backup or a drill is in this phase.",
    "backup_runs": "Backups that ended, by their result and the class of the error.",
    "drill_runs": "Drills that ended, by their result and the class of the error.",
    "copy_runs": "Backups that were copied, or failed to be.",
    "prune_removed": "Backups that pruning removed.",
    "storage_retries": "Requests to the store that were retried.",
}


@dataclass(frozen=True, slots=True)
class Labels:
    """What distinguishes a job; ``server`` is its host and port, or its name in the file."""

    job: str
    database: str
    server: str

    def values(self) -> list[str]:
        """Return the values of the labels :data:`OWN`."""
        return [printable(each) for each in (self.job, self.database, self.server)]


class Metrics:
    """The figures of all jobs. Safe to use from any thread."""

    def __init__(self) -> None:
        """Begin without jobs."""
        self._lock = threading.Lock()
        self._jobs: dict[Labels, JobMetrics] = {}

    def add(self, labels: Labels, figures: JobMetrics) -> None:
        """Add a job."""
        with self._lock:
            self._jobs[labels] = figures

    def remove(self, job: str) -> None:
        """Remove a job by its name."""
        with self._lock:
            self._jobs = {key: each for key, each in self._jobs.items() if key.job != job}

    def of(self, job: str) -> JobMetrics | None:
        """Return the figures of a job by its name; None if there is none."""
        with self._lock:
            return next((each for key, each in self._jobs.items() if key.job == job), None)

    def jobs(self) -> dict[Labels, JobMetrics]:
        """Return the figures of all jobs."""
        with self._lock:
            return dict(self._jobs)

    def collect(self, *, counters: bool = True) -> Iterator[Metric]:
        """Yield the metrics as the library takes them."""
        from prometheus_client.metrics_core import (  # noqa: PLC0415 - an extra
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        values = [(labels, *figures.values()) for labels, figures in self.jobs().items()]
        for name, own in GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, HELP[name], labels=[*OWN, *own])
            for labels, gauges, _ in values:
                _fill(gauge.add_metric, name, labels, gauges)
            yield gauge
        for name, own in COUNTERS.items() if counters else ():
            counter = CounterMetricFamily(PREFIX + name, HELP[name], labels=[*OWN, *own])
            for labels, _, counts in values:
                _fill(counter.add_metric, name, labels, counts)
            yield counter
        build = GaugeMetricFamily(f"{PREFIX}build_info", "The version.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _fill(
    add: Callable[[list[str], float], None],
    name: str,
    labels: Labels,
    values: Mapping[Key, float],
) -> None:
    for key, value in values.items():
        if key[0] == name:
            add([*labels.values(), *map(printable, key[1:])], value)


def printable(text: str) -> str:
    """Return a text that UTF-8 can represent: a name of a database may hold any bytes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


class Collected:
    """What the library takes for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        """Hold these metrics."""
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._metrics


def is_available() -> bool:
    """Return whether the library is installed."""
    try:
        import prometheus_client  # noqa: F401, PLC0415 - an extra
    except ImportError:
        return False
    return True


def exposed(metrics: Metrics, accept: str) -> tuple[bytes, str]:
    """Return the text for a scraper, and its content type, as the header ``accept`` asks for.

    Raises ImportError if the library is not installed.
    """
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415 - an extra

    encode, content_type = choose_encoder(accept)
    return encode(Collected(metrics.collect())), content_type


def for_gateway(metrics: Metrics) -> bytes:
    """Return the text for a Pushgateway: the gauges, without the phase of the run.

    Counters begin at 0 in each process, and mean nothing there.
    """
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - an extra

    found = (each for each in metrics.collect(counters=False) if each.name != f"{PREFIX}running")
    return generate_latest(Collected(found))
