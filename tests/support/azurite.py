"""A real Azure Blob server for tests: Azurite, Microsoft's own, one process on loopback,
with its data in memory.

``install`` puts it into .cache, ``AzuriteServer`` runs it, and the fixtures at the end give every
test a container of its own. It needs Node.js and npm.

It differs from Azure in these points, so no test can show them:
- It takes any name of metadata. Azure wants identifiers of C#: see ``storage/azure/metadata.py``.
  https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
- It limits neither the number of blocks nor the age of those that are not committed.
  https://learn.microsoft.com/rest/api/storageservices/put-block#remarks
- It checks no roles: whoever has a key or a valid SAS token has its permissions.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobServiceClient

from support.swift import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.proxy import Request

HERE = Path(__file__).parent
PACKAGE = HERE / "azurite"
DEFAULT_FOLDER = HERE.parents[1] / ".cache" / "azurite"
HOST = "127.0.0.1"
ACCOUNT = "pgstashtests"
KEY = "cGdzdGFzaC10ZXN0cy1zZWNyZXQta2V5LW9mLWF6dXJpdGU="
START_TIMEOUT = 120.0

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


def install(folder: Path = DEFAULT_FOLDER) -> None:
    """Put the pinned Azurite into ``folder``, unless it is there already."""
    lock = PACKAGE / "package-lock.json"
    stamp = folder / "installed"
    if stamp.is_file() and stamp.read_bytes() == lock.read_bytes():
        return
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PACKAGE, folder)
    subprocess.run(
        ["npm", "ci", "--silent", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"],
        cwd=folder,
        check=True,
    )
    shutil.copy(lock, stamp)


class AzuriteServer:
    """The blob service of one account; its log lies in ``root``."""

    account = ACCOUNT
    key = KEY

    def __init__(self, root: Path, *, folder: Path = DEFAULT_FOLDER) -> None:
        self._root = root
        self._main = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        self.port = 0

    @property
    def endpoint(self) -> str:
        return self.endpoint_at(self.port)

    @staticmethod
    def endpoint_at(port: int) -> str:
        """Return the endpoint that a proxy has at ``port``."""
        return f"http://{HOST}:{port}/{ACCOUNT}"

    def settings(self, container: str) -> dict[str, str]:
        """Return the settings that send backups to a container."""
        return {
            "STORAGE_URL": f"azure://{ACCOUNT}/{container}",
            "AZURE_STORAGE_ENDPOINT": self.endpoint,
            "AZURE_STORAGE_KEY": KEY,
        }

    def __enter__(self) -> Self:
        if not self._main.exists():
            pytest.fail(f"no Azurite in {self._main}: run scripts/setup --azurite")
        self._root.mkdir(parents=True)
        [self.port] = free_ports(1)
        with (self._root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-c", RUN, "node", self._main, "--silent"),
                    *("--blobHost", HOST, "--blobPort", str(self.port)),
                    *("--inMemoryPersistence", "--extentMemoryLimit", "1000"),
                    # The SDK is newer than the versions that Azurite knows by name.
                    *("--skipApiVersionCheck", "--disableTelemetry"),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self._root),
                    "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}",
                },
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
        give_up = time.monotonic() + START_TIMEOUT
        while True:
            try:
                self.create_container()
            except AzureError as exc:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    log = (self._root / "log").read_text(errors="replace")
                    raise RuntimeError(f"Azurite did not start:\n{log[-5000:]}") from exc
                time.sleep(0.1)
            else:
                return

    @cached_property
    def client(self) -> BlobServiceClient:
        """A client for what a test does around pgstash, closed with the server."""
        credential = {"account_name": ACCOUNT, "account_key": KEY}
        return BlobServiceClient(self.endpoint, credential=credential, retry_total=0)

    def create_container(self) -> str:
        """Make a container and return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.client.create_container(name).close()
        return name


def operation_of(request: Request) -> str:
    """Return the operation of Azure's REST API that a proxy was asked for."""
    [comp] = request.query.get("comp", [""])
    kind = {"GET": "Get", "HEAD": "Head", "PUT": "Put", "DELETE": "Delete", "POST": "Post"}
    what = {"block": "Block", "blocklist": "BlockList", "list": "Blobs", "batch": "Batch"}
    return f"{kind[request.method]}{what.get(comp, 'Blob')}"


@pytest.fixture(scope="session")
def azurite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzuriteServer]:
    """One server for the whole run."""
    with AzuriteServer(tmp_path_factory.mktemp("azurite") / "server") as server:
        yield server


@pytest.fixture
def azure_container(azurite_server: AzuriteServer) -> Iterator[str]:
    """The name of an empty container that is this test's own; it is in memory, so it goes again."""
    name = azurite_server.create_container()
    yield name
    azurite_server.client.delete_container(name)
