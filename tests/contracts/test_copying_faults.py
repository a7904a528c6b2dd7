"""Copies while stores fail at random: what is visible restores, and nothing is left half."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest

from pgstash.copying import run as copying
from pgstash.copying.place import Place
from pgstash.errors import (
    Interrupted,
    ObjectNotFoundError,
    PgstashError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.events import ignore
from pgstash.format import metadata, names
from pgstash.repository import archive, catalog
from pgstash.repository.access import Access
from pgstash.runtime import Runtime
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import PendingUpload, Storage, StoredObject, Upload
from pgstash.storage.memory import MemoryStorage
from support.stored import CLOSING, make
from support.tiers import later

ACCESS = Access(None, unverified=False, only_encrypted=False)
SCRIPT = (
    b"".join(b"-- %s\n" % sha256(b"%d" % row).hexdigest().encode() for row in range(20_000))
    + CLOSING
)
ROLES = b"CREATE ROLE ann;\n"
MOST_TRIES = 200


class Faulty:
    """A store whose requests fail at random, and whose bytes arrive damaged at random."""

    def __init__(self, inner: Storage, chance: random.Random, share: float) -> None:
        self.inner = inner
        self.share = share
        self.commits = 0
        self._chance = chance

    def may_fail(self) -> None:
        if self._chance.random() < self.share:
            kinds: list[StorageError] = [StorageUnreachableError("down"), StorageRefusedError("no")]
            raise self._chance.choice(kinds)

    def url(self, key: str = "") -> str:
        return self.inner.url(key)

    def check(self) -> None:
        self.may_fail()

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        yield from self.inner.list(prefix, start_after=start_after)

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        return self.inner.folders(within, complete=complete)

    def head(self, key: str) -> StoredObject:
        self.may_fail()
        return self.inner.head(key)

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        self.may_fail()
        with self.inner.read(key, start=start, length=length) as chunks:
            yield self._chunks(chunks)

    def _chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self.may_fail()
            if self._chance.random() < self.share:
                yield chunk[:-1] + bytes([chunk[-1] ^ 1])
            else:
                yield chunk

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        self.may_fail()
        self.inner.put(key, data, metadata)
        self.may_fail()  # the response is lost

    @contextmanager
    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> Iterator[Upload]:
        self.may_fail()
        with self.inner.upload(
            key, metadata=metadata, expected_size=expected_size, usual_size=usual_size
        ) as upload:
            yield _FaultyUpload(upload, self)

    def delete(self, keys: Iterable[str]) -> None:
        raise AssertionError(f"a copy deletes nothing: {list(keys)}")

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        return self.inner.pending(prefix)

    def abort(self, upload: PendingUpload) -> None:
        self.inner.abort(upload)


class _FaultyUpload:
    def __init__(self, inner: Upload, store: Faulty) -> None:
        self._inner = inner
        self._store = store

    @property
    def part_size(self) -> int:
        return self._inner.part_size

    @property
    def committed(self) -> bool | None:
        return self._inner.committed

    def write(self, data: bytes) -> None:
        self._store.may_fail()
        self._inner.write(data)

    def flush(self) -> None:
        self._store.may_fail()
        self._inner.flush()

    def commit(self) -> None:
        self._store.may_fail()
        self._inner.commit()
        self._store.commits += 1
        self._store.may_fail()  # the response is lost


def filled(storage: Storage) -> Storage:
    """Store one backup with roles."""
    made = make(SCRIPT, member_bytes=100_000)
    roles = make(ROLES).archive
    made = made.with_manifest(globals_sha256=sha256(ROLES).hexdigest())
    name = names.globals_name(made.base, made.manifest.id, encrypted=False)
    storage.put(f"p/{name}", roles, {"id": made.manifest.id})
    storage.put(made.manifest_key, made.packed_manifest(), metadata.facts(made.manifest, 1.0))
    storage.put(made.key, made.archive, {"id": made.manifest.id})
    return storage


def plan(source: Storage, target: Storage, go_on: Callable[[], None]) -> copying.Plan:
    return copying.Plan(Place(source, "p"), Place(target, "p"), ACCESS, go_on)


def every(storage: Storage) -> dict[str, tuple[bytes, Mapping[str, str]]]:
    found = {}
    for each in storage.list("p/"):
        with storage.read(each.key) as chunks:
            found[each.key] = (b"".join(chunks), storage.head(each.key).metadata)
    return found


@pytest.mark.parametrize("seed", later(range(200), *range(8, 200)))
def test_under_random_faults_every_visible_copy_restores(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same faults each time
    inner: Storage = MemoryStorage() if seed % 2 else DirectoryStorage(tmp_path)
    good = filled(MemoryStorage())
    source = Faulty(good, chance, share=0.05)
    target = Faulty(inner, chance, share=0.05)
    backup = catalog.read(good, "p").backups[0]

    def go_on() -> None:
        if chance.random() < 0.02:
            raise Interrupted(SIGTERM)

    for _ in range(MOST_TRIES):
        try:
            copying.run(plan(source, target, go_on), backup, Runtime(ignore))
            break
        except (PgstashError, Interrupted):
            pass
        assert list(inner.pending("p/")) == []
        there, ours = every(inner), every(good)
        assert there.items() <= ours.items()
        for visible in catalog.read(inner, "p").backups:
            opened = archive.open_stored(inner, visible, ACCESS)
            with opened.script() as chunks:
                assert b"".join(chunks) == SCRIPT
            assert opened.globals() == ROLES
    assert every(inner) == every(good)
    assert target.commits == 1


class _Stalling:
    """An upload that waits until the test has ended."""

    part_size = 0
    committed = False

    def __init__(self, inner: Upload, ended: threading.Event, at: str) -> None:
        self.flush, self.commit = inner.flush, inner.commit
        self._write = inner.write
        self._ended = ended
        if at == "flush":
            self.flush = self._stall
        self._stalls = at == "write"

    def _stall(self) -> None:
        self._ended.wait(60)

    def write(self, data: bytes) -> None:
        if self._stalls:
            self._stall()
        self._write(data)


class Stalled(MemoryStorage):
    """A store that takes no bytes."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.ended = threading.Event()
        self._at = at

    @contextmanager
    def upload(self, key: str, **more: Any) -> Iterator[Upload]:  # type: ignore[override]
        with super().upload(key, **more) as upload:
            yield _Stalling(upload, self.ended, self._at)


@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_target_that_takes_no_bytes_does_not_delay_the_end(at: str) -> None:
    source, target = filled(MemoryStorage()), Stalled(at)
    asked: list[int] = []

    def go_on() -> None:
        asked.append(len(list(target.pending("p/"))))
        if len(asked) == 3:
            raise Interrupted(SIGTERM)

    backup = catalog.read(source, "p").backups[0]
    with pytest.raises(Interrupted):
        copying.run(plan(source, target, go_on), backup, Runtime(ignore))
    assert not target.ended.is_set()
    assert asked == [1, 1, 1]
    assert list(target.pending("p/")) == []
    assert every(target) == {}
    target.ended.set()


def test_a_backup_that_is_pruned_meanwhile_becomes_no_copy() -> None:
    source, target = filled(MemoryStorage()), MemoryStorage()
    backup = catalog.read(source, "p").backups[0]

    class Pruned(MemoryStorage):
        """A source whose backup is removed, the archive first, once it was read."""

        def __init__(self) -> None:
            self.__dict__.update(source.__dict__)

        @contextmanager
        def read(self, key: str, **more: Any) -> Iterator[Iterator[bytes]]:
            with super().read(key, **more) as chunks:
                yield chunks
            if key == backup.key:
                self.delete([backup.key, *(each.key for each in backup.companions)])

    with pytest.raises(ObjectNotFoundError, match=f"{backup.name} was removed from memory:///p"):
        copying.run(plan(Pruned(), target, lambda: None), backup, Runtime(ignore))
    assert catalog.read(target, "p").backups == []


class Lost(MemoryStorage):
    """A store whose bucket is removed: some requests then find no object."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = False
        self.then_lost: list[Lost] = []
        """The stores that are lost when an object of this one was read."""

    @contextmanager
    def read(self, key: str, **more: Any) -> Iterator[Iterator[bytes]]:
        with super().read(key, **more) as chunks:
            yield chunks
        for each in self.then_lost:
            each.lost = True

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        self._find(key)
        super().put(key, data, metadata)

    def head(self, key: str) -> StoredObject:
        self._find(key)
        return super().head(key)

    def _find(self, key: str) -> None:
        if self.lost:
            raise ObjectNotFoundError(f"cannot find {key}")

    def check(self) -> None:
        if self.lost:
            raise StorageRefusedError("the bucket does not exist")


@pytest.mark.parametrize("lost", ["source", "target"])
def test_a_bucket_that_is_removed_is_not_reported_as_a_pruned_backup(lost: str) -> None:
    source, target = Lost(), Lost()
    filled(source)
    backup = catalog.read(source, "p").backups[0]
    source.then_lost.append(source if lost == "source" else target)
    with pytest.raises(StorageRefusedError, match="the bucket does not exist"):
        copying.run(plan(source, target, lambda: None), backup, Runtime(ignore))


def test_two_copies_at_the_same_time_leave_one() -> None:
    source, target = filled(MemoryStorage()), MemoryStorage()
    backup = catalog.read(source, "p").backups[0]
    raced: list[bool] = []

    def go_on() -> None:
        if not raced:
            raced.append(True)
            copying.run(plan(source, target, lambda: None), backup, Runtime(ignore))

    done = copying.run(plan(source, target, go_on), backup, Runtime(ignore))
    assert raced
    assert done.already
    assert every(target) == every(source)
