"""A real S3 server for tests: OpenStack Swift with its S3 interface, on loopback.

``install`` puts Swift into an environment of its own, ``SwiftServer`` runs one cluster of
four small processes, and the fixtures at the end give every test a bucket of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
import pytest
from botocore.config import Config

from support.postgres import folder_of_servers
from support.swift_cluster import ACCESS_KEY, HOST, SECRET_ACCESS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "swift-requirements.txt"
DEFAULT_VENV = HERE.parents[1] / ".cache" / "swift-venv"
REGION = "us-east-1"
START_TIMEOUT = 60.0


def install(venv: Path = DEFAULT_VENV, requirements: Path = REQUIREMENTS) -> None:
    """Put the pinned Swift into the environment ``venv``, unless it is there already.

    Uses the interpreter that calls, and pip of the calling environment.
    """
    stamp = venv / "pgstash-requirements.txt"
    wanted = f"{sys.version_info[:2]}\n{requirements.read_text()}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "install"),
            *("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--requirement", str(requirements)),
        ],
        check=True,
    )
    stamp.write_text(wanted)


def free_ports(count: int) -> list[int]:
    """Return TCP ports of loopback that nobody listens on at the moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]


class SwiftServer:
    """One Swift cluster; its data lie in ``data_dir``, on a file system with user xattrs."""

    access_key_id = ACCESS_KEY
    secret_access_key = SECRET_ACCESS_KEY
    region = REGION

    def __init__(self, data_dir: Path, *, venv: Path | None = None) -> None:
        self._root = data_dir
        self._venv = venv or Path(os.environ.get("PGSTASH_TEST_SWIFT_VENV", DEFAULT_VENV))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        python = self._venv / "bin" / "python"
        if not python.exists():
            pytest.fail(f"no Swift in {self._venv}: run {__name__}.install() first")
        ports = free_ports(4)
        self.port = ports[0]
        self._process = subprocess.Popen(
            [python, "-I", HERE / "swift_cluster.py", self._root, *map(str, ports)],
            stdin=subprocess.PIPE,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
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
        """End all four servers; they also end when this process dies in any other way."""
        if "client" in self.__dict__:
            self.client.close()
            del self.client
        if self._process:
            assert self._process.stdin
            self._process.stdin.close()
            self._process.wait()
            self._process = None

    def _wait_until_healthy(self) -> None:
        """Wait until every one of the four servers has done its part in a request."""
        give_up = time.monotonic() + START_TIMEOUT
        while True:
            try:
                with urllib.request.urlopen(f"{self.endpoint}/healthcheck", timeout=5):  # noqa: S310
                    pass
                bucket = self.create_bucket()
                self.client.put_object(Bucket=bucket, Key="up", Body=b"")
                self.client.delete_object(Bucket=bucket, Key="up")
                self.client.delete_bucket(Bucket=bucket)
            except (urllib.error.URLError, OSError) as exc:
                assert self._process
                if self._process.poll() is not None or time.monotonic() > give_up:
                    logs = "".join(path.read_text() for path in self._root.glob("*.log"))
                    raise RuntimeError(f"Swift did not start:\n{logs}") from exc
                time.sleep(0.1)
            else:
                return

    @cached_property
    def client(self) -> S3Client:
        """A client for what a test does around pgstash, closed with the server."""
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_ACCESS_KEY,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=16,
                retries={"total_max_attempts": 8},
            ),
        )

    def create_bucket(self, name: str | None = None) -> str:
        """Make a bucket and return its name."""
        name = name or f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def swift_server() -> Iterator[SwiftServer]:
    """One cluster for the whole run, in memory if there is room and Linux allows user xattrs there.

    Linux does from 6.6.
    """
    where = folder_of_servers()
    try:
        with tempfile.NamedTemporaryFile(dir=where) as file:
            os.setxattr(file.fileno(), "user.pgstash", b"x")
    except OSError:
        where = Path(tempfile.gettempdir())
    with (
        tempfile.TemporaryDirectory(prefix="pgstash-swift-", dir=where) as folder,
        SwiftServer(Path(folder) / "cluster") as server,
    ):
        yield server


@pytest.fixture
def s3_bucket(swift_server: SwiftServer) -> str:
    """Return the name of an empty bucket that is this test's own."""
    return swift_server.create_bucket()


if __name__ == "__main__":
    install(Path(sys.argv[1]) if sys.argv[1:] else DEFAULT_VENV)
