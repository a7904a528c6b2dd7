"""A multipart upload whose parts the store copies itself, from an object in one of its buckets.

Whoever writes has read the bytes of that object. The store reports the MD5 of each part that it
copied, as its ETag. A part whose MD5 is not that of the bytes that were read is sent instead.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_UploadPartCopy.html
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import Any

from pgstash import events
from pgstash.errors import ObjectExistsError, StorageError, StorageRefusedError
from pgstash.storage.s3.client import Requests
from pgstash.storage.s3.errors import is_unknown_request
from pgstash.storage.s3.resumed import Earlier, ResumedMultipart


@dataclass(frozen=True, slots=True)
class Source:
    """The object to copy in which parts, and the client of its bucket."""

    requests: Requests
    earlier: Earlier


class Inside:
    """Whether a store copies parts itself. Once it did not, it is not asked again."""

    def __init__(self, emit: events.Emit) -> None:
        """Assume that it does."""
        self.works = True
        self.proven = False
        """Whether a trial has shown that it does."""
        self.conditional = True
        """Whether the store knows the condition that the original has not been replaced."""
        self.emit = emit
        self.trying = threading.Lock()
        self._lock = threading.Lock()

    def give_up(self, reason: str) -> None:
        """Ask no more; report the reason once."""
        with self._lock:
            had_worked, self.works = self.works, False
        if had_worked:
            self.emit(events.Informed(f"Sending the bytes through this host: {reason}"))


class CopiedMultipart(ResumedMultipart):
    """One upload that has the bytes and the metadata of another object of the same store."""

    def __init__(self, requests: Requests, key: str, source: Source, inside: Inside) -> None:
        """Prepare; nothing is sent yet."""
        super().__init__(requests, key, source.earlier)
        self._source = source
        self._inside = inside
        self._etag = ""

    def begin(self, abandoned: threading.Event) -> None:
        """Create the upload. Raises ObjectNotFoundError if there is no original, StorageError."""
        self._etag = self._etag or self._etag_of_original(abandoned)
        super().begin(abandoned)

    def _etag_of_original(self, abandoned: threading.Event) -> str:
        requests, key = self._source.requests, self._source.earlier.original.found.key
        return requests.call(
            f"read the metadata of s3://{requests.bucket}/{key}",
            lambda: requests.client.head_object(Bucket=requests.bucket, Key=key)["ETag"],
            abandoned=abandoned,
        )

    def _send_anew(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Let the store copy a part, or send it. Raises StorageError.

        An archive of one part is sent: AWS copies no ranges of objects of less than 5 MB, and of a
        part that is a whole object Swift lists no ETag.
        """
        is_whole = len(data) == self._source.earlier.original.found.size
        if not is_whole and self._is_possible(number, data, abandoned):
            self._inside_or_sent(number, data, abandoned)
        else:
            super()._send_anew(number, data, abandoned)

    def _inside_or_sent(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        part = self._copied(number, data, abandoned)
        if part is None:
            super()._send_anew(number, data, abandoned)
            return
        self.parts[number] = part
        self._source.earlier.original.copied_inside(len(data))

    def _is_possible(self, number: int, data: memoryview, abandoned: threading.Event) -> bool:
        """Return whether the store copies parts itself, after a trial if it is not known yet.

        The trial is an upload of its own, since a part that was copied may not be replaceable:
        SeaweedFS lists the copied one even if it was sent afterwards.
        """
        with self._inside.trying:
            if self._inside.works and not self._inside.proven:
                trial = CopiedMultipart(self._requests, self.key, self._source, self._inside)
                self._inside.proven = trial.succeeds(number, data, abandoned)
        return self._inside.works

    def succeeds(self, number: int, data: memoryview, abandoned: threading.Event) -> bool:
        """Return whether a part is copied, and listed as it was reported; leave nothing.

        Raises StorageError if it was abandoned.
        """
        try:
            self._etag = self._etag_of_original(abandoned)
            self._begin_anew(abandoned)
        except StorageError as error:
            if abandoned.is_set():
                raise
            self._inside.give_up(error.message)
            return False
        try:
            part = self._copied(number, data, abandoned)
            if part is None:
                return False
            listed = dict(self.held(abandoned)).get(number)
        except StorageError as error:
            if abandoned.is_set():
                raise
            self._inside.give_up(error.message)
            return False
        finally:
            self._end_trial(abandoned)
        if listed != part:
            self._inside.give_up(
                f"cannot {self._doing(number)}: it does not list the part as it reported it"
            )
        return listed == part

    def _end_trial(self, abandoned: threading.Event) -> None:
        try:
            self.abort(abandoned)
        except StorageError as error:
            self._inside.emit(events.UploadLeftBehind(self.key, self.id, error.message))

    def _doing(self, number: int) -> str:
        return f"copy part {number} of {self.url} inside the store"

    def _copied(
        self, number: int, data: memoryview, abandoned: threading.Event
    ) -> tuple[int, str] | None:
        """Return size and ETag of a part that the store has copied; None if it did not.

        Raises StorageError if it was abandoned.
        """
        try:
            etag = self._copy(number, len(data), abandoned)
        except StorageError as error:
            if abandoned.is_set():
                raise
            replaced = isinstance(error, ObjectExistsError)
            self._inside.give_up(
                f"cannot {self._doing(number)}: the original was replaced"
                if replaced
                else error.message
            )
            return None
        if etag != hashlib.md5(data, usedforsecurity=False).hexdigest():
            self._inside.give_up(
                f"cannot {self._doing(number)}: it does not report the MD5 of the original"
            )
            return None
        return len(data), etag

    def _copy(self, number: int, size: int, abandoned: threading.Event) -> str:
        """Let the store copy a part; return its ETag. Raises StorageError.

        Some stores do not support the condition: https://developers.cloudflare.com/r2/api/s3/api/
        """
        start = (number - 1) * self._source.earlier.part_size
        original: Any = {
            "Bucket": self._source.requests.bucket,
            "Key": self._source.earlier.original.found.key,
        }

        def copy(**condition: Any) -> str:  # noqa: ANN401 - parameters of botocore
            answer = self._client.upload_part_copy(
                Bucket=self._bucket,
                Key=self.key,
                UploadId=self.id,
                PartNumber=number,
                CopySource=original,
                CopySourceRange=f"bytes={start}-{start + size - 1}",
                **condition,
            )
            return answer["CopyPartResult"].get("ETag", "").strip('"')

        def ask(**condition: str) -> str:
            return self._requests.call(
                self._doing(number), lambda: copy(**condition), abandoned=abandoned
            )

        if self._inside.conditional:
            try:
                return ask(CopySourceIfMatch=self._etag)
            except StorageRefusedError as error:
                if not is_unknown_request(error):
                    raise
                self._inside.conditional = False
        return ask()
