"""A multipart upload by a key that cannot read objects: it finds them in the listing.

A HEAD request needs the permission to read, s3:GetObject.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
"""

from __future__ import annotations

import hashlib

from pgstash.errors import StorageError
from pgstash.storage.s3.multipart import S3Multipart


class UnreadableMultipart(S3Multipart):
    """One upload whose object can be listed, but not read."""

    def is_stored(self) -> bool:
        """Return whether the object under the key is this upload, by its size and ETag.

        The ETag of an object in parts is made of those of the parts. If a store makes it in
        another way, the outcome stays unknown.
        """
        try:
            found = self._listed()
        except StorageError:
            return False
        wanted = sum(size for size, _ in self.parts.values()), self._etag()
        return found == wanted

    def _is_taken(self) -> bool:
        """Return whether there is an object under the key. Raises StorageError."""
        return self._listed() is not None

    def _listed(self) -> tuple[int, str] | None:
        """Return size and ETag of the object under the key; None if there is none."""

        def ask() -> tuple[int, str] | None:
            # Of the keys that begin with it, the key itself is the first.
            page = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self.key, MaxKeys=1)
            for each in page.get("Contents", []):
                if each["Key"] == self.key:
                    return each["Size"], each["ETag"].strip('"')
            return None

        return self._requests.call(f"list {self.url}", ask)

    def _etag(self) -> str:
        try:
            digests = [bytes.fromhex(etag) for _, (_, etag) in sorted(self.parts.items())]
        except ValueError:
            return "unknown"
        digest = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
        return f"{digest}-{len(digests)}"
