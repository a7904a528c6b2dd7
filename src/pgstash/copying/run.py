"""Copies one backup to another store: the same objects, with the same names and metadata.

The order is that of a backup: all bytes of the archive are sent and compared with their digest,
then its companions are stored, and one request makes the archive visible. So a visible backup is
complete in the copy, too.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from pgstash import events
from pgstash.copying import companions, digests
from pgstash.copying.place import Place
from pgstash.errors import (
    CorruptedError,
    ObjectDamagedError,
    ObjectExistsError,
    ObjectNotFoundError,
    UploadError,
)
from pgstash.repository import object_metadata
from pgstash.repository.access import Access
from pgstash.repository.catalog import Backup, Companion
from pgstash.runtime import Runtime
from pgstash.storage.interface import CopiesInside, Original, StoredObject, Upload, archived
from pgstash.workers import Crew, crew

_SECONDS_TO_END = 1.0
_SECONDS_BETWEEN_LOOKS = 0.25


@dataclass(frozen=True, slots=True)
class Plan:
    """Where to copy from and to.

    ``access`` may hold no key: then the digests that need none are compared. ``go_on`` is called
    several times a second, and ends the copying by raising.
    """

    source: Place
    target: Place
    access: Access
    go_on: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Copied:
    """A backup that is complete in the target.

    ``sent_bytes`` were sent, none if everything was there ``already``. ``inside_bytes`` were copied
    by the store itself, and only read. ``verified`` is whether the archive was compared with a
    digest while it was copied; None if it was not copied.
    """

    name: str
    location: str
    sent_bytes: int
    already: bool
    verified: bool | None
    inside_bytes: int = 0


def run(plan: Plan, backup: Backup, runtime: Runtime) -> Copied:
    """Copy a backup; return only when it is complete and visible in the target.

    What the target has already is not sent again, except companions that have changed. Raises
    CorruptedError if the backup is damaged in the source, ObjectExistsError if the target has
    another backup of its name, ObjectDamagedError if the target's own copy is damaged,
    ObjectNotFoundError if it was removed from the source meanwhile, and StorageError, also if the
    bucket of either place was removed.
    """
    try:
        return _Copying(plan, backup, runtime).run()
    except ObjectNotFoundError as error:
        for place in (plan.source, plan.target):
            place.storage.check()  # its bucket may be missing
        raise ObjectNotFoundError(
            f"{backup.name} was removed from {plan.source.url} while it was being copied: "
            f"{error.message}",
            hint="Copy a backup that is kept for longer.",
        ) from error


class _Sent:
    """The number of bytes of the archive that were copied so far, and their digest.

    ``inside`` has the numbers of those that the store of the copy took from the source itself, and
    ``kept`` of those that it had from an upload that was interrupted. ``more`` is the number of
    bytes of its companions.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self.inside: list[int] = []  # several threads append
        self.kept: list[int] = []  # several threads append
        self.more = 0
        self.digest = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        self.digest.update(chunk)


class _Copying:
    """The copying of one backup."""

    def __init__(self, plan: Plan, backup: Backup, runtime: Runtime) -> None:
        self._plan = plan
        self._backup = backup
        self._runtime = runtime
        self._key = f"{plan.target.prefix}/{backup.name}"
        self._url = plan.target.storage.url(self._key)

    def run(self) -> Copied:
        source = self._plan.source.storage
        found = source.head(self._backup.key)
        if found.archived:
            raise archived(source.url(self._backup.key), found.archived)
        companions.refuse_unstorable(self._plan.source, found)
        own = object_metadata.companions_of(self._backup, found.metadata)
        if self._is_there(found):
            sent = sum(companions.copied(self._plan.source, self._plan.target, own))
            return self._copied(sent, already=not sent, verified=None)
        expected = digests.of(source, self._backup, self._plan.access)
        try:
            return self._send(found, own, expected)
        except (ObjectExistsError, UploadError):
            # Another process may have copied it in the meantime, by the same upload even.
            if not self._is_there(found):
                raise
            return self._copied(0, already=True, verified=None)

    def _copied(self, sent: int, *, already: bool, verified: bool | None) -> Copied:
        return Copied(self._backup.name, self._url, sent, already, verified)

    def _is_there(self, found: StoredObject) -> bool:
        """Return whether the target has the archive. Raises ObjectExistsError for another one."""
        try:
            there = self._plan.target.storage.head(self._key)
        except ObjectNotFoundError:
            return False
        ours, theirs = (each.metadata.get("id", "") for each in (found, there))
        if ours != theirs:
            raise ObjectExistsError(
                f"{self._url} is another backup: its id is {theirs or 'unknown'}, and that of "
                f"{self._backup.name} is {ours or 'unknown'}. Nothing was overwritten",
                hint="Give the copies of each source a place of their own.",
            )
        if there.size != found.size:
            raise ObjectDamagedError(
                f"{self._url} has {there.size} bytes instead of {found.size}: this copy is damaged",
                hint="Delete it there, then copy the backup again.",
            )
        return True

    def _send(
        self,
        found: StoredObject,
        own: Iterable[Companion],
        expected: digests.Expected,
    ) -> Copied:
        if expected.size is not None and found.size != expected.size:
            raise self._damaged(f"it has {found.size} bytes instead of {expected.size}")
        sent = _Sent()

        def send(team: Crew[None]) -> None:
            if not self._send_archive(upload, found, sent, team):
                return
            self._refuse_damaged(sent, found, expected)
            upload.flush()
            for size in companions.copied(self._plan.source, self._plan.target, own):
                sent.more += size
                if team.stopping:
                    return

        with self._upload(found, sent) as upload:
            # In a thread: a target that takes nothing must not delay the end.
            sending = crew(
                [send],
                stop=lambda: None,
                seconds_to_end=_SECONDS_TO_END,
                idle=(_SECONDS_BETWEEN_LOOKS, None),
            )
            with contextlib.closing(sending):
                for _ in sending:
                    self._plan.go_on()
                    self._runtime.emit(
                        events.CopyProgressed(self._backup.name, sent.bytes, found.size)
                    )
            self._plan.go_on()
            with self._runtime.interruption.defer_signals():
                upload.commit()
        verified = expected.sha256 is not None
        inside = sum(sent.inside)
        return replace(
            self._copied(
                sent.bytes - inside - sum(sent.kept) + sent.more, already=False, verified=verified
            ),
            inside_bytes=inside,
        )

    def _upload(self, found: StoredObject, sent: _Sent) -> AbstractContextManager[Upload]:
        """Return the upload of the archive, whose bytes the store may copy itself."""
        target = self._plan.target.storage
        if isinstance(target, CopiesInside):
            original = Original(
                self._plan.source.storage, found, sent.inside.append, sent.kept.append
            )
            return target.upload_copy(self._key, original)
        return target.upload(self._key, metadata=found.metadata, expected_size=found.size)

    def _send_archive(
        self, upload: Upload, found: StoredObject, sent: _Sent, team: Crew[None]
    ) -> bool:
        """Send all bytes; return whether they were sent to their end."""
        with self._plan.source.storage.read(found.key) as chunks:
            for chunk in chunks:
                if team.stopping:
                    return False
                upload.write(chunk)
                sent.add(chunk)
        return True

    def _refuse_damaged(self, sent: _Sent, found: StoredObject, expected: digests.Expected) -> None:
        if sent.bytes != found.size:
            raise self._damaged(f"it has {sent.bytes} bytes instead of {found.size}")
        if expected.sha256 not in (None, sent.digest.hexdigest()):
            raise self._damaged("its bytes do not have the SHA-256 that its manifest records")

    def _damaged(self, how: str) -> CorruptedError:
        return CorruptedError(
            f"{self._backup.name} is damaged in {self._plan.source.url}: {how}. It was not copied",
            hint="Take a new backup. If an earlier copy of this one exists, that may be intact.",
        )
