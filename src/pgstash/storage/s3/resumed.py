"""A multipart upload of a copy that goes on with one that a killed process left.

S3 does not report whose an upload is. It is one of the same archive if its first part has the MD5
of the first part that is written: an archive begins with a random salt, or has a random word. Every
part that is there is compared like this before it is used, and another one is sent in its place. If
a store makes ETags in another way, as with a key of KMS, nothing is taken over.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListMultipartUploads.html
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import StorageRefusedError, UploadError
from pgstash.storage.interface import Original
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.multipart import S3Multipart

Parts = Mapping[int, tuple[int, str]]

_SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is uploaded, and the size of all parts but the last.

    ``emit`` is called if an earlier upload is gone on with.
    """

    original: Original
    part_size: int
    emit: events.Emit


class ResumedMultipart(S3Multipart):
    """One upload that begins where an earlier one of the same bytes ended, if there is one.

    An upload that this process did not begin is not aborted: another process may be sending it,
    and the next one can go on with it. The sweep of pruning removes it when it is too old.
    """

    def __init__(self, requests: Requests, key: str, earlier: Earlier) -> None:
        """Prepare; nothing is sent yet."""
        super().__init__(requests, key, earlier.original.found.metadata)
        self._earlier = earlier
        self._there: Parts = {}
        self._decided = threading.Event()
        self._is_own = False
        self._left = False

    def begin(self, abandoned: threading.Event) -> None:
        """Search for an earlier upload, or create one. Raises StorageError."""
        found = self._interrupted(abandoned)
        if found is None:
            self._begin_anew(abandoned)
            self._decided.set()
        else:
            self.id, self._there = found

    def send(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Send a part, unless the earlier upload has it. Raises StorageError."""
        if number == 1 and not self._decided.is_set():
            self._decide(data, abandoned)
        while not self._decided.wait(_SECONDS_BETWEEN_LOOKS):
            if abandoned.is_set():
                raise UploadError(f"cannot store {self.url}: the upload was abandoned")
        if self._has(number, data):
            self.parts[number] = self._there[number]
            self._earlier.original.kept(len(data))
        else:
            self._send_anew(number, data, abandoned)

    def abort(self, abandoned: threading.Event) -> None:
        """Make the store drop the upload, if this process began it. Raises StorageError."""
        if self._is_own:
            super().abort(abandoned)
        self._left = not self._is_own

    def held(self, abandoned: threading.Event) -> Iterator[tuple[int, tuple[int, str]]]:
        """Yield the parts in the store; none of an upload that was left as it is."""
        return iter(()) if self._left else super().held(abandoned)

    def _verify(self, abandoned: threading.Event) -> None:
        try:
            super()._verify(abandoned)
        except UploadError:
            # No one can go on with it.
            self._is_own = True
            raise

    def _begin_anew(self, abandoned: threading.Event) -> None:
        self.id, self._there = "unknown", {}
        super().begin(abandoned)
        self._is_own = True

    def _send_anew(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        super().send(number, data, abandoned)

    def _decide(self, first: memoryview, abandoned: threading.Event) -> None:
        """Go on with the earlier upload if it has the first part, else create one."""
        if self._has(1, first):
            self._earlier.emit(
                events.Informed(
                    f"Going on with an interrupted upload to {self.url}, which has "
                    f"{counted(len(self._there), 'part')}"
                )
            )
        else:
            self._begin_anew(abandoned)
        self._decided.set()

    def _has(self, number: int, data: memoryview) -> bool:
        there = self._there.get(number)
        if there is None or there[0] != len(data):
            return False
        return there[1] == hashlib.md5(data, usedforsecurity=False).hexdigest()

    def _interrupted(self, abandoned: threading.Event) -> tuple[str, Parts] | None:
        """Return id and parts of the unfinished upload to the key that has most of them.

        Objects that are locked until a time are always uploaded anew: the time of an earlier upload
        is an earlier one. A key that may not list uploads goes on with none.
        """
        if self._requests.objects.lock_days is not None:
            return None
        try:
            found = [
                (upload, parts)
                for upload in self._requests.call(
                    f"list the uploads to {self.url}", self._uploads, abandoned=abandoned
                )
                if self._fit(parts := dict(self._parts_of(upload, abandoned)))
            ]
        except StorageRefusedError:
            return None
        return max(found, key=lambda each: len(each[1]), default=None)

    def _uploads(self) -> list[str]:
        """Return the ids of the first page of unfinished uploads to the key, in its class."""
        page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self.key)
        wanted = self._requests.objects.storage_class or "STANDARD"
        return [
            each["UploadId"]
            for each in page.get("Uploads", [])
            if each["Key"] == self.key and each.get("StorageClass", wanted) == wanted
        ]

    def _parts_of(
        self, upload: str, abandoned: threading.Event
    ) -> Iterator[tuple[int, tuple[int, str]]]:
        earlier = S3Multipart(self._requests, self.key, {})
        earlier.id = upload
        return earlier.held(abandoned)

    def _fit(self, parts: Parts) -> bool:
        """Return whether these may be parts of the upload by their numbers and sizes."""
        size, whole = self._earlier.part_size, self._earlier.original.found.size
        return 1 in parts and all(
            there == min(size, whole - (number - 1) * size) for number, (there, _) in parts.items()
        )
