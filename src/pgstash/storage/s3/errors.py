"""What the errors of botocore and the codes of S3 mean to pgstash.

Codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and
what other stores were seen to answer.
"""

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

# Damage on the way, or a store that cannot serve at the moment: the same again may work. Those of
# server errors count where a list of errors, one for each key, has no status.
TRANSIENT = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "XMinioServerNotInitialized",
}
TRANSIENT_STATUS = {408, 425, 429, 499}
BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
RANGE_NOT_SATISFIABLE = 416
FIRST_SERVER_ERROR = 500
NOT_IMPLEMENTED = 501
INSUFFICIENT_STORAGE = 507

GATEWAY_GAVE_UP = {408, 499, 502, 504}
AT_IT_ALREADY = {"ConditionalRequestConflict", "OperationAborted"}

FULL = {
    "InsufficientStorage",
    "QuotaExceeded",
    "QuotaExceededException",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
# pgstash sends a condition only with what it writes, and with the rest of a download. To the first
# MinIO answered 304: https://github.com/minio/minio/issues/19442
TAKEN = {"304", "412", "PreconditionFailed"}
MISSING = {"404", "NoSuchKey", "NotFound"}
GONE = MISSING | {"NoSuchUpload"}
# Google's store calls what it does not know an invalid argument, too.
UNKNOWN_REQUEST = {"405", "501", "InvalidArgument", "MethodNotAllowed", "NotImplemented"}
OF_ONE_OBJECT = {"GetObject", "HeadObject"}
OF_ONE_UPLOAD = {"AbortMultipartUpload", "CompleteMultipartUpload", "ListParts", "UploadPart"}
REDIRECTED = {
    "301",
    "307",
    "308",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "InvalidRegion",
    "InvalidRegionName",
    "PermanentRedirect",
    "TemporaryRedirect",
}
UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "doesn't match")
NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "HTTP_REQUEST")

# Code: what is wrong, and what to do about it.
REFUSALS = {
    "InvalidAccessKeyId": (
        "the store does not know the access key",
        "Check S3_ACCESS_KEY_ID, and that S3_ENDPOINT is the store that issued it.",
    ),
    "SignatureDoesNotMatch": (
        "the store rejects the signature",
        "Check S3_SECRET_ACCESS_KEY; S3_ACCESS_KEY_ID and S3_REGION too, with some stores.",
    ),
    "NoSuchBucket": ("the bucket does not exist", "Check S3_BUCKET, or create the bucket."),
    "InvalidBucketName": ("the bucket's name is not a valid one", "Check S3_BUCKET."),
    "AccessDenied": (
        "the store denies access",
        "Allow S3_ACCESS_KEY_ID to list the bucket and to read, write and delete in it.",
    ),
    "RequestTimeTooSkewed": (
        "the clocks of this machine and of the store differ too much",
        "Set the clock of this machine, best by NTP.",
    ),
}
REFUSALS["Forbidden"] = REFUSALS["AccessDenied"]
REFUSALS["Unauthorized"] = REFUSALS["InvalidAccessKeyId"]
OF_STATUS = {UNAUTHORIZED: REFUSALS["Unauthorized"], FORBIDDEN: REFUSALS["AccessDenied"]}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a store answered to a request that failed; 0 stands for a status that nobody gave.

    ``code`` is the status where an answer has none, and "" where the body is a document of
    something else, a web page for one.
    """

    operation: str
    code: str
    message: str
    status: int

    @classmethod
    def of(cls, exc: ClientError) -> Self:
        """Read an answer in which anything may be missing, empty or of another type.

        botocore gives None for an empty element, a dict for one that has elements, and "" for the
        code of a document that is no error of S3.
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
        said = self.message and self.message != self.code
        return f"{self.code}: {self.message}" if said else self.code

    @property
    def is_a_server_error(self) -> bool:
        """Whether the store failed, and not the request."""
        return self.status >= FIRST_SERVER_ERROR and self.status != NOT_IMPLEMENTED

    @property
    def is_gone(self) -> bool:
        """Whether the upload that was asked for is not there.

        Ceph's gateway says NoSuchKey of one, others give no code.
        """
        return self.operation in OF_ONE_UPLOAD and self.code in GONE


def _dict(response: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = response.get(name)
    return part if isinstance(part, dict) else {}


def _text(value: object) -> str:
    return str(value).strip() if isinstance(value, str | int) else ""


def may_go_on(exc: ClientError) -> bool:
    """Return whether a request may still be at work behind this answer.

    A gateway that lost patience says so, and a store that is at the same thing already. A server's
    error without a code of S3 is a gateway's own.
    """
    answer = Answer.of(exc)
    if answer.is_a_server_error and (answer.code or "0").isdecimal():
        return True
    return answer.status in GATEWAY_GAVE_UP or answer.code in AT_IT_ALREADY


def wants_md5(exc: ClientError) -> bool:
    """Return whether a request was refused because it had no Content-MD5.

    AWS does so where objects are locked, although their SHA-256 is signed.
    """
    answer = Answer.of(exc)
    return answer.status == BAD_REQUEST and "content-md5" in answer.message.lower()


def is_taken(exc: ClientError) -> bool:
    """Return whether the condition of a request did not hold."""
    return Answer.of(exc).code in TAKEN


def is_missing(exc: ClientError) -> bool:
    """Return whether an object that was to be deleted was not there."""
    return Answer.of(exc).code in MISSING


def answered(error: StorageError) -> Answer | None:
    """Return the store's own answer that ``error`` was translated from, if there was one."""
    cause = error.__cause__
    return Answer.of(cause) if isinstance(cause, ClientError) else None


def upload_is_gone(error: StorageError) -> bool:
    """Return whether ``error`` says that the store does not know an upload, or no longer."""
    answer = answered(error)
    return answer is not None and answer.is_gone


def is_unknown_request(error: StorageError) -> bool:
    """Return whether the store does not have that request, or not with one of its headers."""
    answer = answered(error)
    return answer is not None and answer.code in UNKNOWN_REQUEST


def is_beyond_the_end(error: StorageError) -> bool:
    """Return whether the range begins where the object has ended."""
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
    """Return the error for an answer that lacks what it must have, or has it in another form."""
    return _not_a_store(f"cannot {doing}: the answer cannot be read")


def _answered(answer: Answer, cannot: str) -> StorageError:  # noqa: PLR0911 - a table of codes
    code, status = answer.code, answer.status
    if code in FULL or status == INSUFFICIENT_STORAGE:
        return StorageRefusedError(
            f"{cannot}: the store is full, or a quota is used up ({answer})",
            hint="Raise the quota, free some space, or shorten the retention.",
        )
    if code in TRANSIENT or status in TRANSIENT_STATUS:
        return StorageUnreachableError(f"{cannot}: the store answers {answer}")
    if answer.is_gone:
        return UploadError(
            f"{cannot}: the store no longer knows the upload ({answer})",
            hint="Does a lifecycle rule of the bucket, or somebody, abort uploads too early?",
        )
    if code in TAKEN:
        return ObjectExistsError(f"{cannot}: the name is taken ({answer})")
    if code in MISSING and answer.operation in OF_ONE_OBJECT:
        return ObjectNotFoundError(f"{cannot}: there is no such object")
    if code in REDIRECTED:
        return StorageRefusedError(
            f"{cannot}: the bucket is somewhere else ({answer})",
            hint="Check S3_REGION, and that S3_ENDPOINT is the one of that region.",
        )
    if refusal := REFUSALS.get(code) or OF_STATUS.get(status):
        wrong, hint = refusal
        return StorageRefusedError(f"{cannot}: {wrong} ({answer})", hint=hint)
    if code in MISSING or (not code and status < FIRST_SERVER_ERROR):
        return _not_a_store(f"{cannot}: the store answers {answer}")
    if answer.is_a_server_error:
        return StorageUnreachableError(f"{cannot}: the store answers {answer} (status {status})")
    return StorageRefusedError(f"{cannot}: the store answers {answer} (status {status})")


def _unanswered(  # noqa: PLR0911 - a table of errors
    exc: BotoCoreError | ResponseParserError, cannot: str
) -> StorageError:
    said = str(exc.kwargs.get("error", exc) if isinstance(exc, BotoCoreError) else exc)
    if isinstance(exc, SSLError) and any(sign in said for sign in UNTRUSTED):
        return StorageRefusedError(
            f"{cannot}: the certificate of the store is not trusted ({said})",
            hint="Check S3_ENDPOINT and the clock; the certificate must be one that is valid "
            "for that host.",
        )
    if isinstance(exc, SSLError) and any(sign in said for sign in NO_TLS):
        return StorageRefusedError(
            f"{cannot}: the store does not speak TLS ({said})",
            hint="S3_ENDPOINT begins with https://; does the store want http://, or another port?",
        )
    if isinstance(exc, EndpointConnectionError) and "resolve" in said.lower():
        return StorageUnreachableError(
            f"{cannot}: the name of the store cannot be resolved ({said})",
            hint="Check the host in S3_ENDPOINT, and the DNS of this machine.",
        )
    if isinstance(exc, EndpointConnectionError | ConnectTimeoutError):
        return StorageUnreachableError(f"{cannot}: no connection to the store ({said})")
    if isinstance(exc, ReadTimeoutError):
        return StorageUnreachableError(f"{cannot}: the store does not answer in time")
    if isinstance(exc, HTTPClientError | SSLError | IncompleteReadError):
        return StorageUnreachableError(f"{cannot}: the connection broke ({said})")
    if isinstance(exc, ResponseParserError):
        return _not_a_store(f"{cannot}: the answer cannot be read")
    return StorageRefusedError(f"{cannot}: {said}")


def _not_a_store(message: str) -> StorageRefusedError:
    return StorageRefusedError(
        f"{message}; is that an S3 store?",
        hint="Check S3_ENDPOINT: it may be the address of a web page or of a console.",
    )
