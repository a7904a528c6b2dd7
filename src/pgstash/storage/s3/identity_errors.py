"""Messages for credentials that cannot be had, and for those that the store refuses."""

from __future__ import annotations

from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    MetadataRetrievalError,
)
from botocore.exceptions import ConnectionError as BotocoreConnectionError
from botocore.parsers import ResponseParserError

from pgstash.errors import (
    ConfigurationError,
    PgstashError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage.s3.codes import FIRST_SERVER_ERROR, TRANSIENT, TRANSIENT_STATUS
from pgstash.storage.s3.config import Signer
from pgstash.storage.s3.errors import Answer

# Of https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html
_TRANSIENT_OF_STS = {"IDPCommunicationError", "RequestLimitExceeded"}

# The store may refuse an access key, or what it may do; these hints are for keys that are not in
# the settings.
_KEY_CODES = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "Unauthorized"}
_RIGHTS_CODES = {"AccessDenied", "Forbidden"}


class NoCredentials(Exception):  # noqa: N818 - it never leaves the package
    """No source has credentials."""


def translated(exc: Exception, config: Signer, *, first: bool) -> PgstashError:
    """Return the error of pgstash for credentials that could not be had.

    ``first`` is whether there were none before: then a missing file or profile, or a wrong one, is
    a problem of the configuration.
    """
    whose = config.purpose
    if isinstance(exc, NoCredentials):
        problem = (
            f"No credentials for {whose} were found. S3_ACCESS_KEY_ID is not set, and there are "
            "none in the environment (AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, "
            "AWS_CONTAINER_CREDENTIALS_FULL_URI), in ~/.aws, or in an instance profile. Set "
            "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY, or give this machine or container a role"
        )
    elif isinstance(exc, ClientError):
        return _of_sts(Answer.of(exc), config)
    elif isinstance(
        exc,
        BotocoreConnectionError
        | HTTPClientError
        | MetadataRetrievalError
        | CredentialRetrievalError
        | ResponseParserError,
    ):
        return StorageUnreachableError(
            f"cannot get credentials for {whose}: {exc}",
            hint="The service that hands them out must be reachable from here, and its role must "
            "exist.",
        )
    else:
        text = str(exc) if str(exc) and not isinstance(exc, LookupError) else type(exc).__name__
        problem = f"Credentials for {whose} cannot be read: {text.rstrip('.')}"
    if first:
        return ConfigurationError([f"{problem}."])
    return StorageRefusedError(problem)


def _of_sts(answer: Answer, config: Signer) -> PgstashError:
    role = config.role_arn or "the role"
    message = f"cannot assume {role} for {config.purpose}: {answer}"
    if (
        answer.code in TRANSIENT | _TRANSIENT_OF_STS
        or answer.status in TRANSIENT_STATUS
        or answer.status >= FIRST_SERVER_ERROR
    ):
        return StorageUnreachableError(message, hint="The token service of AWS may be overloaded.")
    return StorageRefusedError(
        message,
        hint=f"Check {'S3_ROLE_ARN' if config.role_arn else 'the ARN of the role'}, and that its "
        "trust policy allows this identity to assume it.",
    )


def hint(error: StorageRefusedError, code: str, identity: str) -> str:
    """Return the hint of a refusal if the access key is not in the settings."""
    if "S3_ACCESS_KEY_ID" not in error.hint:
        return error.hint
    if code in _KEY_CODES:
        return (
            f"Requests were signed with {identity}. If the store has access keys of its own, set "
            "S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY."
        )
    if code in _RIGHTS_CODES:
        return f"Allow {identity} to list the bucket and to read, write and delete in it."
    return f"Check S3_BUCKET, S3_REGION, and the permissions of {identity}."
