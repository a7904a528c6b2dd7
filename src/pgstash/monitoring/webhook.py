"""Reports how backups and drills end: JSON to a webhook, pings to a dead-man switch.

The payload is described in docs/reference/webhook.md, the pings at
https://healthchecks.io/docs/http_api/.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from pgstash import events
from pgstash.format.iso_time import iso
from pgstash.monitoring import messages
from pgstash.monitoring.copy_states import CopyStates
from pgstash.monitoring.http_delivery import ANSWER_SECONDS, Courier, Request
from pgstash.monitoring.receiver import Payload, Receiver, short
from pgstash.monitoring.redaction import Scrubber

SERVICE = "postgres-backup"
MOST_WARNINGS = 20

Operation = Literal["backup", "drill", "copy", "prune"]
OPERATIONS: Collection[Operation] = ("backup", "drill", "copy", "prune")


_Failed = events.BackupFailed | events.DrillFailed | events.CopyFailed | events.PruneFailed
_End = events.BackupSucceeded | events.DrillSucceeded | _Failed


class Report:
    """Collects the events of one run and builds the payload when the run ends.

    A run is a backup or a drill. The end of the restore inside a drill does not end the run.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        """Start empty; ``now`` gives the time of the report."""
        self._now = now
        self._warnings: list[str] = []
        self._seconds: dict[str, float] = {}
        self._copies = CopyStates()

    def add(self, event: events.Event) -> Payload | None:
        """Record an event; return the payload if the event ends the run."""
        self._collect(event)
        match event:
            case events.BackupSucceeded():
                return self._payload(
                    event,
                    "success",
                    messages.success(event),
                    {
                        "location": event.location,
                        "raw_bytes": event.raw_bytes,
                        "stored_bytes": event.stored_bytes,
                        "tables": event.tables,
                        "rows": event.rows,
                        "last_proof": iso(event.last_proof) if event.last_proof else None,
                        **({"copies": copies} if (copies := self._copies.facts()) else {}),
                        "exit_code": 0,
                    },
                )
            case events.DrillSucceeded():
                return self._payload(
                    event,
                    "success",
                    messages.drill_success(event),
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
                following = iso(event.next_attempt) if event.next_attempt else None
                return self._payload(
                    event,
                    "failure",
                    messages.failure(event),
                    {**_reason(event), "next_attempt": following},
                )
            case events.DrillFailed():
                return self._payload(
                    event, "failure", messages.drill_failure(event), _reason(event)
                )
            case events.CopyFailed() | events.PruneFailed():
                if isinstance(event, events.CopyFailed):
                    message = messages.copy_failure(event)
                else:
                    message = messages.prune_failure(event)
                more = {**_reason(event), **({"copy": event.copy} if event.copy else {})}
                return self._payload(event, "failure", message, more)
            case _:
                return None

    def _collect(self, event: events.Event) -> None:
        self._copies(event)
        match event:
            case events.BackupAttempted() | events.DrillAttempted():
                self._warnings, self._seconds = [], {}
            case events.Warned():
                self._warnings.append(event.message)
            case events.BackupShrunk():
                self._warnings.append(messages.shrunk(event))
            case events.ToolSaid() if messages.is_warning(event):
                self._warnings.append(event.line)
            case events.Retrying():
                self._warnings.append(f"{event.request} was retried: {event.reason}")
            case events.UploadLeftBehind():
                self._warnings.append(messages.left_behind(event))
            case events.DumpFinished():
                self._seconds["dump_seconds"] = round(event.seconds, 3)
            case events.UploadFinished():
                self._seconds["upload_seconds"] = round(event.seconds, 3)
            case _:
                pass

    def _run(self, event: _End) -> Payload:
        """Return what was worked on, and for how long."""
        if isinstance(event, events.PruneFailed):
            return {}
        return {
            "backup": event.name or None,
            "seconds": round(event.seconds, 3),
            # The service makes copies during backups.
            **({} if _is_apart(event) else self._seconds),
        }

    def _payload(
        self,
        event: _End,
        status: str,
        message: str,
        more: Payload,
    ) -> Payload:
        return {
            "timestamp": iso(self._now()),
            "status": status,
            "message": message,
            "service": SERVICE,
            "database": {"host": event.host, "name": event.database},
            "extra": {
                "operation": _operation(event),
                **self._run(event),
                **more,
                "warnings": [] if _is_apart(event) else self._warnings[:MOST_WARNINGS],
            },
        }


def _is_apart(event: events.Event) -> bool:
    """Return whether it is no run of its own: the warnings before it are those of a backup."""
    return isinstance(event, events.CopyFailed | events.PruneFailed)


def _operation(event: events.Event) -> Operation:
    if isinstance(event, events.CopyFailed):
        return "copy"
    if isinstance(event, events.PruneFailed):
        return "prune"
    drill = isinstance(event, events.DrillSucceeded | events.DrillFailed)
    return "drill" if drill else "backup"


def _reason(event: _Failed) -> Payload:
    return {"error": event.error, "exit_code": event.exit_code, "hint": event.hint}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which ends of runs a webhook gets."""

    on_success: bool
    on_failure: bool
    operations: Collection[Operation] = OPERATIONS

    def includes(self, event: events.Event, status: object) -> bool:
        """Return whether the webhook gets this end of a run."""
        if isinstance(event, events.BackupFailed) and event.repeated:
            return False
        wanted = self.on_success if status == "success" else self.on_failure
        return wanted and _operation(event) in self.operations


class Webhook:
    """An event listener that posts the end of each backup and drill."""

    def __init__(
        self,
        receiver: Receiver,
        courier: Courier,
        wanted: Wanted,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Post the wanted ends of runs to ``receiver`` by ``courier``."""
        self._receiver = receiver
        self._courier = courier
        self._wanted = wanted
        self._report = Report(now)

    def __call__(self, event: events.Event) -> None:
        """Take an event. Safe to call from any thread; never waits."""
        payload = self._report.add(event)
        if payload and self._wanted.includes(event, payload["status"]):
            self._courier.send(self._receiver.request(payload))


class Ping:
    """An event listener that pings a dead-man switch when backups start and end.

    It ignores drills: a failed drill must not look like a failed backup, nor a passed drill like a
    new backup. A repeated failure is pinged too: the switch notifies its users only when a check
    goes down (https://github.com/healthchecks/healthchecks/issues/48).
    """

    def __init__(self, url: str, courier: Courier, scrubber: Scrubber) -> None:
        """Ping ``url`` by ``courier``."""
        self._url = url
        self._courier = courier
        self._scrubber = scrubber

    def __call__(self, event: events.Event) -> None:
        """Take an event. Safe to call from any thread; never waits."""
        match event:
            case events.BackupAttempted():
                # One try: the ping of the end matters more, and must not wait for this one.
                self._courier.send(Request("GET", ping_url(self._url, "start"), tries=1))
            case events.BackupSucceeded():
                self._courier.send(Request("GET", ping_url(self._url)))
            case events.BackupFailed():
                text = f"{messages.failure(event)}\n{event.hint}".strip()
                self._courier.send(
                    Request(
                        "POST",
                        ping_url(self._url, "fail"),
                        lambda: short(text, self._scrubber).encode(errors="replace"),
                        {"Content-Type": "text/plain; charset=utf-8"},
                    )
                )
            case _:
                pass


def send_test(receiver: Receiver, host: str, database: str) -> str:
    """Post a test notification and wait for the answer; return the problem, or an empty text."""
    problems: list[str] = []
    payload = test_payload(host, database)
    courier = Courier("The webhook", problems.append)
    courier.send(receiver.request(payload, tries=1))
    courier.finish()
    courier.wait(2 * ANSWER_SECONDS)
    return receiver.scrubber.scrub("; ".join(problems))


def test_payload(host: str, database: str) -> Payload:
    """Return the payload of a test notification."""
    return {
        "timestamp": iso(datetime.now(UTC)),
        "status": "success",
        "message": "This is a test notification from pgstash. No backup was made.",
        "service": SERVICE,
        "database": {"host": host, "name": database},
        "extra": {"test": True, "exit_code": 0, "warnings": []},
    }


def ping_url(url: str, signal: str = "") -> str:
    """Return the URL of a signal; a query string is kept."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/") + (f"/{signal}" if signal else "")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
