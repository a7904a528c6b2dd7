"""What it takes to reach a bucket, as one value."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from pgstash.format import trial_objects

# All endpoints of one of these domains reach the same buckets.
_OF_AWS = (".amazonaws.com", ".amazonaws.com.cn")
_PORTS = {"http": 80, "https": 443}


def _forget(_secrets: Sequence[str]) -> None:
    """Do nothing with secrets: for a store whose log nobody reads."""


@dataclass(frozen=True, slots=True)
class Objects:
    """How the store keeps what is written; None leaves each to the bucket.

    ``tags`` are pairs of key and value. Objects are locked for ``lock_days``, in ``lock_mode``.
    ``storage_class`` is for archives alone: a listing, a restore and pruning read the small objects
    next to them at once.
    """

    storage_class: str | None = None
    encryption: str | None = None
    kms_key_id: str | None = None
    tags: Sequence[tuple[str, str]] = ()
    lock_days: int | None = None
    lock_mode: str = "governance"

    def small(self) -> dict[str, str]:
        """Return the parameters of botocore for a companion."""
        every = {
            "ServerSideEncryption": self.encryption,
            "SSEKMSKeyId": self.kms_key_id,
            "Tagging": urlencode(self.tags, quote_via=quote) or None,
        }
        return {name: value for name, value in every.items() if value}

    def archive(self) -> dict[str, str]:
        """Return the parameters of botocore for an archive."""
        return self.small() | ({"StorageClass": self.storage_class} if self.storage_class else {})

    def lock(self, key: str, now: datetime) -> dict[str, Any]:
        """Return the parameters of botocore that lock a new object, unless it is a trial of check.

        The lock ends at a midnight (UTC), so that the objects of one backup, which are stored one
        by one, are locked until the same time.
        """
        if self.lock_days is None or trial_objects.NAME.fullmatch(key.rpartition("/")[2]):
            return {}
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        return {
            "ObjectLockMode": self.lock_mode.upper(),
            "ObjectLockRetainUntilDate": midnight + timedelta(days=self.lock_days + 1),
        }


@dataclass(frozen=True, slots=True)
class Connection:
    """How the store is reached.

    ``addressing`` is where the bucket is named: in the ``path``, as a ``virtual`` host, or as the
    endpoint requires (``auto``). ``ca_file`` has the certificates to trust. With ``proxy``, the
    variables of the environment that name one are used.
    """

    addressing: Literal["auto", "path", "virtual"] = "auto"
    ca_file: str | None = None
    proxy: bool = True


@dataclass(frozen=True, slots=True)
class Signer:
    """As whom requests are signed; ``purpose`` names what they are for, in messages.

    The rest is as in :class:`S3Config`.
    """

    purpose: str
    region: str
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    role_arn: str | None = None
    learn: Callable[[Sequence[str]], None] = field(default=_forget, repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class S3Config:
    """One bucket, reached with one identity.

    Without an access key, botocore finds the credentials. ``role_arn`` is a role to assume with
    them. ``learn`` is called with the secrets of each set of credentials, before they are used.
    Only keys that begin with ``prefix`` are listed. Unless ``may_read``, no object is requested.
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
    prefix: str = ""
    may_read: bool = True
    learn: Callable[[Sequence[str]], None] = field(default=_forget, repr=False)
    objects: Objects = Objects()
    connection: Connection = Connection()
    retry_attempts: int = 3
    retry_delay: float = 5.0
    max_parts: int = 10_000
    part_size: int | None = None
    connections: int = 16
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    @property
    def provider(self) -> str:
        """Which store it is: one store can copy from one of its buckets to another."""
        parts = urlsplit(self.endpoint or "https://s3.amazonaws.com")
        host = parts.hostname or ""
        of_aws = next((domain for domain in _OF_AWS if host.endswith(domain)), "")
        return of_aws or f"{host}:{parts.port or _PORTS.get(parts.scheme)}"

    @property
    def host(self) -> tuple[str, ...]:
        """What distinguishes the bucket from others of its name.

        Tenants of one server may have buckets of the same name, as with Swift and Ceph.
        """
        return self.provider, self.access_key_id or "", self.role_arn or ""

    @property
    def signer(self) -> Signer:
        """As whom requests to the bucket are signed."""
        return Signer(
            purpose=f"s3://{self.bucket}",
            region=self.region,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            role_arn=self.role_arn,
            learn=self.learn,
            connect_timeout=self.connect_timeout,
            read_timeout=self.read_timeout,
        )
