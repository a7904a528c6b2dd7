"""What probes are answered, and that nobody can hold the service up by asking."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgstash import events
from pgstash.errors import ConfigurationError
from pgstash.monitoring import probes
from pgstash.monitoring.health_server import Health
from pgstash.monitoring.probes import serving
from pgstash.monitoring.redaction import Scrubber

STARTED = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
SECRET = "planted-secret-of-the-database"
NAME = "backup_20260131_020000.sql.gz"
SUCCEEDED = events.BackupSucceeded(NAME, 1.0, "s3://b/k", 524, 102, 3, 12)
FAILED = events.BackupFailed(
    NAME, 1.0, f"the database said: {SECRET}", "hint", error="DumpError", exit_code=13
)
DRILLED = STARTED + timedelta(minutes=5)
PASSED = events.DrillSucceeded(
    NAME, 9.0, 7.0, "s3://b/proof", DRILLED, checks=5, tables=3, rows=12, host="h", database="d"
)
NOT_PROVEN = events.DrillFailed(
    NAME, 9.0, f"a check said: {SECRET}", "hint", "h", "d", error="CheckError", exit_code=60
)
Answer = tuple[int, dict[str, str], Any]


class Clock:
    def __init__(self) -> None:
        self.time = STARTED

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(clock: Clock) -> Health:
    return Health(Scrubber([SECRET]), lambda last: last + timedelta(minutes=90), clock)


@pytest.fixture
def port(known: Health) -> Iterator[int]:
    with serving(0, known) as port:
        yield port


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> Answer:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path)
        with connection.getresponse() as response:
            body = response.read()
            return response.status, dict(response.getheaders()), json.loads(body or b"null")


def test_it_is_alive_whatever_comes_of_backups(port: int, known: Health) -> None:
    known(FAILED)
    status, headers, facts = ask(port, "/healthz")
    assert (status, facts) == (200, {"status": "alive"})
    assert "Server" not in headers


def test_it_is_ready_while_the_last_backup_is_fresh(port: int, known: Health, clock: Clock) -> None:
    status, _, facts = ask(port, "/readyz")
    assert (status, facts["status"], facts["last_success"]) == (503, "no backup yet", None)

    known(SUCCEEDED)
    known(events.NextRunPlanned(STARTED + timedelta(hours=1), 3600))
    clock.time += timedelta(minutes=10)
    status, headers, facts = ask(port, "/readyz?verbose=1")
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert facts == {
        "status": "ready",
        "version": facts["version"],
        "running_since": "2026-01-31T02:00:00Z",
        "next_run": "2026-01-31T03:00:00Z",
        "last_success": {
            "name": NAME,
            "at": "2026-01-31T02:00:00Z",
            "age_seconds": 600,
            "stored_bytes": 102,
            "raw_bytes": 524,
        },
        "last_failure": None,
        "last_proof": None,
        "last_failed_drill": None,
    }

    known(FAILED)
    status, _, facts = ask(port, "/readyz")
    assert (status, facts["status"]) == (200, "ready")  # one failure is no stale backup
    assert facts["last_failure"] == {
        "error": "DumpError",
        "at": "2026-01-31T02:10:00Z",
        "message": "the database said: ***",
    }

    clock.time = STARTED + timedelta(minutes=90)
    assert (ask(port, "/readyz")[0], ask(port, "/readyz")[2]["status"]) == (503, "stale")


def test_a_drill_that_failed_makes_it_unready_until_one_passes(
    port: int, known: Health, clock: Clock
) -> None:
    known(SUCCEEDED)
    known(PASSED)
    clock.time += timedelta(minutes=10)
    status, _, facts = ask(port, "/readyz")
    assert (status, facts["status"], facts["last_failed_drill"]) == (200, "ready", None)
    proof = {"name": NAME, "at": "2026-01-31T02:05:00Z", "age_seconds": 300}
    assert facts["last_proof"] == proof

    known(NOT_PROVEN)
    known(SUCCEEDED)  # a backup that is made says nothing of whether it restores
    status, _, facts = ask(port, "/readyz")
    assert (status, facts["status"]) == (503, "drill failed")
    failed = {
        "name": NAME,
        "error": "CheckError",
        "at": "2026-01-31T02:10:00Z",
        "message": "a check said: ***",
    }
    assert facts["last_failed_drill"] == failed
    assert (facts["last_proof"], facts["last_failure"]) == (proof, None)
    assert ask(port, "/healthz")[0] == 200

    known(replace(PASSED, at=clock.time))
    status, _, facts = ask(port, "/readyz")
    assert (status, facts["status"]) == (200, "ready")
    assert facts["last_proof"]["age_seconds"] == 0
    assert facts["last_failed_drill"] == failed


def test_the_restore_within_a_drill_is_neither_a_backup_nor_a_drill(known: Health) -> None:
    known(SUCCEEDED)
    known(events.DrillStarted(NAME, "scratch"))
    known(events.RestoreStarted(NAME, "h", "d", dry_run=False))
    known(events.RestoreFailed(NAME, 1.0, "no", "", "nothing is there", "RestoreError", 40))
    ready, facts = known.facts()
    assert (ready, facts["last_failure"], facts["last_failed_drill"]) == (True, None, None)


def test_a_proof_of_before_neither_hides_a_later_one_nor_mends_a_failure(known: Health) -> None:
    known(SUCCEEDED)
    known.found_proof("old", DRILLED - timedelta(days=1))
    known(PASSED)
    known(NOT_PROVEN)
    known.found_proof("old", DRILLED - timedelta(days=1))
    ready, facts = known.facts()
    assert (ready, facts["status"]) == (False, "drill failed")
    assert facts["last_proof"]["name"] == NAME  # type: ignore[index]


def test_what_was_in_the_store_before_does_not_hide_what_is_newer(known: Health) -> None:
    known.found("old", STARTED - timedelta(minutes=30), 7)
    assert known.facts()[0]
    known(SUCCEEDED)
    known.found("old", STARTED - timedelta(minutes=30), 7)
    assert known.facts()[1]["last_success"]["name"] == NAME  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("HEAD", "/healthz", 200),
        ("HEAD", "/readyz", 503),
        ("GET", "/", 404),
        ("GET", "/healthz/", 404),
        ("POST", "/healthz", 405),
        ("DELETE", "/readyz", 405),
    ],
)
def test_other_paths_and_methods(port: int, method: str, path: str, status: int) -> None:
    answered, headers, body = ask(port, path, method)
    assert answered == status
    assert (body is None) is (method == "HEAD")
    assert ("Allow" in headers) is (status == 405)
    assert "Server" not in headers


def test_it_answers_on_ipv4_and_ipv6(port: int) -> None:
    assert ask(port, "/healthz")[0] == 200
    if socket.has_dualstack_ipv6():
        assert ask(port, "/healthz", host="::1")[0] == 200


def test_a_port_that_is_taken_is_an_error_of_the_configuration(port: int, known: Health) -> None:
    with pytest.raises(ConfigurationError, match=f"HEALTH_PORT {port} .*in use"):  # noqa: SIM117
        with serving(port, known):
            pass


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\0"])
def test_clients_that_say_nothing_keep_out_neither_others_nor_the_end(
    known: Health, sent: bytes
) -> None:
    with contextlib.ExitStack() as stack:
        with serving(0, known) as port:
            for _ in range(100):
                client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                client.sendall(sent)
            assert ask(port, "/healthz")[0] == 200
            handlers = [t for t in threading.enumerate() if "process_request" in t.name]
            assert len(handlers) <= 4 * probes._MOST_CONNECTIONS  # noqa: SLF001
            began = time.monotonic()
        assert time.monotonic() - began < 5  # and not the minute of the server's own patience


def test_garbage_is_refused_and_the_next_is_served(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"G" * 70_000 + b"\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            client.recv(100)
    assert ask(port, "/healthz")[0] == 200


def test_each_copy_has_a_freshness_of_its_own(known: Health, clock: Clock) -> None:
    known(SUCCEEDED)
    assert "copies" not in known.facts()[1]
    known(events.CopyCompared("offsite", NAME, STARTED, 0))
    known(events.CopyCompared("disk", None, None, None, f"down: {SECRET}"))
    clock.time += timedelta(minutes=10)
    ready, facts = known.facts()
    assert ready
    assert facts["copies"] == {
        "offsite": {
            "newest": NAME,
            "at": "2026-01-31T02:00:00Z",
            "missing": 0,
            "problem": None,
            "age_seconds": 600,
            "status": "fresh",
        },
        "disk": {
            "newest": None,
            "at": None,
            "missing": None,
            "problem": "down: ***",
            "age_seconds": None,
            "status": "unknown",
        },
    }
    # The next backup was not copied: the service stays ready.
    clock.time += timedelta(hours=2)
    known(replace(SUCCEEDED, name="backup_20260131_040000.sql.gz"))
    ready, facts = known.facts()
    assert ready
    copies = facts["copies"]
    assert isinstance(copies, dict)
    assert copies["offsite"]["status"] == "stale"
