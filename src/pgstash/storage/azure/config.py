"""What it takes to reach a container, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field

# https://learn.microsoft.com/rest/api/storageservices/put-block#remarks
MAX_BLOCKS = 50_000
LARGEST_BLOCK = 4000 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class AzureConfig:
    """One container of one storage account.

    ``endpoint`` is the URL of the account's blob service; None is Azure's public cloud. Of the
    credentials, the first one that is set is used; without one, the identity of the machine or
    the pod is. Unless it ``may_read``, no blob is requested, and none is deleted.
    ``retry_attempts`` come after the first try. ``retry_delay`` and the timeouts are in seconds.
    ``part_size`` is in bytes; None chooses it for each upload.
    """

    account: str
    container: str
    endpoint: str | None = None
    connection_string: str | None = field(default=None, repr=False)
    key: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    may_read: bool = True
    retry_attempts: int = 3
    retry_delay: float = 5.0
    part_size: int | None = None
    connections: int = 16
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
