"""Runs ``pgstash`` without the time of its imports: a process makes them once, each run is a fork.

A run is a process of its own, with its own environment, folder, files and status. It ends as the
installed command does, but leaves its memory to the system: to free each object takes a fifth of
the time of a small backup.

As a program this module is the process that forks. Its argument is the path of its socket; each
connection there is one run. It ends when its standard input does.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import inspect
import json
import os
import pkgutil
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_PATIENCE = 300.0  # seconds until the process that forks listens; it takes about one
# Variables that Python, the C library or a package reads when it is loaded.
_READ_AT_START = ("LANG", "LC_", "LD_", "PYTHON", "OPENSSL_", "SSL_", "COLUMNS", "NO_COLOR", "TERM")
_STREAMS = ("stdin", "stdout", "stderr")
_FILES = 4  # the request, stdin, stdout, stderr


class Preloaded:
    """The process that forks; it starts with the first run, in this environment."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Path()

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Return whether this environment differs in nothing that is read at the start."""
        names = {name for name in {*env, *self._env} if name.startswith(_READ_AT_START)}
        return all(env.get(name) == self._env.get(name) for name in names)

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        statements: Sequence[str],
        *,
        stdin: str,
        timeout: float,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command``, which is pgstash and its arguments, after these statements.

        ``timeout`` is in seconds; the run is killed after it, and TimeoutExpired is raised.
        """
        request = {"argv": command, "env": dict(env), "cwd": str(cwd), "statements": statements}
        with contextlib.ExitStack() as opened:
            files = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(_FILES)]
            for file, text in zip(files, (json.dumps(request), stdin), strict=False):
                file.write(text.encode())
                file.seek(0)
            connection = opened.enter_context(socket.socket(socket.AF_UNIX))
            connection.settimeout(timeout)
            connection.connect(self._address())
            socket.send_fds(connection, [b"r"], [file.fileno() for file in files])
            told = opened.enter_context(connection.makefile())
            pid = int(told.readline())
            try:
                status = int(told.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(list(command), timeout) from None
            out, err = (_text(file.fileno()) for file in files[2:])
        return subprocess.CompletedProcess(list(command), status, out, err)

    def start(
        self, command: Sequence[str], env: Mapping[str, str], cwd: Path, statements: Sequence[str]
    ) -> subprocess.Popen[str]:
        """Start what ``run`` runs in a session of its own; its outputs are pipes."""
        request = {
            "argv": command,
            "env": dict(env),
            "cwd": str(cwd),
            "statements": statements,
            "session": True,
        }
        return _Fork(self._address(), request)

    def close(self) -> None:
        """End the process that forks."""
        if self._process and self._process.stdin:
            self._process.stdin.close()
            self._process.wait()
            shutil.rmtree(self._folder)
            self._process = None

    def _address(self) -> str:
        if self._process:
            return str(self._folder / "socket")
        # The path of a socket may have no more than 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="pgstash-preloaded-", dir="/tmp"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, self._folder / "socket"],
            env=dict(self._env),
            cwd="/",
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the tests, which close it
        )
        give_up = time.monotonic() + _PATIENCE
        while not (self._folder / "socket").exists():
            if self._process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError("the process that forks runs of pgstash does not start")
            time.sleep(0.01)
        return self._address()


class _Fork(subprocess.Popen[str]):
    """A run that goes on. It is no child of this process: the one that forks tells how it ends."""

    def __init__(self, address: str, request: Mapping[str, Any]) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        self._request = request
        self._one_at_a_time = threading.Lock()
        super().__init__(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )

    def _execute_child(self, *arguments: Any) -> None:
        """Have the run forked, instead of starting a program."""
        usual = inspect.signature(vars(subprocess.Popen)["_execute_child"])
        given = usual.bind(self, *arguments).arguments
        files = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        with tempfile.TemporaryFile() as file:
            file.write(json.dumps(self._request).encode())
            file.seek(0)
            socket.send_fds(self._connection, [b"r"], [file.fileno(), *files])
        for descriptor in files:
            os.close(descriptor)
        self._closed_child_pipe_fds = True
        self._told = self._connection.makefile()
        self.pid = int(self._told.readline())
        self._child_created = True

    def _internal_poll(self, _deadstate: int | None = None) -> int | None:
        return self._status_within(0)

    def _wait(self, timeout: float | None) -> int:
        status = self._status_within(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def _status_within(self, seconds: float | None) -> int | None:
        # Who sends a signal while another waits must not wait, too.
        if not self._one_at_a_time.acquire(blocking=seconds != 0):
            return self.returncode
        try:
            if self.returncode is None and select.select([self._connection], [], [], seconds)[0]:
                self.returncode = int(self._told.readline())
                self._told.close()
                self._connection.close()
        finally:
            self._one_at_a_time.release()
        return self.returncode


def _text(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(descriptor, errors="replace", closefd=False) as file:
        return file.read()


def _requested(path: str) -> Sequence[str]:
    """Fork for each request; return in the fork, which is set up as it asks, its statements."""
    # The process that tests must not load them by this module.
    import pgstash  # noqa: PLC0415
    from pgstash.storage.s3 import identity  # noqa: PLC0415

    for module in pkgutil.walk_packages(pgstash.__path__, "pgstash."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    # The descriptions of services that a client reads: most of the time that it takes.
    identity.isolated_session().create_client(
        "s3", "us-east-1", aws_access_key_id="-", aws_secret_access_key="-"
    )
    _build_commands_once()
    gc.collect()
    gc.freeze()  # the memory is shared for as long as nothing looks through it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}.new")
        listener.listen()
        Path(f"{path}.new").rename(path)
        files = _forked(listener)
    with os.fdopen(files.pop(0)) as file:
        request = json.load(file)
    for standard, descriptor in enumerate(files):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    for standard, name in enumerate(_STREAMS):
        _open_again(standard, name)
    if request.get("session"):
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    os.chdir(request["cwd"])
    sys.argv = request["argv"]
    statements: Sequence[str] = request["statements"]
    return statements


def _build_commands_once() -> None:
    """Keep what Typer makes of all functions: it takes 0.02 s, most of a small run."""
    from typer import main  # noqa: PLC0415 - as above

    from pgstash import cli  # noqa: PLC0415 - as above

    built = main.get_command(cli._cli)  # noqa: SLF001 - what cli.main() calls
    main.get_command = lambda typer_instance: built  # noqa: ARG005 - Typer's own name


def _open_again(standard: int, name: str) -> None:
    """Open a stream of Python as its start does: each knows whether it can seek."""
    before: TextIO = getattr(sys, name)
    opened = open(  # noqa: SIM115 - it is open for as long as the run
        standard,
        "r" if name == "stdin" else "w",
        buffering=1 if name == "stderr" else -1,
        encoding=before.encoding,
        errors=before.errors,
        closefd=False,
    )
    setattr(sys, name, opened)
    setattr(sys, f"__{name}__", opened)


def _forked(listener: socket.socket) -> list[int]:
    """Fork for each connection, and tell it how the fork ends; return in each fork its files."""
    runs: dict[int, tuple[int, socket.socket]] = {}  # by a descriptor of the process
    while True:
        ready, _, _ = select.select([listener, sys.stdin, *runs], [], [])
        if sys.stdin in ready:
            sys.exit()
        for ended in runs.keys() & {each for each in ready if isinstance(each, int)}:
            run, connection = runs.pop(ended)
            _, status = os.waitpid(run, 0)
            os.close(ended)
            # Whoever gave it up listens no longer.
            with connection, contextlib.suppress(OSError):
                connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        if listener in ready:
            connection, _ = listener.accept()
            _, files, _, _ = socket.recv_fds(connection, 1, _FILES)
            if not (run := os.fork()):
                break
            for descriptor in files:
                os.close(descriptor)
            connection.sendall(f"{run}\n".encode())
            runs[os.pidfd_open(run)] = run, connection
    connection.close()
    for descriptor, (_, other) in runs.items():
        os.close(descriptor)
        other.close()
    return files


@dataclass
class _End:
    """Ends a run at once after everything that runs at the end of an interpreter."""

    status: int | None = None
    """Of a run that ends by ``sys.exit``; any other end is the interpreter's."""

    def __post_init__(self) -> None:
        atexit.register(self._leave)  # before any other, so that it is called last

    def _leave(self) -> None:
        if self.status is not None:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.status)


if __name__ == "__main__":
    end = _End()
    wanted = _requested(sys.argv[1])
    main = ("from pgstash.cli import main", "main()")
    try:
        exec("\n".join([*wanted, *main]), {"__name__": "__main__"})  # noqa: S102
    except SystemExit as exit_:
        if isinstance(exit_.code, int):
            end.status = exit_.code & 0xFF
        raise
