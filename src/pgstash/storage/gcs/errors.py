"""Translates the responses of Google Cloud Storage into errors of pgstash.

https://cloud.google.com/storage/docs/json_api/v1/status-codes
"""

from __future__ import annotations

from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from requests import RequestException

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage.interface import locked
from pgstash.storage.network import causes_of, overloaded, unanswered

ENDPOINT = "the connection to storage.googleapis.com, and STORAGE_EMULATOR_HOST"

UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
GONE = {404, 410, 499}  # of a session of an upload
PRECONDITION_FAILED = 412
TRANSIENT_STATUS = {408, 425, 429, 499}
FIRST_SERVER_ERROR = 500
NOT_IMPLEMENTED = 501

# Reasons that come with status 403.
TRANSIENT = {"rateLimitExceeded", "userRateLimitExceeded"}
FULL = {"quotaExceeded", "storageQuotaExceeded"}
RETAINED = {"objectUnderActiveHold", "retentionPolicyNotMet"}

_PERMISSIONS = (
    "Give the identity the role Storage Object User on the bucket. Uploads, restores and pruning "
    "need storage.objects.create, get, list and delete. `pgstash policy` prints what one of these "
    "needs."
)
_IDENTITY = (
    "Set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account or of a workload identity "
    "federation, or run pgstash where a service account is attached."
)


class ResponseError(Exception):
    """A response with another status than was expected; ``reason`` is the API's own word."""

    def __init__(self, status: int, reason: str, *, of_object: bool) -> None:
        """Store what the response has. ``of_object`` is whether one object was requested."""
        super().__init__(f"status {status}{f', {reason}' if reason else ''}")
        self.status = status
        self.reason = reason
        self.of_object = of_object

    @property
    def may_go_on(self) -> bool:
        """Whether the store may still be processing the request after this response."""
        return self.status in TRANSIENT_STATUS or self.is_a_server_error

    @property
    def is_a_server_error(self) -> bool:
        """Whether the store failed rather than the request."""
        return self.status >= FIRST_SERVER_ERROR and self.status != NOT_IMPLEMENTED


def translate(exc: ResponseError | RequestException | GoogleAuthError, doing: str) -> StorageError:
    """Return the error of pgstash for ``exc``; ``doing`` completes "cannot …"."""
    cannot = f"cannot {doing}"
    if isinstance(exc, ResponseError):
        return _answered(exc, cannot)
    if isinstance(exc, DefaultCredentialsError):
        return StorageRefusedError(
            f"{cannot}: no identity of Google Cloud is available", hint=_IDENTITY
        )
    if isinstance(exc, GoogleAuthError) and _is_about_the_network(exc):
        return StorageUnreachableError(
            f"{cannot}: the service for Google's tokens does not answer",
            hint="Check the connection to oauth2.googleapis.com, or to the metadata service.",
        )
    if isinstance(exc, GoogleAuthError) and not exc.retryable:
        return StorageRefusedError(
            f"{cannot}: Google refuses the credentials", hint=f"{_IDENTITY} Is the key disabled?"
        )
    return unanswered(exc, cannot, ENDPOINT)


def _is_about_the_network(exc: GoogleAuthError) -> bool:
    """Return whether a request for a token got no response; google.auth calls that final."""
    return any(isinstance(each, RequestException) for each in causes_of(exc))


def _answered(answer: ResponseError, cannot: str) -> StorageError:  # noqa: PLR0911 - a table
    status, reason = answer.status, answer.reason
    if status in TRANSIENT_STATUS or reason in TRANSIENT or answer.is_a_server_error:
        return overloaded(f"{cannot}: the store answered {answer}", ENDPOINT)
    if status == PRECONDITION_FAILED:
        return ObjectExistsError(f"{cannot}: the name is taken ({answer})")
    if status == NOT_FOUND and answer.of_object:
        return ObjectNotFoundError(f"{cannot}: there is no such object")
    if status == NOT_FOUND:
        return StorageRefusedError(
            f"{cannot}: the bucket does not exist ({answer})",
            hint="Check the bucket in STORAGE_URL, or create it.",
        )
    if reason in RETAINED:
        return locked(f"{cannot}: a retention policy or a hold protects the object ({answer})")
    if reason in FULL:
        return StorageRefusedError(
            f"{cannot}: a quota is used up ({answer})",
            hint="Raise the quota, free space, or shorten the retention.",
        )
    if status == UNAUTHORIZED:
        return StorageRefusedError(
            f"{cannot}: the store wants credentials ({answer})", hint=_IDENTITY
        )
    if status == FORBIDDEN:
        return StorageRefusedError(
            f"{cannot}: the store denies access ({answer})", hint=_PERMISSIONS
        )
    return StorageRefusedError(
        f"{cannot}: the store answered {answer}", hint=f"Check {ENDPOINT}: is that a store?"
    )


def unreadable(doing: str) -> StorageError:
    """Return the error for a response that lacks a required value or has it in another form."""
    return StorageRefusedError(
        f"cannot {doing}: the response cannot be read", hint=f"Check {ENDPOINT}: is that a store?"
    )
