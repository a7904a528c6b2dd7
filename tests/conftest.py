"""Fixtures that any test may ask for: PostgreSQL servers, sample databases, a clean environment.

``swift_server`` and ``s3_bucket`` come from ``support/swift.py``.
"""

from __future__ import annotations

import gc
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, settings

from support.cli import PRELOADED
from support.postgres import Clusters, folder_for_throwaway_servers, temporary_database, test_majors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Cluster, Database, MakeDatabase

pytest_plugins = [
    "support.swift",
    "support.seaweedfs",
    "support.azurite",
    "support.fake_gcs",
    "support.gcs_server",
]

MAJORS = test_majors()
# Settings of pgstash and of the tools below it: the developer's own must not reach a test.
SETTINGS = (
    "ANOMALY_",
    "AWS_",
    "AZURE_",
    "BACKUP_",
    "BLACKOUT",
    "COMPRESSION_",
    "COPY_",
    "DATABASE",
    "DEBUG",
    "DUMP_",
    "EXCLUDE_",
    "EXIT_",
    "GLOBALS_",
    "GOOGLE_",
    "HEALTH",
    "HOOK_",
    "LOCK_",
    "LOG_",
    "MAX_",
    "METRICS_",
    "MIN_TABLE_",
    "NOTIFY_",
    "PG",
    "PRUNE_",
    "QUEUE_",
    "REQUIRE_",
    "RESTORE_",
    "RETENTION_",
    "RETRY_",
    "ROLE",
    "S3_",
    "STORAGE_",
    "SWEEP_",
    "TZ",
    "VERIFY_",
    "WEBHOOK_",
    "WORKER",
)
KEPT = ("PGSTASH_TEST_",)
REMOTE_STORES = ("s3", "seaweedfs", "azure", "gcs")

# Folders whose tests call pgstash's functions: their coverage is measured, see CONTRIBUTING.md.
TESTS = Path(__file__).parent
COVERED = ("unit", "contracts")

# Machines are shared and slow at times, so no example has a deadline. CI repeats the same examples
# at each run, which makes its result that of the change; a developer's run tries new ones.
# Who only wants to know whether a test fails (scripts/mutants) needs no smallest example.
settings.register_profile(
    "pgstash",
    deadline=None,
    derandomize="CI" in os.environ,
    phases=[Phase.explicit, Phase.reuse, Phase.generate]
    if "PGSTASH_TEST_ANY_EXAMPLE" in os.environ
    else list(Phase),
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pgstash")


def pytest_configure() -> None:
    # A shell lets what it starts in the background ignore SIGINT, and nohup SIGHUP; pgstash keeps
    # to that, and the tests send both.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for name in list(os.environ):
        if name.startswith(SETTINGS) and not name.startswith(KEPT):
            del os.environ[name]


def pytest_unconfigure() -> None:
    PRELOADED.close()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to the second tier what the other marks say; begin with the test that takes longest.

    While it runs at the end, other workers have nothing to do. Measure coverage where it counts.
    """
    items.sort(key=lambda item: item.path.parent.name != "soak")
    for item in items:
        if item.path.relative_to(TESTS).parts[0] not in COVERED:
            item.add_marker(pytest.mark.no_cover)
        callspec = getattr(item, "callspec", None)
        older = callspec and callspec.params.get("major", MAJORS[-1]) != MAJORS[-1]
        if older and item.get_closest_marker("newest_first"):
            item.add_marker(pytest.mark.long)
        remote = callspec and callspec.params.get("storage") in REMOTE_STORES
        if remote and item.get_closest_marker("plainest_stores_first"):
            item.add_marker(pytest.mark.long)


def pytest_collection_finish() -> None:
    """Keep the thousands of collected tests out of each later search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    clusters = Clusters()
    yield clusters
    clusters.close()


@pytest.fixture(scope="session", params=MAJORS, ids=lambda major: f"pg{major}")
def major(request: pytest.FixtureRequest) -> int:
    """Each major in turn: whoever asks for it, or for ``cluster``, runs once per major."""
    chosen: int = request.param
    return chosen


@pytest.fixture(scope="session")
def cluster(clusters: Clusters, major: int) -> Cluster:
    return clusters.get(major)


@pytest.fixture(scope="session")
def newest_cluster(clusters: Clusters) -> Cluster:
    return clusters.get(MAJORS[-1])


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Where throwaway servers go."""
    with folder_for_throwaway_servers() as folder:
        yield folder


@pytest.fixture
def make_database(clusters: Clusters) -> Iterator[MakeDatabase]:
    """Make databases that are dropped after the test."""
    with ExitStack() as databases:

        def make(sample: str = "empty", on: Cluster | None = None) -> Database:
            cluster = on or clusters.get(MAJORS[-1])
            return databases.enter_context(temporary_database(cluster, sample))

        yield make
