"""Another real S3 server for tests, of the second tier: SeaweedFS, one process on loopback.

It takes conditions with what is written, also when an upload is completed. ``install`` puts it
into an environment of its own, ``SeaweedServer`` runs it.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from support import swift

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mypy_boto3_s3 import S3Client

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "seaweedfs-requirements.txt"
DEFAULT_VENV = HERE.parents[1] / ".cache" / "seaweedfs-venv"
HOST = "127.0.0.1"
REGION = "us-east-1"
ACCESS_KEY = "seaweedfs-tester"
SECRET_ACCESS_KEY = "seaweedfs-test-secret"
START_TIMEOUT = 120.0

# Its servers talk gRPC on ports that are higher by so much.
GRPC_OFFSET = 10_000
PORTS = range(20_000, 32_000)

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
    """Put the pinned SeaweedFS into the environment ``venv``, unless it is there already."""
    swift.install(venv, REQUIREMENTS)


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, nor on those for gRPC."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.choice(PORTS)  # noqa: S311 - not a secret
        if port not in chosen and _is_free(port) and _is_free(port + GRPC_OFFSET):
            chosen.append(port)
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


class SeaweedServer:
    """Master, volume, filer and S3 in one process; its data lie in ``root``."""

    access_key_id = ACCESS_KEY
    secret_access_key = SECRET_ACCESS_KEY
    region = REGION

    def __init__(self, root: Path, *, venv: Path = DEFAULT_VENV) -> None:
        self._root = root
        self._weed = venv / "bin" / "weed"
        self.port = 0

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Self:
        if not self._weed.exists():
            pytest.fail(f"no SeaweedFS in {self._weed.parent}: run scripts/setup --seaweedfs")
        (self._root / "data").mkdir(parents=True)
        credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_ACCESS_KEY}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "tester", "credentials": credentials, "actions": actions}
        config = self._root / "s3.json"
        config.write_text(json.dumps({"identities": [identity]}))
        master, volume, filer, self.port = _free_ports(4)
        with (self._root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", RUN, self._weed, "server"),
                    *(f"-dir={self._root / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}"),
                    *(f"-master.port={master}", f"-volume.port={volume}", "-filer"),
                    *(f"-filer.port={filer}", "-s3", f"-s3.port={self.port}"),
                    *("-s3.port.lance=0", "-s3.port.iceberg=0", f"-s3.config={config}"),
                    # Each bucket takes several volumes of its own, which are empty files.
                    *("-volume.max=10000", "-master.volumeSizeLimitMB=64"),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._root,
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
        if "client" in self.__dict__:
            self.client.close()
            del self.client
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _wait_until_healthy(self) -> None:
        """Wait until an object can be stored."""
        give_up = time.monotonic() + START_TIMEOUT
        while True:
            try:
                bucket = self.create_bucket()
                self.client.put_object(Bucket=bucket, Key="up", Body=b"up")
                self.client.delete_object(Bucket=bucket, Key="up")
                self.client.delete_bucket(Bucket=bucket)
            except (BotoCoreError, ClientError) as exc:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    log = (self._root / "log").read_text(errors="replace")
                    raise RuntimeError(f"SeaweedFS did not start:\n{log[-5000:]}") from exc
                time.sleep(0.2)
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
                retries={"total_max_attempts": 1},
            ),
        )

    def create_bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """One server for the whole run."""
    with SeaweedServer(tmp_path_factory.mktemp("seaweedfs") / "server") as server:
        yield server
