"""A container of Azure Blob Storage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import BlobPrefix

from pgstash import events
from pgstash.errors import ObjectNotFoundError, StorageRefusedError
from pgstash.storage import part_size as parts
from pgstash.storage.azure import endpoint
from pgstash.storage.azure import metadata as names
from pgstash.storage.azure.blocks import PLACEHOLDER, BlockUpload, discard, staged, uploads_of
from pgstash.storage.azure.client import Requests
from pgstash.storage.azure.config import LARGEST_BLOCK, MAX_BLOCKS, AzureConfig
from pgstash.storage.azure.errors import Answer, translate
from pgstash.storage.azure.unreadable import UnreadableBlocks
from pgstash.storage.interface import PendingUpload, StoredObject, end_of_range
from pgstash.storage.multipart_upload import MultipartUpload
from pgstash.storage.ranges import chunks, exactly

if TYPE_CHECKING:
    from azure.storage.blob import BlobProperties

DELETE_BATCH = 256
ARCHIVE = "Archive"  # the tier whose blobs cannot be read at once
BAD_REQUEST = 400


class AzureStorage:
    """One container; the client is made here, and nothing is sent before the first operation."""

    def __init__(self, config: AzureConfig, emit: events.Emit = events.ignore) -> None:
        """Prepare the client. ``emit`` is called from several threads.

        Raises ConfigurationError if the endpoint or the credentials cannot be used.
        """
        self._part_size = config.part_size
        self._may_read = config.may_read
        self._emit = emit
        self.host = (endpoint.of(config.account, config.endpoint, config.connection_string),)
        self._requests = Requests(config, emit)
        self._container = self._requests.container

    def __repr__(self) -> str:
        return f"AzureStorage({self.url()!r})"

    def url(self, key: str = "") -> str:
        """Return ``azure://account/container/key``."""
        return f"{self._requests.where}/{key}"

    def check(self) -> None:
        """Raise StorageError unless the store answers and the container may be listed."""
        self._requests.call(
            f"list the container {self.url()}",
            lambda: next(iter(self._container.list_blobs(results_per_page=1)), None),
        )

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        """Yield every object whose key starts with ``prefix``, in the order of keys.

        https://learn.microsoft.com/rest/api/storageservices/list-blobs
        """
        for found in self._blobs(prefix):
            if found.name > start_after and not _is_placeholder(found):
                yield _stored(found, {})

    def _blobs(self, prefix: str, *include: str) -> Iterator[BlobProperties]:
        position: str | None = None
        while True:
            page, position = self._requests.call(
                f"list {self.url(prefix)}", partial(self._page, prefix, include, position)
            )
            yield from page
            if not position:
                return

    def _page(
        self, prefix: str, include: tuple[str, ...], position: str | None
    ) -> tuple[Sequence[BlobProperties], str | None]:
        """Return one page of a listing, and where the next one begins."""
        pages = self._container.list_blobs(
            name_starts_with=prefix or None, include=[*include]
        ).by_page(position)
        found = [*next(pages, ())]
        return found, getattr(pages, "continuation_token", None)

    def folders(self, within: str = "", *, complete: bool = False) -> Sequence[str]:
        """Return the folders directly within a folder, of the first page or of all pages."""
        folders: set[str] = set()
        position: str | None = None

        def ask() -> str | None:
            found = self._container.walk_blobs(name_starts_with=within or None, delimiter="/")
            pages = found.by_page(position)
            folders.update(each.name for each in next(pages, ()) if isinstance(each, BlobPrefix))
            return getattr(pages, "continuation_token", None)

        doing = f"list the folders of {self.url(within)}"
        while (position := self._requests.call(doing, ask)) and complete:
            pass
        return sorted(folders)

    def head(self, key: str) -> StoredObject:
        """Return one object with its metadata. Raises ObjectNotFoundError."""
        return self._properties(key)[0]

    def _properties(self, key: str) -> tuple[StoredObject, str]:
        """Return an object and its ETag."""
        doing = f"read the metadata of {self.url(key)}"
        found = self._requests.call(doing, self._requests.blob(key).get_blob_properties)
        if _is_placeholder(found):
            raise ObjectNotFoundError(f"cannot {doing}: there is no such object")
        return _stored(found, names.decoded(found.metadata)), str(found.etag)

    def locked_until(self, key: str, version_id: str | None = None) -> datetime | None:
        """Return when the lock of a blob ends; see :class:`pgstash.storage.interface.Locking`.

        A legal hold has no end. The policy of a container shows only when it refuses a deletion.
        https://learn.microsoft.com/azure/storage/blobs/immutable-version-level-worm-policies
        """
        found = self._requests.call(
            f"read the lock of {self.url(key)}",
            partial(self._requests.blob(key).get_blob_properties, version_id=version_id),
        )
        if found.has_legal_hold:
            return datetime.max.replace(tzinfo=UTC)
        until = found.immutability_policy.expiry_time if found.immutability_policy else None
        return until.astimezone(UTC) if isinstance(until, datetime) else None

    @contextmanager
    def read(
        self, key: str, *, start: int = 0, length: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """Open a range of an object; see :meth:`pgstash.storage.interface.Storage.read`.

        Each request asks for the object that the first one found.
        """
        stored, etag = self._properties(key)
        end = end_of_range(self.url(key), stored.size, start, length)
        yield chunks(partial(self._fetch, key, etag), start, end)

    def _fetch(self, key: str, etag: str, start: int, length: int) -> bytes:
        doing = f"read {self.url(key)}"

        def ask() -> bytes:
            try:
                found = self._requests.blob(key).download_blob(
                    start, length, etag=etag, match_condition=MatchConditions.IfNotModified
                )
                return exactly(found.readall(), length, doing)
            except HttpResponseError as exc:
                if Answer.of(exc).is_taken:
                    raise StorageRefusedError(
                        f"cannot {doing}: it was replaced while it was read", hint="Try again."
                    ) from exc
                raise

        return self._requests.call(doing, ask)

    def put(self, key: str, data: bytes, metadata: Mapping[str, str]) -> None:
        """Store a small object with one request, replacing one of the same key."""
        self._requests.call(
            f"store {self.url(key)}",
            lambda: self._requests.blob(key).upload_blob(
                data, overwrite=True, metadata=names.encoded(metadata), validate_content="md5"
            ),
        )

    def upload(
        self,
        key: str,
        *,
        metadata: Mapping[str, str],
        expected_size: int,
        usual_size: int | None = None,
    ) -> MultipartUpload:
        """Begin an upload of blocks, whose sizes :mod:`pgstash.storage.part_size` chooses."""
        sizes = (
            parts.sizes_for(
                expected_size, usual_size, MAX_BLOCKS, may_grow=True, largest=LARGEST_BLOCK
            )
            if self._part_size is None
            else parts.equal(self._part_size, MAX_BLOCKS)
        )
        kind = BlockUpload if self._may_read else UnreadableBlocks
        return MultipartUpload(kind(self._requests, key, metadata), sizes, self._emit)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, up to 256 per request. A missing object is not an error.

        https://learn.microsoft.com/rest/api/storageservices/blob-batch
        """
        remaining = iter(keys)
        while batch := [*islice(remaining, DELETE_BATCH)]:
            self._requests.call(f"remove objects of {self.url()}", partial(self._delete, batch))

    def _delete(self, keys: Sequence[str]) -> None:
        if len(keys) == 1:
            self._delete_one(keys[0])
            return
        answers = self._container.delete_blobs(*keys, raise_on_any_failure=False)
        for key, answer in zip(keys, answers, strict=True):
            failed = HttpResponseError(response=answer)
            if answer.status_code >= BAD_REQUEST and not Answer.of(failed).is_missing:
                raise translate(failed, f"remove {self.url(key)}") from failed

    def _delete_one(self, key: str) -> None:
        try:
            self._requests.blob(key).delete_blob()
        except HttpResponseError as exc:
            if not Answer.of(exc).is_missing:
                raise

    def pending(self, prefix: str) -> Iterator[PendingUpload]:
        """Yield the uploads under ``prefix`` that are neither committed nor aborted.

        Azure lists a name that only has staged blocks as an empty blob. The ids of the blocks
        contain the time at which the upload began. Azure drops the blocks a week after the last.
        """
        for found in self._blobs(prefix, "uncommittedblobs"):
            if _is_placeholder(found):
                modified = found.last_modified.astimezone(UTC)
                yield PendingUpload(found.name, str(found.etag), modified)
            elif not found.size:
                uploads = self._requests.call(
                    f"list the parts of {self.url(found.name)}",
                    partial(self._uploads_of, found.name),
                )
                for upload_id, started in sorted(uploads.items()):
                    yield PendingUpload(found.name, upload_id, started)

    def _uploads_of(self, key: str) -> dict[str, datetime]:
        try:
            return uploads_of(block_id for block_id, _ in staged(self._requests.blob(key)))
        except HttpResponseError as exc:
            if Answer.of(exc).is_missing:
                return {}
            raise

    def abort(self, upload: PendingUpload) -> None:
        """Drop the blocks under the key of a pending upload, and no committed object."""
        self._requests.call(
            f"abort the upload of {self.url(upload.key)}",
            lambda: discard(self._requests.blob(upload.key)),
        )


def _stored(found: BlobProperties, metadata: Mapping[str, str]) -> StoredObject:
    """Return an object. It stays in the archive tier until it is thawed."""
    archived = ARCHIVE if str(found.blob_tier) == ARCHIVE else ""
    modified = found.last_modified.astimezone(UTC)
    return StoredObject(found.name, found.size, modified, metadata, archived)


def _is_placeholder(found: BlobProperties) -> bool:
    return not found.size and found.content_settings.content_type == PLACEHOLDER
