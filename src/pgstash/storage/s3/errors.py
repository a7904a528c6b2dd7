"""Translates the errors of botocore, and the responses of S3 stores, into errors of pgstash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
)
from botocore.parsers import ResponseParserError

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    UploadError,
)
from pgstash.storage.s3.codes import (
    AT_WORK_ALREADY,
    BAD_REQUEST,
    EXPIRED,
    FIRST_SERVER_ERROR,
    FULL,
    GATEWAY_GAVE_UP,
    GONE,
    INSUFFICIENT_STORAGE,
    LOCKED,
    MISSING,
    NO_TLS,
    NOT_IMPLEMENTED,
    NOT_THAWED,
    OF_ONE_OBJECT,
    OF_ONE_UPLOAD,
    OF_STATUS,
    RANGE_NOT_SATISFIABLE,
    REDIRECTED,
    REFUSALS,
    TAKEN,
    TRANSIENT,
    TRANSIENT_STATUS,
    UNKNOWN_REQUEST,
    UNTRUSTED,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A store's response to a request that failed; a ``status`` of 0 is unknown.

    ``code`` is the status if a response has no code. It is "" if the body is some other document,
    such as a web page.
    """

    operation: str
    code: str
    message: str
    status: int

    @classmethod
    def of(cls, exc: ClientError) -> Self:
        """Read a response in which anything may be missing, empty or of another type.

        botocore returns None for an empty element, a dict for one that has elements, and "" as the
        code of a document that is not an S3 error.
        """
        error, metadata = _dict(exc.response, "Error"), _dict(exc.response, "ResponseMetadata")
        code = _text(error.get("Code"))
        status = metadata.get("HTTPStatusCode")
        if not isinstance(status, int):
            status = int(code) if code.isdecimal() else 0
        if not code and error.get("Code") != "":
            code = str(status)
        return cls(exc.operation_name, code, _text(error.get("Message")), status)

    def __str__(self) -> str:
        if not self.code:
            return f"status {self.status}"
        has_message = self.message and self.message != self.code
        return f"{self.code}: {self.message}" if has_message else self.code

    @property
    def is_a_server_error(self) -> bool:
        """Whether the store failed rather than the request."""
        return self.status >= FIRST_SERVER_ERROR and self.status != NOT_IMPLEMENTED

    @property
    def is_gone(self) -> bool:
        """Whether the upload that was requested does not exist.

        Ceph's gateway returns NoSuchKey for it, and others return no code.
        """
        return self.operation in OF_ONE_UPLOAD and self.code in GONE


def _dict(response: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = response.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int) else ""


def may_go_on(exc: ClientError) -> bool:
    """Return whether the store may still be processing a request after this response.

    That is so after a gateway timed out, and if the store is processing the same request already.
    A server error without an S3 code comes from a gateway.
    """
    answer = Answer.of(exc)
    if answer.is_a_server_error and (answer.code or "0").isdecimal():
        return True
    return answer.status in GATEWAY_GAVE_UP or answer.code in AT_WORK_ALREADY


def wants_md5(exc: ClientError) -> bool:
    """Return whether a request was refused because it had no Content-MD5.

    AWS requires it for buckets with object lock, although the SHA-256 is signed.
    """
    answer = Answer.of(exc)
    return answer.status == BAD_REQUEST and "content-md5" in answer.message.lower()


def is_expired(exc: ClientError) -> bool:
    """Return whether other credentials may help: these expired, or the store does not know them.

    A response to a HEAD request has no code. The status for an expired token is 400.
    """
    answer = Answer.of(exc)
    bare = answer.operation == "HeadObject" and answer.code == str(BAD_REQUEST)
    return bare or answer.code in EXPIRED or answer.code == "InvalidAccessKeyId"


def is_taken(exc: ClientError) -> bool:
    """Return whether the condition of a request did not hold."""
    return Answer.of(exc).code in TAKEN


def is_missing(exc: ClientError) -> bool:
    """Return whether an object to delete did not exist."""
    return Answer.of(exc).code in MISSING


def answered(error: StorageError) -> Answer | None:
    """Return the store's response that ``error`` was translated from, if there was one."""
    cause = error.__cause__
    return Answer.of(cause) if isinstance(cause, ClientError) else None


def upload_is_gone(error: StorageError) -> bool:
    """Return whether ``error`` means that the store does not know an upload, or no longer."""
    answer = answered(error)
    return answer is not None and answer.is_gone


def is_unknown_request(error: StorageError) -> bool:
    """Return whether the store does not support that request, or one of its headers."""
    answer = answered(error)
    return answer is not None and answer.code in UNKNOWN_REQUEST


def is_not_thawed(error: StorageError) -> bool:
    """Return whether an object is archived, and has to be thawed before it can be read."""
    answer = answered(error)
    return answer is not None and answer.code == NOT_THAWED


def is_beyond_the_end(error: StorageError) -> bool:
    """Return whether the range begins after the end of the object."""
    answer = answered(error)
    return answer is not None and (
        answer.status == RANGE_NOT_SATISFIABLE or answer.code == "InvalidRange"
    )


def translate(exc: ClientError | BotoCoreError | ResponseParserError, doing: str) -> StorageError:
    """Return the error of pgstash for ``exc``; ``doing`` completes "cannot …"."""
    if isinstance(exc, ClientError):
        return _answered(Answer.of(exc), f"cannot {doing}")
    return _unanswered(exc, f"cannot {doing}")


def unreadable(doing: str) -> StorageError:
    """Return the error for a response that lacks a required value or has it in another form."""
    return _not_a_store(f"cannot {doing}: the response cannot be read")


def _answered(answer: Answer, cannot: str) -> StorageError:  # noqa: PLR0911 - a table of codes
    code, status = answer.code, answer.status
    if code in FULL or status == INSUFFICIENT_STORAGE:
        return StorageRefusedError(
            f"{cannot}: the store is full or a quota is used up ({answer})",
            hint="Raise the quota, free space, or shorten the retention.",
        )
    if code in TRANSIENT or status in TRANSIENT_STATUS:
        return StorageUnreachableError(f"{cannot}: the store answered {answer}")
    if answer.is_gone:
        return UploadError(
            f"{cannot}: the store no longer knows the upload ({answer})",
            hint="Does a lifecycle rule of the bucket, or someone, abort uploads too early?",
        )
    if code in TAKEN:
        return ObjectExistsError(f"{cannot}: the name is taken ({answer})")
    if code in MISSING and answer.operation in OF_ONE_OBJECT:
        return ObjectNotFoundError(f"{cannot}: there is no such object")
    if code in REDIRECTED:
        return StorageRefusedError(
            f"{cannot}: the bucket is somewhere else ({answer})",
            hint="Check S3_REGION. S3_ENDPOINT must be the endpoint of that region.",
        )
    if refusal := REFUSALS.get(code) or OF_STATUS.get(status):
        wrong, hint = refusal
        refused = StorageRefusedError(f"{cannot}: {wrong} ({answer})", hint=hint)
        refused.locked = code in LOCKED
        return refused
    if code in MISSING or (not code and status < FIRST_SERVER_ERROR):
        return _not_a_store(f"{cannot}: the store answered {answer}")
    if answer.is_a_server_error:
        return StorageUnreachableError(f"{cannot}: the store answered {answer} (status {status})")
    return StorageRefusedError(f"{cannot}: the store answered {answer} (status {status})")


def _unanswered(  # noqa: PLR0911 - a table of errors
    exc: BotoCoreError | ResponseParserError, cannot: str
) -> StorageError:
    text = str(exc.kwargs.get("error", exc) if isinstance(exc, BotoCoreError) else exc)
    if isinstance(exc, SSLError) and any(sign in text for sign in UNTRUSTED):
        return StorageRefusedError(
            f"{cannot}: the certificate of the store is not trusted ({text})",
            hint="Check S3_ENDPOINT and the clock. The certificate must be valid for that host. If "
            "a private authority issued it, name its certificates in S3_CA_FILE.",
        )
    if isinstance(exc, SSLError) and any(sign in text for sign in NO_TLS):
        return StorageRefusedError(
            f"{cannot}: the store does not speak TLS ({text})",
            hint="S3_ENDPOINT begins with https://. Does the store need http:// or another port?",
        )
    if isinstance(exc, EndpointConnectionError) and "resolve" in text.lower():
        return StorageUnreachableError(
            f"{cannot}: the name of the store cannot be resolved ({text})",
            hint="Check the host in S3_ENDPOINT and the DNS of this machine.",
        )
    if isinstance(exc, ProxyConnectionError):
        return StorageUnreachableError(
            f"{cannot}: no connection to the proxy ({text})",
            hint="Check HTTPS_PROXY or HTTP_PROXY, or set S3_USE_PROXY=false.",
        )
    if isinstance(exc, EndpointConnectionError | ConnectTimeoutError):
        return StorageUnreachableError(f"{cannot}: no connection to the store ({text})")
    if isinstance(exc, ReadTimeoutError):
        return StorageUnreachableError(f"{cannot}: the store does not answer in time")
    if isinstance(exc, HTTPClientError | SSLError | IncompleteReadError):
        return StorageUnreachableError(f"{cannot}: the connection broke ({text})")
    if isinstance(exc, ResponseParserError):
        return _not_a_store(f"{cannot}: the response cannot be read")
    return StorageRefusedError(f"{cannot}: {text}")


def _not_a_store(message: str) -> StorageRefusedError:
    return StorageRefusedError(
        f"{message}; is that an S3 store?",
        hint="Check S3_ENDPOINT. It may be the address of a web page or a console.",
    )
