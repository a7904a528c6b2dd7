"""Events are plain frozen values, and each that happens is told to somebody."""

from __future__ import annotations

import dataclasses
import signal

import pytest

from pgstash import events, failure
from pgstash.errors import DumpError, Interrupted
from pgstash.events import Event
from pgstash.monitoring import event_log

KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
]

# What the log leaves out, and why.
UNLOGGED = {
    events.BackupAttempted: "what goes wrong before BackupStarted is told by BackupFailed",
    events.DrillAttempted: "as BackupAttempted",
    events.Progressed: "comes four times a second: monitoring.progress shows it instead",
    events.RestoreProgressed: "as Progressed",
    events.CopyProgressed: "as Progressed",
    events.CopyCompared: "for /readyz and the webhook: the log has each copy that was made or not",
    events.PhaseStarted: "as Progressed",
    events.StepsDone: "as Progressed",
    events.WorkingOn: "as Progressed",
}


def test_there_are_events() -> None:
    assert len(KINDS) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_is_frozen_and_says_what_it_means(kind: type[Event]) -> None:
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}(")  # dataclass makes one up
    values = {field.name: "x" for field in dataclasses.fields(kind)}
    event = kind(**values)
    assert event == kind(**values)
    assert hash(event) == hash(kind(**values))
    assert not hasattr(event, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, next(iter(values)), "y")


@pytest.mark.parametrize("kind", KINDS)
def test_the_log_writes_every_event_or_leaves_it_out_for_a_reason(kind: type[Event]) -> None:
    assert (kind in event_log._WRITERS) != (kind in UNLOGGED)  # noqa: SLF001 - the table in question


def test_to_ignore_is_to_do_nothing() -> None:
    events.ignore(events.Notice("nobody hears it"))


def test_what_a_failed_run_says_of_its_error() -> None:
    assert failure.fields(DumpError("no", hint="Try.")) == {
        "message": "no",
        "hint": "Try.",
        "error": "DumpError",
        "exit_code": DumpError.exit_code,
    }
    assert failure.fields(Interrupted(signal.SIGTERM)) == {
        "message": "interrupted by SIGTERM",
        "hint": "",
        "error": "Interrupted",
        "exit_code": 143,
    }
    assert failure.fields(KeyError("x")) == {
        "message": "KeyError: 'x'",
        "hint": "",
        "error": "KeyError",
        "exit_code": 70,
    }
