"""What the errors of botocore and the codes of S3 mean to pgstash.

Codes are those of https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html and
what other stores were seen to answer.
"""

from __future__ import annotations

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

# Damage on the way, or a store that cannot serve at the moment: the same again may work.
TRANSIENT = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
}
TRANSIENT_STATUS = {408, 425, 429, 499}
BAD_REQUEST = 400
FIRST_SERVER_ERROR = 500
NOT_IMPLEMENTED = 501
INSUFFICIENT_STORAGE = 507

GATEWAY_GAVE_UP = {408, 499, 502, 504}
AT_IT_ALREADY = {"ConditionalRequestConflict", "OperationAborted"}

FULL = {"InsufficientStorage", "QuotaExceeded", "QuotaExceededException", "XMinioStorageFull"}
TAKEN = {"412", "PreconditionFailed"}
MISSING = {"404", "NoSuchKey", "NotFound"}
OF_ONE_OBJECT = {"GetObject", "HeadObject"}
REDIRECTED = {
    "301",
    "307",
    "308",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
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
REFUSALS["403"] = REFUSALS["AccessDenied"]
REFUSALS["Forbidden"] = REFUSALS["AccessDenied"]


def may_go_on(exc: ClientError) -> bool:
    """Tell whether a request may still be at work behind this answer.

    A gateway that lost patience says so, and a store that is at the same thing already. A server's
    error without a code of S3 is a gateway's own: botocore gives it its status for one.
    """
    code = exc.response.get("Error", {}).get("Code", "")
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status >= FIRST_SERVER_ERROR and status != NOT_IMPLEMENTED and (code or "0").isdecimal():
        return True
    return status in GATEWAY_GAVE_UP or code in AT_IT_ALREADY


def wants_md5(exc: ClientError) -> bool:
    """Tell whether a request was refused because it had no Content-MD5.

    AWS does so where objects are locked, although their SHA-256 is signed.
    """
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = exc.response.get("Error", {}).get("Message", "")
    return status == BAD_REQUEST and "content-md5" in said.lower()


def error_code(error: StorageError) -> str:
    """Return the store's own code for what ``error`` was translated from, or ""."""
    cause = error.__cause__
    return cause.response["Error"].get("Code", "") if isinstance(cause, ClientError) else ""


def translate(exc: ClientError | BotoCoreError | ResponseParserError, doing: str) -> StorageError:
    """Return the error of pgstash for ``exc``; ``doing`` completes "cannot …"."""
    if isinstance(exc, ClientError):
        return _answered(exc, f"cannot {doing}")
    return _unanswered(exc, f"cannot {doing}")


def _answered(exc: ClientError, cannot: str) -> StorageError:  # noqa: PLR0911 - a table of codes
    error = exc.response.get("Error", {})
    code, said = error.get("Code", ""), error.get("Message", "")
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    answer = f"{code}: {said}" if said and said != code else code or f"status {status}"

    if code in FULL or status == INSUFFICIENT_STORAGE or "quota" in said.lower():
        return StorageRefusedError(
            f"{cannot}: the store is full, or a quota is used up ({answer})",
            hint="Raise the quota, free some space, or shorten the retention.",
        )
    if code in TRANSIENT or status in TRANSIENT_STATUS:
        return StorageUnreachableError(f"{cannot}: the store answers {answer}")
    if code in REFUSALS:
        wrong, hint = REFUSALS[code]
        return StorageRefusedError(f"{cannot}: {wrong} ({answer})", hint=hint)
    if code == "NoSuchUpload":
        return UploadError(
            f"{cannot}: the store no longer knows the upload ({answer})",
            hint="Does a lifecycle rule of the bucket, or somebody, abort uploads too early?",
        )
    if code in TAKEN:
        return ObjectExistsError(f"{cannot}: the name is taken ({answer})")
    if code in MISSING and exc.operation_name in OF_ONE_OBJECT:
        return ObjectNotFoundError(f"{cannot}: there is no such object")
    if code in MISSING:
        return _not_a_store(f"{cannot}: the store answers {answer}")
    if code in REDIRECTED:
        return StorageRefusedError(
            f"{cannot}: the bucket is somewhere else ({answer})",
            hint="Check S3_REGION, and that S3_ENDPOINT is the one of that region.",
        )
    if status >= FIRST_SERVER_ERROR and status != NOT_IMPLEMENTED:
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
