"""Runs the installed ``pgstash`` command as a user would: a process, an environment, a status."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.postgres import clean_environment
from support.preloaded import Preloaded

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COMMAND = Path(sys.executable).parent / "pgstash"
# pgstash reads a .env file of its working directory: the developer's must not reach a test.
NO_DOTENV = Path("/")
# Statements for a program that knows only the tools on PATH: a machine may have a package of
# PostgreSQL, and pgstash takes the latest release of the server's major.
TOOLS_ON_PATH_ALONE = (
    "from pgstash.postgres.tools import installed",
    "installed._PACKAGED = ()",
)

PRELOADED = Preloaded(clean_environment())


def environment(*bin_dirs: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a run: these tools on PATH, these settings, nothing else."""
    return clean_environment(*bin_dirs) | settings


def restore_to(env: Mapping[str, str], *arguments: str) -> list[str]:
    """Return the arguments of a restore into the database of RESTORE_URL, whatever its name is."""
    return ["restore", "--to", env["RESTORE_URL"], *arguments]


def program(*statements: str) -> list[str | Path]:
    """Return a command that is pgstash after these statements."""
    main = ("from pgstash.cli import main", "main()")
    return [sys.executable, "-c", "\n".join([*statements, *main])]


def run_pgstash(
    arguments: Sequence[str | Path],
    env: Mapping[str, str],
    *,
    stdin: str | None = None,
    timeout: float = 300,
    cwd: Path = NO_DOTENV,
    command: Sequence[str | Path] = (),
    statements: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``pgstash`` to its end; the result has returncode, stdout and stderr.

    ``timeout`` is in seconds; TimeoutExpired is raised after it. ``command`` is what stands before
    the arguments: without one, the run is a fork that has pgstash loaded, and ``statements`` come
    first in it.
    """
    if statements and not PRELOADED.can_run(env):
        command = program(*statements)
    given = [*map(str, command or (COMMAND,)), *map(str, arguments)]
    if not command and PRELOADED.can_run(env):
        return PRELOADED.run(given, env, cwd, statements, stdin=stdin or "", timeout=timeout)
    return subprocess.run(
        given,
        env=env,
        cwd=cwd,
        input=stdin or "",
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


@contextlib.contextmanager
def started_pgstash(
    arguments: Sequence[str | Path],
    env: Mapping[str, str],
    *,
    cwd: Path = NO_DOTENV,
    command: Sequence[str | Path] = (),
    statements: Sequence[str] = (),
) -> Iterator[subprocess.Popen[str]]:
    """Start ``pgstash`` in a process group of its own, to be sent signals; kill what is left.

    Both its outputs are pipes: read them with ``communicate``. ``command`` and ``statements`` are
    those of ``run_pgstash``.
    """
    if statements and not PRELOADED.can_run(env):
        command = program(*statements)
    given = [*map(str, command or (COMMAND,)), *map(str, arguments)]
    if not command and PRELOADED.can_run(env):
        started = PRELOADED.start(given, env, cwd, statements)
    else:
        started = subprocess.Popen(
            given,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    with started as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
