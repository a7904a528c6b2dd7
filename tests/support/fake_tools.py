"""Fake pg_dumps for tests of what the real one does rarely: die midway, hang, flood, lie.

tools = install_pg_dump(tmp_path / "bin", dies_midway(size=20 * MIB))
run_pgstash(["once"], environment(tools, ...))
assert recorded_calls(tools)[0]["arguments"] == [...]
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
GIB = 1024 * MIB

_SCRIPT = Path(__file__).with_name("fake_pg_dump.py")


@dataclass(frozen=True)
class FakePgDump:
    """What the fake does, in this order; by default it writes a small dump and ends well.

    Without a change, ``size`` bytes of rows (rounded down to MiB) come between the head
    and the tail of a plain dump, fast enough not to be what a test measures.
    """

    version: str = "18.6"
    ignored_signals: tuple[str, ...] = ()
    silence: float = 0.0  # seconds before the first byte
    stderr_flood: int = 0  # bytes
    stderr_newlines: bool = True
    leak_password: bool = False  # writes its PGPASSWORD to stderr
    empty: bool = False  # writes neither head nor rows
    size: int = 1 * MIB
    noisy: bool = False  # rows that hardly get smaller, of which fewer fill a part
    until: str = ""  # a file that it waits for after the rows
    stderr: str = ""  # written after the rows
    hang: str = ""  # "alone", or "with child": one that holds the pipes
    complete: bool = True  # writes the tail
    killed_by: str = ""  # the name of a signal
    status: int = 0


def dies_midway(size: int = 20 * MIB, *, noisy: bool = False) -> FakePgDump:
    """Ends with status 1 and a reason after ``size`` bytes, in the middle of a table."""
    reason = (
        'pg_dump: error: Dumping the contents of table "filler" failed: PQgetCopyData() failed.\n'
        "pg_dump: detail: Error message from server: server closed the connection unexpectedly\n"
    )
    return FakePgDump(size=size, noisy=noisy, complete=False, status=1, stderr=reason)


def fails_after_complete_dump(size: int = 1 * MIB) -> FakePgDump:
    """Writes a dump that looks complete, and ends with status 1 all the same."""
    return FakePgDump(size=size, status=1, stderr="pg_dump: error: could not close output\n")


def truncated_but_status_zero(size: int = 1 * MIB) -> FakePgDump:
    """Stops in the middle of a table, and ends as if nothing were wrong."""
    return FakePgDump(size=size, complete=False)


def writes_nothing() -> FakePgDump:
    """Ends well without a single byte."""
    return FakePgDump(empty=True, complete=False)


def hangs(size: int = 1 * MIB, *, with_child: bool = False) -> FakePgDump:
    """Writes some rows, then nothing for an hour; a child may hold the pipes even longer."""
    return FakePgDump(size=size, hang="with child" if with_child else "alone", complete=False)


def ignores_sigterm(size: int = 1 * MIB) -> FakePgDump:
    """Hangs, and does not go when it is asked to."""
    ignored = ("SIGTERM", "SIGINT", "SIGHUP")
    return FakePgDump(size=size, hang="alone", complete=False, ignored_signals=ignored)


def floods_stderr(size: int = 8 * MIB, *, newlines: bool = True) -> FakePgDump:
    """Writes megabytes to stderr before the dump; without newlines they are one line."""
    return FakePgDump(stderr_flood=size, stderr_newlines=newlines)


def writes_much(size: int = 2 * GIB) -> FakePgDump:
    """Writes a large, complete dump at the speed of a pipe."""
    return FakePgDump(size=size)


def killed(size: int = 1 * MIB, *, by: str = "SIGKILL") -> FakePgDump:
    """Is killed by a signal in the middle of a table."""
    return FakePgDump(size=size, complete=False, killed_by=by)


def leaks_password() -> FakePgDump:
    """Fails, and tells its password to stderr."""
    return FakePgDump(leak_password=True, complete=False, status=1)


def install_pg_dump(
    folder: Path, behaviour: FakePgDump | None = None, real: Path | None = None
) -> Path:
    """Put a fake pg_dump into ``folder``, and return the folder for PATH.

    Installing again changes the behaviour. A ``real`` folder of tools makes the dumps in custom
    format, from which owners and privileges come.
    """
    folder.mkdir(parents=True, exist_ok=True)
    fields = dataclasses.asdict(behaviour or FakePgDump())
    (folder / "behaviour.json").write_text(json.dumps(fields))
    # `exec`: the fake has the process id that its parent signals.
    command = shlex.join([sys.executable, "-I", "-S", str(_SCRIPT), str(folder)])
    script = folder / "pg_dump"
    custom = ""
    if real:
        custom = f'case "$*" in *--format=custom*) exec {real / "pg_dump"} "$@" ;; esac\n'
        (folder / "pg_restore").symlink_to(real / "pg_restore")
    script.write_text(f'#!/bin/sh\n{custom}exec {command} "$@"\n')
    script.chmod(0o755)
    roles = folder / "pg_dumpall"
    roles.write_text("#!/bin/sh\necho 'CREATE ROLE faked;'\n")
    roles.chmod(0o755)
    return folder


def recorded_calls(folder: Path) -> list[dict[str, Any]]:
    """Return each call but ``--version``: ``pid``, ``session``, ``arguments``, ``environment``."""
    return _recorded(folder / "calls.jsonl")


def recorded_version_calls(folder: Path) -> list[dict[str, Any]]:
    """Return each call with ``--version`` so far, as ``recorded_calls`` does."""
    return _recorded(folder / "version_calls.jsonl")


def _recorded(calls: Path) -> list[dict[str, Any]]:
    if not calls.exists():
        return []
    return [json.loads(line) for line in calls.read_text().splitlines()]
