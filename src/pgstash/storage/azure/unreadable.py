"""An upload of blocks by an identity that can neither read nor delete blobs.

It finds its blob in the listing, which has the metadata too.
https://learn.microsoft.com/rest/api/storageservices/list-blobs
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from pgstash.errors import ObjectNotFoundError, StorageRefusedError
from pgstash.storage.azure import metadata as names
from pgstash.storage.azure.blocks import BlockUpload


class UnreadableBlocks(BlockUpload):
    """One upload whose blob can be listed, but not read."""

    _ended = False

    def _found(self) -> tuple[int, dict[str, str]]:
        def ask() -> tuple[int, dict[str, str]]:
            # Of the names that begin with it, the name itself is the first.
            listed = self._requests.container.list_blobs(
                name_starts_with=self.key, include=["metadata"], results_per_page=1
            )
            found = next(iter(listed), None)
            if found is None or found.name != self.key:
                raise ObjectNotFoundError(f"cannot list {self.url}: there is no such object")
            return found.size, names.decoded(found.metadata)

        return self._requests.call(f"list {self.url}", ask)

    def _verify(self, abandoned: threading.Event) -> None:
        """Compare the blocks, if the identity may list them.

        A SAS token may; a role needs the permission to read. Otherwise the commit has to do: it
        names each block, of which Azure compared the MD5, and fails if one is missing.
        """
        with contextlib.suppress(StorageRefusedError):
            super()._verify(abandoned)

    def abort(self, abandoned: threading.Event) -> None:
        """Leave the blocks, because to drop them takes the permission to delete.

        Pruning drops them on another host, or Azure does, after a week.
        """
        del abandoned
        self._ended = True

    def held(self, abandoned: threading.Event) -> Iterator[tuple[int, int]]:
        """Yield number and size of each part in the store, none after :meth:`abort`."""
        return iter(()) if self._ended else super().held(abandoned)
