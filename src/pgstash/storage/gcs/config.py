"""What it takes to reach a bucket of Google Cloud Storage, as one value."""

from __future__ import annotations

from dataclasses import dataclass

ENDPOINT = "https://storage.googleapis.com"

# Bytes of one request of an upload, a multiple of 256 KiB. They are sent one after the other, so
# larger ones wait less often.
PART_SIZE = 16 * 1024 * 1024

# https://cloud.google.com/storage/quotas#objects
LARGEST_OBJECT = 5 * 1024**4
MAX_PARTS = LARGEST_OBJECT // PART_SIZE


@dataclass(frozen=True, slots=True)
class GcsConfig:
    """One bucket, reached with the application default credentials.

    An ``anonymous`` client has none, for an emulator. Unless it ``may_read``, no object is
    requested. ``retry_attempts`` come after the first try.
    ``retry_delay`` and the timeouts are in seconds, ``part_size`` is in bytes.
    """

    bucket: str
    endpoint: str = ENDPOINT
    anonymous: bool = False
    may_read: bool = True
    retry_attempts: int = 3
    retry_delay: float = 5.0
    part_size: int = PART_SIZE
    connections: int = 16
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
