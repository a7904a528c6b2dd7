"""What every run of a client tool needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgstash.events import Emit
from pgstash.postgres.tools.installed import ClientTools


@dataclass(frozen=True, slots=True)
class ToolRun:
    """Which tools are run, and where their messages go.

    ``environment`` is what the tools may choose from, usually that of the process.
    """

    client: ClientTools
    environment: Mapping[str, str]
    emit: Emit


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a dump may wait, in seconds: for a ``lock``, and, ``idle``, for the next byte.

    ``first_lock`` is another limit for everything that is locked before the first byte.
    """

    lock: float
    idle: float
    first_lock: float | None = None

    @property
    def before_first_byte(self) -> float:
        """The limit for each lock before the first byte."""
        return self.lock if self.first_lock is None else self.first_lock
