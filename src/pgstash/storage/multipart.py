"""What an upload in parts requires of a store.

``s3``, ``azure`` and ``gcs`` implement it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Protocol

from pgstash.errors import StorageError, UploadError


class Multipart(Protocol):
    """One upload in the store.

    Several threads may send parts. Setting an event that was passed as ``abandoned`` ends a wait
    for the next attempt. Each method but ``is_stored`` raises StorageError.
    """

    @property
    def key(self) -> str:
        """The key of the object."""

    @property
    def url(self) -> str:
        """The place of the object, for messages."""

    @property
    def id(self) -> str:
        """The store's name of the upload."""

    @property
    def unclear(self) -> bool:
        """Whether a commit was sent and its outcome is unknown."""

    def begin(self, abandoned: threading.Event) -> None:
        """Create the upload, which sets its ``id``."""

    def send(self, number: int, data: memoryview, abandoned: threading.Event) -> None:
        """Send a part, counted from 1; it may be empty if it is the only one."""

    def held(self, abandoned: threading.Event) -> Iterator[object]:
        """Yield the parts that the store holds."""

    def complete(self, abandoned: threading.Event) -> None:
        """Compare the parts in the store with those sent, and make the object visible."""

    def is_stored(self) -> bool:
        """Return whether the object under the key is this upload."""

    def abort(self, abandoned: threading.Event) -> None:
        """Make the store drop the upload and its parts."""

    def is_gone(self, error: StorageError) -> bool:
        """Return whether ``error`` means that the store does not know the upload, or no longer."""

    def too_large(self, size: int) -> str:
        """Return what to do if the upload does not fit into parts of ``size`` MiB."""


def differing_parts(
    url: str, held: Mapping[int, object], sent: Mapping[int, object]
) -> UploadError:
    """Return the error for an upload of which the store holds other parts than were sent."""
    wrong = sorted(
        number for number in held.keys() | sent.keys() if held.get(number) != sent.get(number)
    )
    return UploadError(
        f"cannot commit {url}: the store does not hold what was sent "
        f"(differing parts: {', '.join(map(str, wrong[:10]))})",
        hint="Run the backup again. If this persists, something between pgstash and the "
        "store changes the data in transit.",
    )


def unknown_outcome(url: str, exc: StorageError) -> UploadError:
    """Return the error for a commit whose outcome the store did not report."""
    return UploadError(
        f"cannot determine whether {url} was stored: {exc.message}",
        hint="Check the store: if it is there it is complete. Otherwise run the backup again.",
    )
