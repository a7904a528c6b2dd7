"""The outcome of a restore or a drill as one JSON object, for scripts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash import events
from pgstash.cli.output import print_line
from pgstash.errors import OutputError
from pgstash.monitoring.redaction import Scrubber

if TYPE_CHECKING:
    from pgstash.settings import Settings

JsonOutcome = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the outcome to stdout, as one JSON object, and the log to stderr."
    ),
]

_End = (
    events.RestoreSucceeded
    | events.RestorePlanned
    | events.RestoreFailed
    | events.DrillSucceeded
    | events.DrillFailed
)


@contextlib.contextmanager
def reporting(settings: Settings, emit: events.Emit, *, as_json: bool) -> Iterator[events.Emit]:
    """Yield where the events of one restore or drill go; print its outcome if ``as_json``.

    Nothing is printed if it had no beginning. Raises OutputError.
    """
    if not as_json:
        yield emit
        return
    outcome = _Outcome(emit, settings.job)
    scrub = Scrubber(settings.secrets()).scrub
    try:
        yield outcome
    except BaseException:
        with contextlib.suppress(OutputError):  # the error matters more, and has its exit status
            outcome.print(scrub)
        raise
    outcome.print(scrub)


class _Outcome:
    """Collects the events of one restore or drill."""

    def __init__(self, emit: events.Emit, job: str) -> None:
        """Pass all events on to ``emit``. The ``job``, if it is one of several, is printed too."""
        self._emit = emit
        self._job: Mapping[str, object] = {"job": job} if job else {}
        self._target: Mapping[str, object] = {}
        self._end: Mapping[str, object] = {}
        self._warnings: list[str] = []
        self._to_do: list[str] = []

    def __call__(self, event: events.Event) -> None:
        """Take an event."""
        match event:
            case events.RestoreStarted() | events.DrillStarted():
                self._warnings, self._to_do, self._target = [], [], {}
                if isinstance(event, events.RestoreStarted):
                    self._target = {"host": event.host, "name": event.database}
            case events.Warned():
                (self._to_do if event.to_do else self._warnings).append(event.message)
            case _ if isinstance(event, _End):
                self._end = _described(event, self._target)
            case _:
                pass
        self._emit(event)

    def print(self, scrub: Callable[[str], str]) -> None:
        """Print the outcome without secrets, if there is one. Raises OutputError."""
        if self._end:
            facts = {**self._job, **self._end, "to_do": self._to_do, "warnings": self._warnings}
            print_line(json.dumps(scrubbed(facts, scrub)))


def _described(event: _End, target: Mapping[str, object]) -> dict[str, object]:
    match event:
        case events.RestoreSucceeded():
            return _restore(event.name, "success", target) | {
                "seconds": round(event.seconds, 3),
                "raw_bytes": event.raw_bytes,
                "verified": event.verified,
                "kept": event.kept or None,
                "exit_code": 0,
            }
        case events.RestorePlanned():
            return _restore(event.name, "planned", target) | {
                "created": event.created,
                "server": event.server,
                "client": event.client,
                "verified": event.verified,
                "raw_bytes": event.raw_bytes,
                "tables": event.tables,
                "rows": event.rows,
                "exit_code": 0,
            }
        case events.RestoreFailed():
            return _restore(event.name, "failure", target) | _reason(event, event.outcome)
        case events.DrillSucceeded():
            return _drill(event, "success") | {
                "restore_seconds": round(event.restore_seconds, 3),
                "location": event.location,
                "checks": event.checks,
                "tables": event.tables,
                "rows": event.rows,
                "exit_code": 0,
            }
        case events.DrillFailed():
            return _drill(event, "failure") | _reason(event)


def _restore(name: str, status: str, target: Mapping[str, object]) -> dict[str, object]:
    return {"operation": "restore", "status": status, "backup": name, "database": target or None}


def _drill(event: events.DrillSucceeded | events.DrillFailed, status: str) -> dict[str, object]:
    return {
        "operation": "drill",
        "status": status,
        "backup": event.name,
        "database": {"host": event.host, "name": event.database},
        "seconds": round(event.seconds, 3),
    }


def _reason(
    event: events.RestoreFailed | events.DrillFailed, outcome: str | None = None
) -> dict[str, object]:
    facts: dict[str, object] = {
        "seconds": round(event.seconds, 3),
        "message": event.message,
        "hint": event.hint,
        "error": event.error,
        "exit_code": event.exit_code,
    }
    return facts if outcome is None else facts | {"target": outcome}


def scrubbed(value: object, scrub: Callable[[str], str]) -> object:
    """Return a value for JSON whose texts are scrubbed."""
    match value:
        case str():
            return scrub(value)
        case dict():
            return {key: scrubbed(each, scrub) for key, each in value.items()}
        case list():
            return [scrubbed(each, scrub) for each in value]
        case _:
            return value
