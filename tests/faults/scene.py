"""A backup with something wrong around it: what it is made of, and what it leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from support.backups import PREFIX
from support.cli import environment, run_pgstash, started_pgstash
from support.fake_tools import FakePgDump, install_pg_dump, recorded_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from mypy_boto3_s3 import S3Client

    from support.postgres import Database

NAME = r"backup_\d{8}_\d{6}\.sql\.gz"
CLOSING = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"
PATIENCE = 300.0  # seconds, for what comes soon, on whatever machine


class Place(Protocol):
    """Where backups go, with the eyes of somebody who does not use pgstash."""

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings that send a backup there."""

    def objects(self) -> dict[str, bytes]:
        """Return everything visible, by key, except the records of failed runs."""

    def metadata(self, key: str) -> dict[str, str]:
        """Return what is stored with an object."""

    def unfinished(self) -> list[str]:
        """Return what takes space and is not visible."""


@dataclass(frozen=True)
class Folder:
    """A directory storage."""

    root: Path
    settings: dict[str, str]

    def objects(self) -> dict[str, bytes]:
        return {key: (self.root / key).read_bytes() for key in without_records(self._visible())}

    def metadata(self, key: str) -> dict[str, str]:
        path = self.root / key
        found: dict[str, str] = json.loads(self._metadata_file(path).read_text())
        return found

    def unfinished(self) -> list[str]:
        expected = {self.root / ".pgstash.lock"}
        expected |= {self._metadata_file(self.root / key) for key in self._visible()}
        return [key for key, path in self._files() if path.name[0] == "." and path not in expected]

    def _visible(self) -> list[str]:
        return [key for key, path in self._files() if path.name[0] != "."]

    def _files(self) -> list[tuple[str, Path]]:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [(path.relative_to(self.root).as_posix(), path) for path in files]

    @staticmethod
    def _metadata_file(path: Path) -> Path:
        return path.with_name(f".{path.name}.metadata.json")


@dataclass(frozen=True)
class Bucket:
    """A bucket of a real S3 server, always looked at without any proxy."""

    client: S3Client
    name: str
    settings: dict[str, str]

    def names(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return [each["Key"] for each in found]

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=self.name, Key=key)["Body"].read()

    def objects(self) -> dict[str, bytes]:
        return {key: self.get(key) for key in without_records(self.names())}

    def metadata(self, key: str) -> dict[str, str]:
        return self.client.head_object(Bucket=self.name, Key=key)["Metadata"]

    def unfinished(self) -> list[str]:
        found = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return [each["UploadId"] for each in found]

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)


@dataclass
class Scene:
    """One source, one place and the tools in between, to run ``pgstash once`` with."""

    database: Database
    place: Place
    tools: Path
    settings: dict[str, str] = field(default_factory=dict)

    def environment(self, **settings: str) -> dict[str, str]:
        given = {"DATABASE_URL": self.database.uri, **self.place.settings, **self.settings}
        return environment(self.tools, **(given | settings))

    def once(self, **settings: str) -> subprocess.CompletedProcess[str]:
        return run_pgstash(["once"], self.environment(**settings))

    def started(self, **settings: str) -> AbstractContextManager[subprocess.Popen[str]]:
        return started_pgstash(["once"], self.environment(**settings))

    def fake(self, behaviour: FakePgDump) -> None:
        """Make pg_dump behave like this from now on.

        Its release is a late one of the server's major: pgstash takes it before any real pg_dump.
        """
        version = f"{self.database.cluster.major}.99"
        install_pg_dump(self.tools, dataclasses.replace(behaviour, version=version))

    def fake_groups(self) -> list[int]:
        """Return the process groups of all fake pg_dumps so far."""
        return [call["pid"] for call in recorded_calls(self.tools)]

    def processes(self) -> list[str]:
        """Return the pg_dumps of this source that still run, and what they started."""
        return [*_processes(self.database.name, self.fake_groups())]

    def kill_processes(self) -> None:
        for group in self.fake_groups():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _processes(database: str, groups: list[int]) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # It may end at any moment.
        with contextlib.suppress(OSError):
            command = (
                (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            )
            state, _, group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            ours = (" --dbname=" in command and database in command) or int(group) in groups
            if ours and state != "Z":
                found.append(command)
    return found


def wait_until(happened: Callable[[], object], what: str, patience: float = PATIENCE) -> None:
    """Wait until something happened; fail after ``patience`` seconds."""
    give_up = time.monotonic() + patience
    while not happened():
        if time.monotonic() > give_up:
            raise AssertionError(f"waited in vain until {what}")
        time.sleep(0.03)


def without_records(keys: Iterable[str]) -> list[str]:
    """Return the keys that are not records of failed runs, which such runs leave on purpose."""
    record = rf"{PREFIX}/backup_\d{{8}}_\d{{6}}\.[0-9a-f]{{16}}\.failure\.json\.gz(\.enc)?"
    return [key for key in keys if not re.fullmatch(record, key)]


def archives_in(keys: Iterable[str]) -> list[str]:
    """Return the keys of archives, complete or not."""
    return [key for key in keys if re.fullmatch(rf"(.*/)?{NAME}(\.enc)?", key)]


def complete_archives(place: Place) -> list[str]:
    """Return the keys of all visible archives, each of them checked by the standard tools."""
    objects = place.objects()
    archives = [key for key in objects if re.fullmatch(rf"{PREFIX}/{NAME}", key)]
    for key in archives:
        archive = objects[key]
        base = key.removesuffix(".sql.gz")
        manifest_key = f"{base}.{place.metadata(key)['id']}.manifest.json.gz"
        manifest = json.loads(gzip.decompress(objects[manifest_key]))
        if hashlib.sha256(archive).hexdigest() != manifest["sha256"]:
            raise AssertionError(f"{key} is not what its manifest says")
        script = subprocess.run(
            ["gunzip", "-c"], input=archive, stdout=subprocess.PIPE, check=True
        ).stdout
        if CLOSING not in script[-1024:]:
            raise AssertionError(f"{key} is not a complete dump")
    return archives


def assert_nothing_left(scene: Scene) -> None:
    """No archive, no manifest, no part, no process."""
    left = (list(scene.place.objects()), scene.place.unfinished(), scene.processes())
    assert left == ([], [], []), f"objects, unfinished, processes: {left}"


def assert_failed(
    done: subprocess.CompletedProcess[str], status: int, *words: str, nothing_left: Scene | None
) -> None:
    """The run failed with this status and a message of a few lines that holds these words."""
    said = done.stderr
    assert done.returncode == status, (done.returncode, done.stdout, said)
    message = re.search(rf"FAILURE Backup failed after [\d.]+s: {NAME}: (.+)", said, re.DOTALL)
    assert message, said
    assert "\n  " in message[1], f"no hint in: {said}"
    missing = [word for word in words if word not in message[1]]
    assert not missing, f"{missing} not in: {said}"
    assert "Traceback" not in said, said
    assert "SUCCESS" not in done.stdout, done.stdout
    if nothing_left:
        assert_nothing_left(nothing_left)


def assert_succeeds(scene: Scene, **settings: str) -> str:
    """Another run succeeds; return what it logged."""
    before = complete_archives(scene.place)
    done = scene.once(**settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(complete_archives(scene.place)) == len(before) + 1
    assert scene.place.unfinished() == []
    assert scene.processes() == []
    return done.stdout + done.stderr
