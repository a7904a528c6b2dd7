"""Tells others how backups and drills end: a webhook gets JSON, a dead-man switch gets pings.

The payload is described in docs/reference/webhook.md, the pings at
https://healthchecks.io/docs/http_api/.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pgstash import events
from pgstash.monitoring import wording
from pgstash.monitoring.delivery import ANSWER_SECONDS, Courier, Request
from pgstash.monitoring.scrub import Scrubber

SERVICE = "postgres-backup"
LONGEST_TEXT = 4000
MOST_WARNINGS = 20

Payload = dict[str, object]

# Words of pgstash's own, whatever a secret may be.
_CONSTANT = ("status", "service", "operation", "error")

Operation = Literal["backup", "drill"]
OPERATIONS: Collection[Operation] = ("backup", "drill")


_End = events.BackupSucceeded | events.BackupFailed | events.DrillSucceeded | events.DrillFailed


class Report:
    """Gathers the events of one run, and makes of them what is said of it at its end.

    A run is a backup or a drill. A drill restores: how that ends is no end of a run.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        """Gather nothing yet; ``now`` gives the time of the report."""
        self._now = now
        self._warnings: list[str] = []
        self._seconds: dict[str, float] = {}

    def hear(self, event: events.Event) -> Payload | None:
        """Hear of an event; return the payload if the run ends with it."""
        self._gather(event)
        match event:
            case events.BackupSucceeded():
                return self._payload(
                    event,
                    "success",
                    wording.success(event),
                    {
                        "location": event.location,
                        "raw_bytes": event.raw_bytes,
                        "stored_bytes": event.stored_bytes,
                        "tables": event.tables,
                        "rows": event.rows,
                        "last_proof": _iso(event.last_proof) if event.last_proof else None,
                        "exit_code": 0,
                    },
                )
            case events.DrillSucceeded():
                return self._payload(
                    event,
                    "success",
                    wording.drill_success(event),
                    {
                        "restore_seconds": round(event.restore_seconds, 3),
                        "location": event.location,
                        "checks": event.checks,
                        "tables": event.tables,
                        "rows": event.rows,
                        "exit_code": 0,
                    },
                )
            case events.BackupFailed():
                return self._payload(event, "failure", wording.failure(event), _reason(event))
            case events.DrillFailed():
                return self._payload(event, "failure", wording.drill_failure(event), _reason(event))
            case _:
                return None

    def _gather(self, event: events.Event) -> None:
        match event:
            case events.BackupAttempted() | events.DrillStarted():
                self._warnings, self._seconds = [], {}
            case events.Warned():
                self._warnings.append(event.message)
            case events.ToolSaid() if wording.is_warning(event):
                self._warnings.append(event.line)
            case events.Retrying():
                self._warnings.append(f"{event.request} was tried again: {event.reason}")
            case events.UploadLeftBehind():
                self._warnings.append(wording.left_behind(event))
            case events.DumpFinished():
                self._seconds["dump_seconds"] = round(event.seconds, 3)
            case events.UploadFinished():
                self._seconds["upload_seconds"] = round(event.seconds, 3)
            case _:
                pass

    def _payload(
        self,
        event: _End,
        status: str,
        message: str,
        more: Payload,
    ) -> Payload:
        return {
            "timestamp": _iso(self._now()),
            "status": status,
            "message": message,
            "service": SERVICE,
            "database": {"host": event.host, "name": event.database},
            "extra": {
                "operation": _operation(event),
                "backup": event.name,
                "seconds": round(event.seconds, 3),
                **self._seconds,
                **more,
                "warnings": self._warnings[:MOST_WARNINGS],
            },
        }


def _operation(event: events.Event) -> Operation:
    drill = isinstance(event, events.DrillSucceeded | events.DrillFailed)
    return "drill" if drill else "backup"


def _reason(event: events.BackupFailed | events.DrillFailed) -> Payload:
    return {"error": event.error, "exit_code": event.exit_code, "hint": event.hint}


class Webhook:
    """A listener to events that posts the end of each backup and of each drill."""

    def __init__(  # noqa: PLR0913 - all of them settings of one thing
        self,
        url: str,
        courier: Courier,
        scrubber: Scrubber,
        *,
        on_success: bool,
        on_failure: bool,
        operations: Collection[Operation] = OPERATIONS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Post to ``url`` by ``courier`` the ends of ``operations`` that the switches ask for."""
        self._url = url
        self._courier = courier
        self._scrubber = scrubber
        self._wanted = {"success": on_success, "failure": on_failure}
        self._operations = operations
        self._report = Report(now)

    def __call__(self, event: events.Event) -> None:
        """Hear of an event. Safe to call from any thread, and never waits."""
        payload = self._report.hear(event)
        if (
            payload
            and self._wanted[str(payload["status"])]
            and _operation(event) in self._operations
        ):
            self._courier.send(
                Request(
                    "POST",
                    self._url,
                    lambda: json.dumps(_scrubbed(payload, self._scrubber)).encode(),
                    {"Content-Type": "application/json"},
                )
            )


class Ping:
    """A listener to events that tells a dead-man switch of starts and ends of backups.

    Of drills it hears nothing: one that fails must not look like a backup that does, nor one that
    passes like a backup that was made.
    """

    def __init__(self, url: str, courier: Courier, scrubber: Scrubber) -> None:
        """Ping ``url`` by ``courier``."""
        self._url = url
        self._courier = courier
        self._scrubber = scrubber

    def __call__(self, event: events.Event) -> None:
        """Hear of an event. Safe to call from any thread, and never waits."""
        match event:
            case events.BackupAttempted():
                # Once: what comes after it says more, and must not wait for it.
                self._courier.send(Request("GET", ping_url(self._url, "start"), tries=1))
            case events.BackupSucceeded():
                self._courier.send(Request("GET", ping_url(self._url)))
            case events.BackupFailed():
                text = f"{wording.failure(event)}\n{event.hint}".strip()
                self._courier.send(
                    Request(
                        "POST",
                        ping_url(self._url, "fail"),
                        lambda: _short(text, self._scrubber).encode(errors="replace"),
                        {"Content-Type": "text/plain; charset=utf-8"},
                    )
                )
            case _:
                pass


def send_test(url: str, host: str, database: str, scrubber: Scrubber) -> str:
    """Post a test notification and wait for the answer; return what went wrong, or nothing."""
    problems: list[str] = []
    payload = {
        "timestamp": _iso(datetime.now(UTC)),
        "status": "success",
        "message": "This is a test of pgstash: no backup was made",
        "service": SERVICE,
        "database": {"host": host, "name": database},
        "extra": {"test": True, "exit_code": 0, "warnings": []},
    }
    body = json.dumps(_scrubbed(payload, scrubber)).encode()
    courier = Courier("The webhook", problems.append)
    courier.send(Request("POST", url, lambda: body, {"Content-Type": "application/json"}, tries=1))
    courier.finish()
    courier.wait(2 * ANSWER_SECONDS)
    return "; ".join(problems)


def ping_url(url: str, signal: str = "") -> str:
    """Return the URL of a signal; a query string stays where it was."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + (f"/{signal}" if signal else "")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _scrubbed(value: object, scrubber: Scrubber) -> object:
    """Return a payload without secrets and without endless texts."""
    if isinstance(value, dict):
        return {
            key: inner if key in _CONSTANT else _scrubbed(inner, scrubber)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_scrubbed(inner, scrubber) for inner in value]
    return _short(value, scrubber) if isinstance(value, str) else value


def _short(text: str, scrubber: Scrubber) -> str:
    """Scrub first: half of a secret is not recognised."""
    text = scrubber.scrub(text)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
