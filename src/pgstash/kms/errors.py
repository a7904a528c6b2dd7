"""Translates the errors of botocore, and the responses of KMS, into errors of pgstash.

https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from botocore.exceptions import BotoCoreError, EndpointConnectionError, SSLError
from botocore.parsers import ResponseParserError

from pgstash.errors import (
    ConfigurationError,
    CorruptedError,
    EncryptionError,
    PgstashError,
    StorageUnreachableError,
)
from pgstash.format import kms
from pgstash.storage.s3.codes import EXPIRED, FIRST_SERVER_ERROR, TRANSIENT, TRANSIENT_STATUS
from pgstash.storage.s3.errors import Answer
from pgstash.storage.s3.identity_errors import NoCredentials

_TRANSIENT = TRANSIENT | {
    "DependencyTimeoutException",
    "KMSInternalException",
    "KeyUnavailableException",
    "LimitExceededException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequestsException",
}
_DAMAGED = {"IncorrectKeyException", "InvalidCiphertextException"}
_STATE = "`aws kms describe-key --key-id {arn}` shows its state."
_CHECK_ARN = "Check the ARN: partition, region, account and key. The alias or key must exist there."

# For each code: what is wrong, and the hint.
_REFUSALS: Mapping[str, tuple[str, str]] = {
    "AccessDeniedException": (
        "KMS denies it",
        (
            "Allow {action} with this key to {identity}: `pgstash policy` prints the permissions. "
            "If the key is of another account, its own policy must allow that, too."
        ),
    ),
    "NotFoundException": ("there is no such key", _CHECK_ARN),
    "InvalidArnException": ("KMS does not accept the ARN", _CHECK_ARN),
    "ValidationException": ("KMS does not accept the ARN", _CHECK_ARN),
    "DisabledException": (
        "the key is disabled",
        "Enable it with `aws kms enable-key --key-id {arn}`, or name another key.",
    ),
    "KMSInvalidStateException": (
        "the state of the key does not allow it",
        f"{_STATE} If its deletion is pending, `aws kms cancel-key-deletion` keeps it.",
    ),
    "InvalidKeyUsageException": (
        "the key is not for encryption",
        "Name a symmetric key whose usage is ENCRYPT_DECRYPT.",
    ),
    "OptInRequired": ("the account may not use this region", "Enable the region, or KMS in it."),
}
_SIGNATURES = EXPIRED | {
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "MissingAuthenticationTokenException",
    "NotAuthorized",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_REFUSALS = {
    **_REFUSALS,
    **dict.fromkeys(
        _SIGNATURES,
        (
            "KMS does not accept the credentials",
            "Requests are signed with {identity}. Check these credentials, and the clock here.",
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its operation, and the ARN of the key."""

    operation: str
    arn: str

    @property
    def doing(self) -> str:
        """The request in words: completes "cannot …"."""
        return f"{self.operation.lower()} the passphrase of a backup with {self.arn}"

    @property
    def action(self) -> str:
        """The permission that it needs."""
        return f"kms:{self.operation}"


def answered(answer: Answer, asked: Asked, identity: str) -> PgstashError:
    """Return the error for a response; StorageUnreachableError if a retry may work.

    ``identity`` describes who signed the request.
    """
    cannot = f"cannot {asked.doing}"
    transient = answer.code in _TRANSIENT or answer.status in TRANSIENT_STATUS
    if transient or answer.status >= FIRST_SERVER_ERROR:
        return StorageUnreachableError(
            f"{cannot}: KMS answered {answer}", hint="KMS may be down or overloaded: try again."
        )
    if answer.code in _DAMAGED:
        return CorruptedError(
            f"{cannot}: the ciphertext is damaged, or was made for another backup ({answer})",
            hint="Was the object that ends in .key.kms replaced or renamed? A copy of it, or an "
            "earlier version, may be right.",
        )
    if refusal := _REFUSALS.get(answer.code):
        wrong, hint = refusal
        facts = {"action": asked.action, "identity": identity, "arn": asked.arn}
        return EncryptionError(f"{cannot}: {wrong} ({answer})", hint=hint.format(**facts))
    return EncryptionError(f"{cannot}: KMS answered {answer} (status {answer.status})")


def unanswered(exc: BotoCoreError | ResponseParserError, asked: Asked) -> PgstashError:
    """Return the error for a request without a response that can be read."""
    cannot, region = f"cannot {asked.doing}", kms.region_of(asked.arn)
    if isinstance(exc, ResponseParserError):
        return unreadable(asked)
    if isinstance(exc, SSLError):
        return EncryptionError(
            f"{cannot}: {exc}",
            hint="If a proxy or a private authority signs certificates here, name its certificates "
            "in AWS_CA_BUNDLE.",
        )
    if isinstance(exc, EndpointConnectionError):
        return StorageUnreachableError(
            f"{cannot}: {exc}",
            hint=f"KMS of the region {region} must be reachable from here. Check the region in the "
            "ARN, the network and the DNS, and AWS_ENDPOINT_URL_KMS if it is set.",
        )
    return StorageUnreachableError(
        f"{cannot}: {exc}", hint="Check the network between here and KMS."
    )


def unreadable(asked: Asked) -> EncryptionError:
    """Return the error for a response that lacks a value or has it in another form."""
    return EncryptionError(
        f"cannot {asked.doing}: the response cannot be read; is that KMS?",
        hint="Check AWS_ENDPOINT_URL_KMS and the proxy.",
    )


def of_another_key(asked: Asked, named: str) -> EncryptionError:
    """Return the error for a response about a key that was not asked for."""
    return EncryptionError(
        f"cannot {asked.doing}: KMS answered for {named:.300}",
        hint="Check AWS_ENDPOINT_URL_KMS: another service may answer there.",
    )


def final(error: PgstashError, asked: Asked) -> PgstashError:
    """Return the error to raise after all retries: none is of the store."""
    if isinstance(error, CorruptedError | EncryptionError):
        return error
    if isinstance(error, ConfigurationError) and isinstance(error.__cause__, NoCredentials):
        return EncryptionError(
            f"cannot {asked.doing}: no credentials of AWS were found",
            hint="Give this machine or container a role, or set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE. S3_ACCESS_KEY_ID signs requests to KMS too if "
            "the backups are in S3 on AWS.",
        )
    retryable = isinstance(error, StorageUnreachableError)
    message = error.message.rstrip(".")
    if asked.arn not in message:
        message = f"cannot {asked.doing}: {message}"
    return EncryptionError(message, hint=error.hint, retryable=retryable)
