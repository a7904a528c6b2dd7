"""Things that happen on any journey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events."""


Emit = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """Ignore an event: for callers without a listener."""


@dataclass(frozen=True, slots=True)
class Notice(Event):
    """A detail that helps with debugging."""

    message: str


@dataclass(frozen=True, slots=True)
class Informed(Event):
    """A fact that users want to know, although nothing is wrong."""

    message: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """There is a problem, but the run continues.

    ``to_do`` means that somebody has to do something about it after a restore; it is reported once
    that has ended.
    """

    message: str
    to_do: bool = False


@dataclass(frozen=True, slots=True)
class ToolSaid(Event):
    """A client tool wrote a line to stderr, or a hook wrote one to stdout or stderr."""

    tool: str
    line: str


@dataclass(frozen=True, slots=True)
class Retrying(Event):
    """A request failed and will be retried after ``delay`` seconds."""

    request: str
    attempt: int
    attempts: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class UploadLeftBehind(Event):
    """An upload could not be aborted in time; its parts stay in the store until they are swept."""

    key: str
    upload_id: str
    reason: str
