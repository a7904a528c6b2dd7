"""The folder of a throwaway server: locked while its drill runs, and otherwise swept.

A drill holds a lock on a file in the folder. Without a lock, the drill was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pgstash.events import Emit, Notice, Warned

PREFIX = "pgstash-drill-"
"""The beginning of the name of such a folder."""

_LOCK = "lock"
_SECONDS_TO_STOP = 2.0
_SECONDS_BETWEEN_CHECKS = 0.05
_SECONDS_TO_TAKE_THE_LOCK = 60.0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder for the length of the block."""
    # Python's descriptors are not inherited, so the lock ends with this process.
    with (folder / _LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def remove(folder: Path, emit: Emit) -> None:
    """Remove a folder; warn if that fails."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        emit(Warned(f"{folder} of a drill cannot be removed: remove it yourself"))


def sweep(parent: Path, emit: Emit) -> None:
    """End the servers, and remove the folders, of drills that were killed."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # of another user, or removed just now
            lock = folder / _LOCK
            if not lock.exists():
                # Created just now, and not locked yet; or its drill was killed at that moment.
                if time.time() - folder.stat().st_mtime > _SECONDS_TO_TAKE_THE_LOCK:
                    remove(folder, emit)
                continue
            with lock.open("rb+") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                emit(Notice(f"Removing {folder} of a drill that was killed"))
                _kill(folder)
                remove(folder, emit)


def _kill(folder: Path) -> None:
    """End the server of a folder, if the process that its file names is this server."""
    pid_file = folder / "data" / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().partition("\n")[0])
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return
    if os.fsencode(folder / "data") not in command.split(b"\0"):
        return
    os.kill(pid, signal.SIGQUIT)
    give_up = time.monotonic() + _SECONDS_TO_STOP
    while Path(f"/proc/{pid}").exists() and time.monotonic() < give_up:
        time.sleep(_SECONDS_BETWEEN_CHECKS)
