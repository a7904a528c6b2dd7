"""What it takes to reach a bucket, as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


def _forget(_secrets: Sequence[str]) -> None:
    """Do nothing with secrets: for a store whose log nobody reads."""


@dataclass(frozen=True, slots=True)
class S3Config:
    """One bucket, reached with one identity.

    Without an access key, botocore finds the credentials. ``role_arn`` is a role to assume with
    them. ``learn`` is called with the secrets of each set of credentials, before they are used.
    ``endpoint`` is a URL; None is AWS. ``retry_attempts`` come after the first try.
    ``retry_delay`` and the timeouts are in seconds. ``part_size`` is in bytes; None chooses it for
    each upload. ``connections`` are kept open for the next request. If more requests run at once,
    each of the others opens a connection of its own.
    """

    endpoint: str | None
    bucket: str
    region: str
    access_key_id: str | None = field(repr=False)
    secret_access_key: str | None = field(repr=False)
    role_arn: str | None = None
    learn: Callable[[Sequence[str]], None] = field(default=_forget, repr=False)
    retry_attempts: int = 3
    retry_delay: float = 5.0
    max_parts: int = 10_000
    part_size: int | None = None
    connections: int = 16
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
