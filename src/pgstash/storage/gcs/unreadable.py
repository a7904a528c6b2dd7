"""A resumable upload by an identity that cannot read objects: it finds them in the listing.

A listing has what the resource of an object has, and needs storage.objects.list alone.
https://cloud.google.com/storage/docs/json_api/v1/objects/list
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgstash.errors import ObjectNotFoundError
from pgstash.storage.gcs.client import Request
from pgstash.storage.gcs.resumable import ResumableUpload


class UnreadableUpload(ResumableUpload):
    """One upload whose object can be listed, but not read."""

    def _found(self) -> Mapping[str, Any]:
        # Of the names that begin with it, the name itself is the first.
        query = {"prefix": self.key, "maxResults": "1"}
        request = Request("GET", self._requests.objects, query, of_object=False)

        def ask() -> Mapping[str, Any]:
            page = dict(self._requests.send(request).json())
            for item in page.get("items", []):
                if item["name"] == self.key:
                    return dict(item)
            raise ObjectNotFoundError(f"cannot list {self.url}: there is no such object")

        return self._requests.call(f"list {self.url}", ask)
