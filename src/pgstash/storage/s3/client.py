"""The border to botocore: one client, each request tried again and its errors translated."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pgstash.errors import ConfigurationError
from pgstash.storage.retry import Retry
from pgstash.storage.s3_errors import translate, unreadable, wants_md5

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

# Stores that answer only under bucket.host; all others are asked for host/bucket.
VIRTUAL_HOSTS = (".amazonaws.com", ".amazonaws.com.cn", ".aliyuncs.com", ".myqcloud.com")


class Requests:
    """A client of one bucket whose requests fail with errors of pgstash alone."""

    def __init__(  # noqa: PLR0913 - one argument for each setting
        self,
        *,
        endpoint: str | None,
        bucket: str,
        region: str,
        access_key_id: str,
        secret_access_key: str,
        retry: Retry,
        connections: int,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        """Make the client; raise ConfigurationError if ``endpoint`` is no URL."""
        self.bucket = bucket
        self._retry = retry
        try:
            client = _session().create_client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=access_key_id,
                aws_secret_access_key=secret_access_key,
                config=_config(endpoint, connections, connect_timeout, read_timeout),
            )
        except (ValueError, BotoCoreError) as exc:
            raise ConfigurationError([f"S3_ENDPOINT or S3_REGION cannot be used: {exc}."]) from exc
        self.client = cast("S3Client", client)  # made at run time, by name
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
        """Return what ``request`` returns; ``doing`` completes the sentence "cannot …".

        A request sends, and takes out of the answer what is needed: an answer that lacks it, or
        that botocore cannot parse, is an error of the store. Setting ``abandoned`` ends a wait for
        the next attempt.
        """

        def once() -> T:
            # A loop: a function that knew itself would keep the client until the next collection.
            while True:
                had_md5 = self._md5.wanted  # another thread may be told the same
                try:
                    return request()
                except ClientError as exc:
                    if had_md5 or not wants_md5(exc):
                        raise translate(exc, doing) from exc
                    self._md5.wanted = True
                except (BotoCoreError, ResponseParserError) as exc:
                    raise translate(exc, doing) from exc
                except (KeyError, ValueError) as exc:
                    raise unreadable(doing) from exc

        return (retry or self._retry)(doing, once, abandoned)


class _ContentMD5:
    """Adds the checksum that a bucket with object lock asks for; it takes time to make.

    An object of its own: a client that knew who holds it would not be closed with that.
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


class PartReader:
    """Bytes in memory as a file to read, without copying them.

    Given as a plain buffer, a part would be sent by one ``sendall``, whose time limit is
    that of the connection for the whole part; read in pieces, it is for each piece.
    """

    def __init__(self, data: memoryview) -> None:
        """Begin at the start of ``data``."""
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def body(self) -> IO[bytes] | bytes:
        """Return what botocore takes as a body; an empty file would be sent as chunks."""
        return cast("IO[bytes]", self) if self._data else b""

    def read(self, size: int = -1) -> memoryview:
        """Return the next ``size`` bytes, or all that are left."""
        end = len(self._data) if size < 0 else self._position + size
        piece = self._data[self._position : end]
        self._position += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to ``offset``, as a file does."""
        self._position = offset + (0, self._position, len(self._data))[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def _session() -> botocore.session.Session:
    """Return a session that no ~/.aws file and no AWS_* variable has a say in, but one.

    AWS_CA_BUNDLE names the certificates of a private authority, for a store of one's own.
    """
    unaffected: dict[str, Any] = {
        name: (None, variable if name == "ca_bundle" else None, default, convert)
        for name, (_, variable, default, convert) in (
            botocore.session.Session.SESSION_VARIABLES.items()
        )
    }
    for file in ("config_file", "credentials_file"):
        unaffected[file] = (None, None, os.devnull, None)
    return botocore.session.Session(session_vars=unaffected)


def _config(
    endpoint: str | None, connections: int, connect_timeout: float, read_timeout: float
) -> Config:
    host = urlsplit(endpoint or "https://s3.amazonaws.com").hostname or ""
    return Config(
        signature_version="s3v4",
        # With its payload signed, the store checks the SHA-256 of every part: no other checksum
        # is needed but where it asks for one, and the trailers of botocore break some stores.
        s3={
            "payload_signing_enabled": True,
            "addressing_style": "virtual" if host.endswith(VIRTUAL_HOSTS) else "path",
        },
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
        max_pool_connections=connections,
        retries={"total_max_attempts": 1, "mode": "standard"},
    )


def _send_at_once(request: Any, **_: Any) -> None:  # noqa: ANN401 - a hook of botocore
    """Drop ``Expect: 100-continue``: it costs a round trip a part, and some stores ignore it."""
    del request.headers["Expect"]


def _use_content_md5(params: dict[str, Any], **_: Any) -> None:  # noqa: ANN401 - as above
    """Check a batch of deletions by Content-MD5, which all stores know, instead of CRC32.

    https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObjects.html
    """
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
    params["headers"].pop("x-amz-sdk-checksum-algorithm", None)
    params["context"].pop("checksum", None)


def lowered(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return ``metadata`` with lower-case keys: some stores answer in Title-Case."""
    return {name.lower(): value for name, value in metadata.items()}
