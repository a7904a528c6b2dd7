"""Runs the installed ``pgstash`` command as a user would: a process, an environment, a status."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from support.postgres import clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COMMAND = Path(sys.executable).parent / "pgstash"
# pgstash reads a .env file of its working directory: the developer's must not reach a test.
NO_DOTENV = Path("/")
# Coverage finds its way into child processes by these.
_PASSED_ON = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


def environment(*bin_dirs: Path, **settings: str) -> dict[str, str]:
    """Return the environment of a run: these tools on PATH, these settings, nothing else."""
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return clean_environment(*bin_dirs) | passed_on | settings


def run_pgstash(
    arguments: Sequence[str | Path],
    env: Mapping[str, str],
    *,
    stdin: str | None = None,
    timeout: float = 300,
    cwd: Path = NO_DOTENV,
    command: Sequence[str | Path] = (COMMAND,),
) -> subprocess.CompletedProcess[str]:
    """Run ``pgstash`` to its end; the result has returncode, stdout and stderr.

    ``timeout`` is in seconds; TimeoutExpired is raised after it. ``command`` is what stands before
    the arguments.
    """
    return subprocess.run(
        [*command, *arguments],
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
    command: Sequence[str | Path] = (COMMAND,),
) -> Iterator[subprocess.Popen[str]]:
    """Start ``pgstash`` in a process group of its own, to be sent signals; kill what is left.

    Both its outputs are pipes: read them with ``communicate``.
    """
    with subprocess.Popen(
        [*command, *arguments],
        env=env,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
