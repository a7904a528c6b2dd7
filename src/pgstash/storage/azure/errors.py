"""Translates the errors of Azure's SDK into errors of pgstash, by status and error code.

https://learn.microsoft.com/rest/api/storageservices/blob-service-error-codes
https://learn.microsoft.com/rest/api/storageservices/common-rest-api-error-codes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

from pgstash.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    UploadError,
)
from pgstash.storage.interface import locked
from pgstash.storage.network import overloaded, unanswered

ENDPOINT = "AZURE_STORAGE_ENDPOINT and the account in STORAGE_URL"

NOT_FOUND = 404
PRECONDITION_FAILED = 412
TRANSIENT_STATUS = {408, 425, 429, 499}
FIRST_SERVER_ERROR = 500
NOT_IMPLEMENTED = 501

TRANSIENT = {
    "Crc64Mismatch",
    "InternalError",
    "Md5Mismatch",
    "OperationTimedOut",
    "ServerBusy",
}
TAKEN = {"BlobAlreadyExists", "ConditionNotMet", "UnauthorizedBlobOverwrite"}
MISSING = {"BlobNotFound"}
GONE = {"InvalidBlobOrBlock", "InvalidBlockList"}
IMMUTABLE = {"BlobImmutableDueToLegalHold", "BlobImmutableDueToPolicy"}

_CREDENTIALS = (
    "Check AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or AZURE_STORAGE_SAS_TOKEN, and that "
    "it belongs to the account in STORAGE_URL. Check that a SAS token has not expired."
)
_PERMISSIONS = (
    "Give the identity the role Storage Blob Data Contributor on the container, or the SAS token "
    "the permissions r, c, w, d and l. Check the firewall of the account too."
)

# For each code: what is wrong, and the hint.
REFUSALS = {
    "AccountIsDisabled": ("the storage account is disabled", "Check the subscription."),
    "AuthenticationFailed": ("the store rejects the credentials", _CREDENTIALS),
    "AuthorizationFailure": ("the store denies access", f"{_PERMISSIONS} {_CREDENTIALS}"),
    "AuthorizationPermissionMismatch": ("the identity lacks a permission", _PERMISSIONS),
    "AuthorizationResourceTypeMismatch": ("the SAS token lacks a resource type", _PERMISSIONS),
    "BlobArchived": (
        "the blob is in the archive tier",
        "Rehydrate it, and keep backups out of that tier until they may be slow to read.",
    ),
    "ContainerNotFound": (
        "the container does not exist",
        "Check the container in STORAGE_URL, or create it.",
    ),
    "InsufficientAccountPermissions": ("the identity lacks a permission", _PERMISSIONS),
    "InvalidAuthenticationInfo": ("the store rejects the credentials", _CREDENTIALS),
    "KeyBasedAuthenticationNotPermitted": (
        "the account does not accept keys",
        "Unset AZURE_STORAGE_KEY, and use a managed or workload identity.",
    ),
    "LeaseIdMissing": ("someone holds a lease on the blob", "Break the lease."),
    "NoAuthenticationInformation": ("the store wants credentials", _CREDENTIALS),
    "PublicAccessNotPermitted": ("the store wants credentials", _CREDENTIALS),
}
OF_STATUS = {401: REFUSALS["AuthenticationFailed"], 403: REFUSALS["AuthorizationFailure"]}


@dataclass(frozen=True, slots=True)
class Answer:
    """The store's response to a request that failed; without an answer, the status is 0."""

    code: str
    status: int

    @classmethod
    def of(cls, exc: BaseException | None) -> Self:
        """Read the response that ``exc`` was made of, if there was one."""
        if not isinstance(exc, HttpResponseError) or exc.response is None:
            return cls("", 0)
        headers: Mapping[str, str] = getattr(exc.response, "headers", {})
        return cls(headers.get("x-ms-error-code", ""), exc.status_code or 0)

    def __str__(self) -> str:
        return f"{self.code}, status {self.status}" if self.code else f"status {self.status}"

    @property
    def is_missing(self) -> bool:
        """Whether the object does not exist."""
        return self.code in MISSING or (not self.code and self.status == NOT_FOUND)

    @property
    def is_taken(self) -> bool:
        """Whether the condition of a request did not hold."""
        return self.code in TAKEN or (not self.code and self.status == PRECONDITION_FAILED)

    @property
    def may_go_on(self) -> bool:
        """Whether the store may still be processing the request after this response."""
        return not self.status or self.status in TRANSIENT_STATUS or self.is_a_server_error

    @property
    def is_a_server_error(self) -> bool:
        """Whether the store failed rather than the request."""
        return self.status >= FIRST_SERVER_ERROR and self.status != NOT_IMPLEMENTED


def translate(exc: AzureError, doing: str) -> StorageError:  # noqa: PLR0911 - a table of codes
    """Return the error of pgstash for ``exc``; ``doing`` completes "cannot …"."""
    answer, cannot = Answer.of(exc), f"cannot {doing}"
    if not answer.status:
        if isinstance(exc, ClientAuthenticationError):
            return StorageRefusedError(
                f"{cannot}: no identity of Azure is available",
                hint="Set AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY or "
                "AZURE_STORAGE_SAS_TOKEN, or run pgstash with a managed or workload identity.",
            )
        return unanswered(exc, cannot, ENDPOINT)
    if answer.code in TRANSIENT or answer.status in TRANSIENT_STATUS:
        return overloaded(f"{cannot}: the store answered {answer}", ENDPOINT)
    if answer.is_taken:
        return ObjectExistsError(f"{cannot}: the name is taken ({answer})")
    if answer.is_missing:
        return ObjectNotFoundError(f"{cannot}: there is no such object")
    if answer.code in GONE:
        return UploadError(
            f"{cannot}: the store no longer has all blocks of the upload ({answer})",
            hint="Did someone else write to the same name, or delete it?",
        )
    if answer.code in IMMUTABLE:
        return locked(f"{cannot}: a policy or a legal hold protects the blob ({answer})")
    if refusal := REFUSALS.get(answer.code) or OF_STATUS.get(answer.status):
        wrong, hint = refusal
        return StorageRefusedError(f"{cannot}: {wrong} ({answer})", hint=hint)
    if answer.is_a_server_error:
        return overloaded(f"{cannot}: the store answered {answer}", ENDPOINT)
    return StorageRefusedError(
        f"{cannot}: the store answered {answer}",
        hint=f"Check {ENDPOINT}." if answer.code else f"Check {ENDPOINT}: is that Azure?",
    )
