"""Writes metrics to a file for the textfile collector of Prometheus' node exporter.

Several processes may write one file, each the series of its own jobs: the others stay. What one run
does not know, such as the newest backup after a failure, stays too, and counters continue.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pgstash import events
from pgstash.monitoring.metrics import OWN, PREFIX, Collected, Metrics
from pgstash.signals import kept_for_this_thread

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric
    from prometheus_client.samples import Sample

SECONDS_TO_END = 5.0
"""How long the end of a command waits for the file: a network file system may not answer."""

_MODE = 0o644  # the node exporter runs as another user
_LARGEST = 16 * 1024 * 1024

_WRITTEN_AFTER = (
    events.BackupSucceeded,
    events.BackupFailed,
    events.DrillSucceeded,
    events.DrillFailed,
    events.CopyCompared,
    events.PruneFinished,
)

_SampleKey = tuple[object, ...]


class MetricsFile:
    """An event listener that writes the metrics after each run, from a thread of its own."""

    def __init__(self, path: Path, metrics: Metrics, warn: Callable[[str], None]) -> None:
        """Start the thread, which takes the figures that are in the file already."""
        self._path = path
        self._metrics = metrics
        self._warn = warn
        self._counted: dict[_SampleKey, float] = {}
        self._wanted = threading.Event()
        self._is_outdated = False
        self._ending = False
        self._was_warned = False
        self._thread = threading.Thread(target=self._work, name="metrics file", daemon=True)
        with kept_for_this_thread():
            self._thread.start()

    def __call__(self, event: events.Event) -> None:
        """Take an event; never waits."""
        if isinstance(event, _WRITTEN_AFTER):
            self.write_soon()

    def write_soon(self) -> None:
        """Write the file in a moment."""
        self._is_outdated = True
        self._wanted.set()

    def finish(self, seconds: float = SECONDS_TO_END) -> None:
        """Write it once more if it is outdated, and end; warn if it takes longer than ``seconds``.

        Call it once.
        """
        self._ending = True
        self._wanted.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"METRICS_FILE was not written within {seconds:g} seconds")

    def _work(self) -> None:
        self._try(self._remember)
        while True:
            self._wanted.wait()
            self._wanted.clear()
            ending = self._ending  # after that: what is wanted from here on wakes it again
            if self._is_outdated:
                self._is_outdated = False
                self._try(self._write)
            if ending:
                return

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the border of a thread
            if not self._was_warned:
                why = error.strerror if isinstance(error, OSError) else type(error).__name__
                self._warn(f"METRICS_FILE={self._path} cannot be written: {why}")
            self._was_warned = True

    def _remember(self) -> None:
        found = _read(self._path)
        for labels, figures in self._metrics.jobs().items():
            own = dict(zip(OWN, labels.values(), strict=True))
            figures.continued(
                {
                    (each.name.removeprefix(PREFIX), *_others(each)): each.value
                    for metric in found
                    if metric.type == "gauge" and metric.name != f"{PREFIX}running"
                    for each in metric.samples
                    if own.items() <= each.labels.items()
                }
            )

    def _write(self) -> None:
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - an extra

        with _locked(self._path.parent):
            now = [*self._metrics.collect()]
            counted = {
                _key(each): each.value
                for metric in now
                if metric.type == "counter"
                for each in metric.samples
            }
            text = generate_latest(Collected(self._merged(_read(self._path), now)))
            _replace(self._path, text)
            self._counted = counted

    def _merged(self, before: Iterable[Metric], now: Iterable[Metric]) -> Iterator[Metric]:
        """Yield the metrics, with those from before that they do not replace."""
        own = {tuple(labels.values()) for labels in self._metrics.jobs()}
        old = {each.name: each.samples for each in before}
        for metric in now:
            known = {_key(each): each for each in old.get(metric.name, ())}
            if metric.name == f"{PREFIX}build_info":
                known = {}
            elif metric.name == f"{PREFIX}running":
                known = {key: each for key, each in known.items() if _owner(each) not in own}
            for each in metric.samples:
                key, value = _key(each), each.value
                if metric.type == "counter":
                    value -= self._counted.get(key, 0)
                    value += known[key].value if key in known else 0
                known[key] = each._replace(value=value)
            metric.samples = list(known.values())
            yield metric


def _key(sample: Sample) -> _SampleKey:
    return (sample.name, *sorted(sample.labels.items()))


def _owner(sample: Sample) -> tuple[str, ...]:
    return tuple(sample.labels.get(name, "") for name in OWN)


def _others(sample: Sample) -> list[str]:
    return [value for name, value in sample.labels.items() if name not in OWN]


def _replace(path: Path, text: bytes) -> None:
    """Write a file in one step. The collector reads only names that end in .prom."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, _MODE)
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder while its file is read and replaced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _read(path: Path) -> list[Metric]:
    """Return the metrics in a file; none if there is none, or it is damaged."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - an extra

    try:
        if path.stat().st_size > _LARGEST:
            return []
        return [*text_string_to_metric_families(path.read_text(errors="replace"))]
    except (FileNotFoundError, ValueError):
        return []
