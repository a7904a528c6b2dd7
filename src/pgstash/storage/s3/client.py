"""The boundary to botocore: one client, whose requests are retried and errors translated."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pgstash import events
from pgstash.errors import ConfigurationError, StorageRefusedError
from pgstash.storage.retry import Retry
from pgstash.storage.s3.codes import ARCHIVED
from pgstash.storage.s3.config import S3Config
from pgstash.storage.s3.errors import (
    answered,
    is_expired,
    is_unknown_request,
    translate,
    unreadable,
    wants_md5,
)
from pgstash.storage.s3.identity import Identity, isolated_session
from pgstash.storage.s3.identity_errors import hint

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import HeadObjectOutputTypeDef

T = TypeVar("T")

# How often one request is signed again with new credentials, after the store refused the last ones.
RENEWALS = 2

# Stores that answer only at bucket.host. All others are requested at host/bucket.
VIRTUAL_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".aliyuncs.com", ".myqcloud.com")


class Requests:
    """A client of one bucket, whose requests raise only errors of pgstash."""

    def __init__(self, config: S3Config, emit: events.Emit) -> None:
        """Create the client. Raises ConfigurationError if the endpoint is not a URL."""
        self.bucket = config.bucket
        self.objects = config.objects
        self.identity = Identity(config.signer)
        self._retry = Retry(config.retry_attempts, config.retry_delay, emit)
        try:
            session = isolated_session()
            session.register_component("credential_provider", self.identity)
            client = session.create_client(
                "s3",
                endpoint_url=config.endpoint,
                region_name=config.region,
                verify=config.connection.ca_file,
                config=_client_config(config),
            )
        except (ValueError, BotoCoreError) as exc:
            raise ConfigurationError([f"S3_ENDPOINT or S3_REGION cannot be used: {exc}."]) from exc
        self.client = cast("S3Client", client)  # created at run time, by name
        hooks = self.client.meta.events
        self._md5 = _ContentMD5()
        for operation in ("PutObject", "UploadPart"):
            hooks.register(f"before-sign.s3.{operation}", _send_at_once)
            hooks.register(f"before-sign.s3.{operation}", self._md5.add)
        hooks.register("before-call.s3.DeleteObjects", _use_content_md5)

    def call(
        self,
        doing: str,
        request: Callable[[], T],
        *,
        retry: Retry | None = None,
        abandoned: threading.Event | None = None,
    ) -> T:
        """Return the result of ``request``; ``doing`` completes the sentence "cannot …".

        ``request`` sends, and extracts what it needs from the response. A response that lacks it,
        or that botocore cannot parse, is an error of the store. Setting ``abandoned`` ends a wait
        for the next attempt. Raises StorageError, or ConfigurationError at the first request.
        """

        def once() -> T:
            renewals = 0
            # A loop: a function that refers to itself would keep the client alive until the next
            # garbage collection.
            while True:
                had_md5 = self._md5.wanted  # another thread may get the same response
                known = self.identity.changes or 1  # the request fetches the first credentials
                try:
                    return request()
                except ClientError as exc:
                    if renewals < RENEWALS and is_expired(exc) and self.identity.renew(known):
                        renewals += 1
                        continue
                    if had_md5 or not wants_md5(exc):
                        raise translate(exc, doing) from exc
                    self._md5.wanted = True
                except (BotoCoreError, ResponseParserError) as exc:
                    raise translate(exc, doing) from exc
                except (KeyError, ValueError) as exc:
                    raise unreadable(doing) from exc

        try:
            return (retry or self._retry)(doing, once, abandoned)
        except StorageRefusedError as error:
            self._set_hint(error)
            raise

    def lock(self, key: str) -> dict[str, Any]:
        """Return the parameters of botocore that lock a new object."""
        found = self.objects.lock(key, datetime.now(UTC))
        self._md5.wanted = self._md5.wanted or bool(found)
        return found

    def _set_hint(self, error: StorageRefusedError) -> None:
        """Set the hint that these settings call for, instead of that for an access key."""
        if self.objects.small() and is_unknown_request(error):
            error.hint = "Unset S3_SSE and S3_TAGS if the store does not support them."
        elif not self.identity.is_static and (answer := answered(error)):
            error.hint = hint(error, answer.code, self.identity.known)


class _ContentMD5:
    """Adds Content-MD5, which buckets with object lock require, once it is ``wanted``.

    Computing it takes time, so it is not sent otherwise. It is an object of its own because a hook
    that refers to the owner of the client would keep the client open.
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html
    """

    def __init__(self) -> None:
        self.wanted = False

    def add(self, request: Any, **_: Any) -> None:  # noqa: ANN401 - a hook of botocore
        if self.wanted:
            data = content = request.data
            if hasattr(data, "read"):
                start = data.tell()
                content = data.read()
                data.seek(start)
            digest = hashlib.md5(content or b"", usedforsecurity=False).digest()
            request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _client_config(config: S3Config) -> Config:
    host = urlsplit(config.endpoint or "https://s3.amazonaws.com").hostname or ""
    style = config.connection.addressing
    if style == "auto":
        style = "virtual" if host.endswith(VIRTUAL_HOSTS) else "path"
    return Config(
        signature_version="s3v4",
        # The payload is signed, so the store checks the SHA-256 of every part. No other checksum
        # is needed unless the store requires one, and botocore's trailers break some stores.
        s3={
            "payload_signing_enabled": True,
            "addressing_style": style,
        },
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=config.connect_timeout,
        read_timeout=config.read_timeout,
        max_pool_connections=config.connections,
        proxies=None if config.connection.proxy else {},
        retries={"total_max_attempts": 1, "mode": "standard"},
    )


def _send_at_once(request: Any, **_: Any) -> None:  # noqa: ANN401 - a hook of botocore
    """Drop ``Expect: 100-continue``: it costs one round trip per part; some stores ignore it."""
    del request.headers["Expect"]


def _use_content_md5(params: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - as above
    """Protect batch deletions by Content-MD5, which all stores know, instead of CRC32.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    """
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
    params["headers"].pop("x-amz-sdk-checksum-algorithm", None)
    params["context"].pop("checksum", None)


def archived_class(found: HeadObjectOutputTypeDef) -> str:
    """Return the storage class of an object that has to be thawed first; empty for others.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
    """
    given: Mapping[str, Any] = found  # a store may leave anything out
    if 'ongoing-request="false"' in given.get("Restore", ""):
        return ""
    kept: str = given.get("StorageClass", "")
    return kept if kept in ARCHIVED or given.get("ArchiveStatus") else ""


def lowered(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return ``metadata`` with lower-case keys: some stores return Title-Case."""
    return {name.lower(): value for name, value in metadata.items()}
