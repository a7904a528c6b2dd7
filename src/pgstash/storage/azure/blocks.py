"""The blocks of one upload, and the meaning of the responses.

Blocks are staged under the name of the blob and stay invisible until one request commits a list of
them. https://learn.microsoft.com/rest/api/storageservices/put-block-list
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobBlock, ContentSettings

from pgstash.errors import ObjectExistsError, ObjectNotFoundError, StorageError
from pgstash.storage.azure import metadata as names
from pgstash.storage.azure.client import Requests
from pgstash.storage.azure.errors import Answer
from pgstash.storage.multipart import differing_parts, unknown_outcome
from pgstash.storage.part_reader import PartReader
from pgstash.storage.retry import Retry

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient

ABORT_RETRY = Retry(attempts=5, delay=0.5)

# The type of an empty blob that takes the place of staged blocks, and is deleted at once. No
# listing shows it, so that nobody takes it for a backup if its deletion fails.
PLACEHOLDER = "application/vnd.pgstash.discarded-blocks"

# The number of the block that marks the upload, and is no part of it.
_MARKER = 0

# An id has the same length for every block of a blob: marker, start, randomness, number.
_OURS = "pgstash"
_LONGEST_NUMBER = 6
_BLOCK = re.compile(rf"({_OURS}-[0-9a-f]{{8}}-[0-9a-f]{{16}})-([0-9]{{{_LONGEST_NUMBER}}})")


class BlockUpload:
    """One upload in the store; ``parts`` holds the size of each block sent."""

    def __init__(self, requests: Requests, key: str, metadata: Mapping[str, str]) -> None:
        """Prepare; nothing is sent yet."""
        self._requests = requests
        self._blob = requests.blob(key)
        self._metadata = names.encoded(metadata)
        self.key = key
        self.url = f"{requests.where}/{key}"
        self.id = f"{_OURS}-{int(time.time()):08x}-{secrets.token_hex(8)}"
        self.parts: dict[int, int] = {}
        self.unclear = False

    def begin(self, abandoned: threading.Event) -> None:
        """Stage a block that is never committed.

        It makes the upload one that others see. If it is gone at the end, someone aborted the
        upload.
        """
        mark = memoryview(b"\0")
        self._stage(_MARKER, mark, f"begin the upload of {self.url}", abandoned)

    def send(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Stage a block. Azure has no empty ones: an empty object has no blocks."""
        if data:
            self._stage(number, data, f"send part {number} of {self.url}", abandoned)

    def _stage(self, number: int, data: memoryview, doing: str, abandoned: threading.Event) -> None:
        """Stage a block, of which the store checks the MD5.

        https://learn.microsoft.com/rest/api/storageservices/put-block
        """
        self._requests.call(
            doing,
            lambda: self._blob.stage_block(
                self._block_id(number), PartReader(data).body(), len(data), validate_content="md5"
            ),
            abandoned=abandoned,
        )
        self.parts[number] = len(data)

    @property
    def _content(self) -> dict[int, int]:
        """The parts without the marker."""
        return {number: size for number, size in self.parts.items() if number != _MARKER}

    def _block_id(self, number: int) -> str:
        return f"{self.id}-{number:0{_LONGEST_NUMBER}}"

    def held(self, abandoned: threading.Event) -> Iterator[tuple[int, int]]:
        """Yield number and size of each part in the store. Raises ObjectNotFoundError."""
        found = self._requests.call(
            f"list the parts of {self.url}",
            lambda: staged(self._blob),
            abandoned=abandoned,
        )
        for block_id, size in found:
            upload, number = _split(block_id)
            if upload == self.id:
                yield number, size

    def complete(self, abandoned: threading.Event) -> None:
        """Compare the blocks in the store with those sent, and make the object visible.

        Raises UploadError, ObjectExistsError, StorageError.
        """
        if self._is_taken():
            raise ObjectExistsError(f"{self.url} already exists")
        self._verify(abandoned)
        try:
            self._requests.call(f"complete the upload of {self.url}", self._commit)
        except StorageError as exc:
            # Either it failed, or only its response was lost. Then a retry finds the name taken.
            if self.is_stored():
                return
            if self.unclear:
                raise unknown_outcome(self.url, exc) from exc
            raise

    def _verify(self, abandoned: threading.Event) -> None:
        """Raise UploadError unless the store holds exactly the blocks that were sent."""
        try:
            held = dict(self.held(abandoned))
        except ObjectNotFoundError:
            held = {}
        if held != self.parts:
            raise differing_parts(self.url, held, self.parts)

    def _commit(self) -> None:
        unclear_before = self.unclear
        self.unclear = True
        try:
            self._blob.commit_block_list(
                [BlobBlock(self._block_id(number)) for number in sorted(self._content)],
                metadata=self._metadata,
                match_condition=MatchConditions.IfMissing,
            )
        except HttpResponseError as exc:
            self.unclear = unclear_before or Answer.of(exc).may_go_on
            raise

    def is_stored(self) -> bool:
        """Return whether the object under the key is this upload, by its size and metadata."""
        try:
            size, metadata = self._found()
        except StorageError:
            return False
        wanted = sum(self._content.values()), names.decoded(self._metadata)
        return bool(metadata) and (size, metadata) == wanted

    def _found(self) -> tuple[int, dict[str, str]]:
        def ask() -> tuple[int, dict[str, str]]:
            found = self._blob.get_blob_properties()
            return found.size, names.decoded(found.metadata)

        return self._requests.call(f"read the metadata of {self.url}", ask)

    def _is_taken(self) -> bool:
        try:
            self._found()
        except ObjectNotFoundError:
            return False
        return True

    def abort(self, abandoned: threading.Event) -> None:
        """Make the store drop the blocks. Raises StorageError."""
        self._requests.call(
            f"abort the upload of {self.url}",
            lambda: discard(self._blob),
            retry=ABORT_RETRY,
            abandoned=abandoned,
        )

    def is_gone(self, error: StorageError) -> bool:
        """Return whether ``error`` means that the store has no blocks of this name."""
        return isinstance(error, ObjectNotFoundError)

    def too_large(self, size: int) -> str:
        """Return what to do: the size of the last backup chooses larger parts for the next."""
        return (
            f"Run the backup again: parts larger than {size} MiB are chosen for a large database."
        )


def staged(blob: BlobClient) -> list[tuple[str, int]]:
    """Return id and size of each block that is not committed. Raises errors of the SDK."""
    _, blocks = blob.get_block_list("uncommitted")
    return [(block.id, block.size) for block in blocks]


def uploads_of(block_ids: Iterable[str]) -> dict[str, datetime]:
    """Return the uploads that blocks belong to, and when each began."""
    found = {_split(block_id)[0] for block_id in block_ids}
    return {
        upload: datetime.fromtimestamp(int(upload.split("-")[1], 16), UTC)
        for upload in found
        if upload
    }


def _split(block_id: str) -> tuple[str, int]:
    """Return the upload and the number of a block; "" if pgstash did not stage it."""
    found = _BLOCK.fullmatch(block_id)
    return (found[1], int(found[2])) if found else ("", 0)


def discard(blob: BlobClient) -> None:
    """Drop the blocks that are staged under a name, and nothing else. Raises errors of the SDK.

    Azure has no request for this, but a commit drops the blocks that its list lacks. So an empty
    list is committed unless there is a blob, and that empty blob is deleted unless it has changed
    since. A committed blob is never deleted.
    https://learn.microsoft.com/rest/api/storageservices/put-block-list#remarks
    """
    try:
        stored = blob.commit_block_list(
            [],
            content_settings=ContentSettings(content_type=PLACEHOLDER),
            match_condition=MatchConditions.IfMissing,
        )
        etag = str(stored["etag"])
    except HttpResponseError as exc:
        if not Answer.of(exc).is_taken:
            raise
        found = _or_none(blob)
        if found is None or found[0] != PLACEHOLDER:
            return
        etag = found[1]
    try:
        blob.delete_blob(etag=etag, match_condition=MatchConditions.IfNotModified)
    except HttpResponseError as exc:
        if not Answer.of(exc).is_missing:
            raise


def _or_none(blob: BlobClient) -> tuple[str | None, str] | None:
    """Return type and ETag of a blob; None if there is none."""
    try:
        found = blob.get_blob_properties()
    except HttpResponseError as exc:
        if Answer.of(exc).is_missing:
            return None
        raise
    return found.content_settings.content_type, str(found.etag)
