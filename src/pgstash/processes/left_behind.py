"""What a run of pgstash leaves behind when it is killed: pg_dump, psql and the like.

Each of these leads a session of its own, and the kill of the run does not reach it. It may then
hold locks on the server, or run a query for hours. All of them inherit a variable with a mark that
no other run has. A hook does not: what it starts may be meant to live on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path

VARIABLE = "PGSTASH_RUN"

_SECONDS_TO_TERMINATE = 1.0  # pg_dump asks the server to cancel its query
_SECONDS_TO_DIE = 2.0
_SECONDS_BETWEEN_LOOKS = 0.02
_PROCESSES = Path("/proc")


def marked(environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Return a new mark, and an environment with it."""
    mark = secrets.token_hex(16)
    return mark, {**environment, VARIABLE: mark}


def end(mark: str) -> None:
    """End all processes that have the mark: by SIGTERM, then SIGKILL."""
    for signum, patience in (
        (signal.SIGTERM, _SECONDS_TO_TERMINATE),
        (signal.SIGKILL, _SECONDS_TO_DIE),
    ):
        signalled = set[int]()
        give_up = time.monotonic() + patience
        while (found := _with(mark)) and time.monotonic() < give_up:
            for pid in found - signalled:
                with contextlib.suppress(OSError):
                    os.kill(pid, signum)
            signalled |= found
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def _with(mark: str) -> set[int]:
    """Return the processes that have the mark. That of another user cannot be read."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = set[int]()
    for folder in _PROCESSES.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found
