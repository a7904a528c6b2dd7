"""Messages by Apprise to e-mail, chats and pagers: one when something breaks, one when it is well.

How an address is written: https://appriseit.com/services/.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

from pgstash import events
from pgstash.monitoring import chat
from pgstash.monitoring.http_delivery import Courier, DeliveryError
from pgstash.monitoring.messages import Kind
from pgstash.monitoring.receiver import Payload, scrubbed
from pgstash.monitoring.redaction import Scrubber
from pgstash.monitoring.webhook import Report, test_payload

MISSING = "NOTIFY_URLS needs Apprise, which is not installed: pip install 'pgstash[notify]'"

ASK_SECONDS = 15.0
"""How long a message waits for what was before: the store may be what failed, and answer never."""

_MOST_WORDS = 300  # characters of what a service answered

Operation = Literal["backup", "drill"]
Before = Callable[[Operation, datetime], str | None]
"""Return the error of the last run of a kind that began before a time: the name of its class.

An empty text if it succeeded, or there was none; None if that is unknown.
"""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where messages go: ``urls`` as Apprise reads them. ``wanted`` are the kinds of messages."""

    urls: Sequence[str] = field(repr=False)
    wanted: Collection[str]
    scrubber: Scrubber = field(repr=False)

    def send(self, title: str, body: str, level: str) -> None:
        """Send a message to each address. Raises DeliveryError that names those without success."""
        apprise = _apprise()
        problems: list[str] = []
        for number, url in enumerate(self.urls, 1):
            which = f"address {number} of NOTIFY_URLS"
            with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as words:
                service = apprise.Apprise.instantiate(url, suppress_exceptions=True)
                try:
                    sent = service and service.notify(
                        title=title,
                        body=body,
                        notify_type=level,
                        # Without this, some services take the text for HTML or for markup.
                        body_format=apprise.NotifyFormat.TEXT,
                        overflow=_overflow(apprise, service.overflow_mode),
                    )
                except Exception as error:  # noqa: BLE001 - the other addresses get it still
                    problems.append(f"{which} ({service.service_name}): {type(error).__name__}")
                    continue
                answer = " ".join(self.scrubber.scrub(words.getvalue()).split())[:_MOST_WORDS]
            if not service:
                problems.append(f"{which} is not one that Apprise knows")
            elif not sent:
                problems.append(f"{which} ({service.service_name}): {answer or 'no success'}")
        if problems:
            raise DeliveryError("; ".join(problems))

    def test(self, host: str, database: str) -> str:
        """Send a test; return the problem, or an empty text."""
        payload = test_payload(host, database)
        try:
            self.send(chat.title(payload), str(payload["message"]), "info")
        except DeliveryError as error:
            return str(error)
        return ""


class Notifier:
    """An event listener that sends a message when backups or drills begin to fail, or succeed."""

    def __init__(
        self,
        addresses: Addresses,
        courier: Courier,
        before: Before,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        ask_seconds: float = ASK_SECONDS,
    ) -> None:
        """Send by the thread of ``courier``, which also asks what was ``before``."""
        self._addresses = addresses
        self._courier = courier
        self._before = before
        self._now = now
        self._ask_seconds = ask_seconds
        self._report = Report(now)
        self._began = now()
        self._shrunk = False
        self._repeated: dict[str, str] = {}

    def __call__(self, event: events.Event) -> None:
        """Take an event. Safe to call from any thread; never waits."""
        if isinstance(event, events.BackupAttempted | events.DrillAttempted):
            self._began, self._shrunk = self._now(), False
        self._shrunk |= isinstance(event, events.BackupShrunk)
        payload = self._report.add(event)
        if payload is None or (isinstance(event, events.BackupFailed) and event.repeated):
            return
        began, shrunk = self._began, self._shrunk
        self._courier.call(lambda: self._tell(event, payload, began, shrunk=shrunk))

    def _tell(
        self, event: events.Event, payload: Payload, began: datetime, *, shrunk: bool
    ) -> None:
        kind = self._kind(event, began)
        wanted = self._addresses.wanted
        if kind not in wanted:
            if not (shrunk and "shrunk" in wanted):
                return
            kind = "shrunk"
        clean = scrubbed(payload, self._addresses.scrubber)
        self._addresses.send(_title(clean, kind), _body(clean), _level(kind))

    def _kind(self, event: events.Event, began: datetime) -> Kind | None:
        """Return what the event means after the runs before it; None if it is nothing new."""
        match event:
            case events.BackupFailed():
                return "failure" if self._error_before("backup", began) != event.error else None
            case events.DrillFailed():
                return "drill-failed" if self._error_before("drill", began) != event.error else None
            case events.CopyFailed():
                return "copy-failed" if self._is_new(f"copy {event.copy}", event.error) else None
            case events.PruneFailed():
                return "pruning-failed" if self._is_new(event.copy, event.error) else None
            case _:
                operation: Operation = (
                    "drill" if isinstance(event, events.DrillSucceeded) else "backup"
                )
                if "recovery" in self._addresses.wanted and self._error_before(operation, began):
                    return "recovery"
                return "success"

    def _error_before(self, operation: Operation, began: datetime) -> str | None:
        """Ask what was before; None also if the answer takes too long, or the question fails."""
        found: list[str | None] = []

        def ask() -> None:
            with contextlib.suppress(Exception):  # a message too many, rather than none
                found.append(self._before(operation, began))

        thread = threading.Thread(target=ask, name="the run before", daemon=True)
        thread.start()
        thread.join(self._ask_seconds)
        return found[0] if found else None

    def _is_new(self, what: str, error: str) -> bool:
        """Return whether this process has not yet sent a message about the error."""
        known = self._repeated.get(what)
        self._repeated[what] = error
        return known != error


def missing() -> str:
    """Return what is missing for messages, and the remedy; empty if nothing is."""
    return "" if find_spec("apprise") else MISSING


def _apprise() -> ModuleType:
    if missing():
        raise DeliveryError(MISSING)
    import apprise  # noqa: PLC0415 - an extra, and slow to import

    # Without a handler, Python writes its warnings to stderr; they may quote an address.
    log = logging.getLogger("apprise")
    log.propagate = False
    if not log.handlers:
        log.addHandler(logging.NullHandler())
    return apprise


def _overflow(apprise: ModuleType, chosen: object) -> object:
    """Return how to shorten what a service would refuse as too long, unless its URL chooses."""
    modes = apprise.OverflowMode
    return modes.TRUNCATE if chosen == modes.UPSTREAM else chosen


def _title(payload: Payload, kind: Kind | None) -> str:
    title = chat.title(payload)
    if kind == "recovery":
        return f"Well again: {title}"
    return f"Much smaller than usual: {title}" if kind == "shrunk" else title


def _body(payload: Payload) -> str:
    found = chat.fields(payload).items()
    return "\n\n".join([str(payload["message"]), *(f"{name}: {value}" for name, value in found)])


def _level(kind: Kind | None) -> str:
    if kind in ("success", "recovery"):
        return "success"
    return "warning" if kind == "shrunk" else "failure"
