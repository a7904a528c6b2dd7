"""An identity that AWS provides, instead of an access key in the settings: what it makes optional.

botocore finds the credentials, in the environment, in ``~/.aws``, and from services of the machine:
https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from pathlib import Path

from pgstash.settings import regions, spelling

_KEYS = ("S3_ACCESS_KEY_ID", "S3_SECRET_ACCESS_KEY")
_REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")

# One of these is enough to expect credentials, whatever the store.
_OF_AN_IDENTITY = (
    "AWS_ACCESS_KEY_ID",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_DEFAULT_PROFILE",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_PROFILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
)
_SECRET = (
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",
)


def required(values: Mapping[str, str], everything: Mapping[str, str]) -> frozenset[str]:
    """Return which of ``keys``, ``endpoint`` and ``region`` must be set for a store of S3.

    Keys may be left out only if credentials can come from elsewhere: on AWS, or if the environment
    or ``~/.aws`` has some. A misspelt key is not left out. Without keys, the endpoint may be left
    out if the region is set, and no variable of other programs names an endpoint. ``everything``
    includes variables that are empty.
    """
    if _has_key(values):
        return frozenset({"keys", "endpoint"})
    endpoint, region = values.get("S3_ENDPOINT", ""), "S3_REGION" in values
    found = set()
    if not endpoint and (not region or spelling.meant("S3_ENDPOINT", everything)):
        found.add("endpoint")
    on_aws = regions.is_of_aws(endpoint) if endpoint else region
    misspelt = any(
        not name.startswith("AWS_") for key in _KEYS for name in spelling.close_to(key, everything)
    )
    if misspelt or not (on_aws or _has_identity(values)):
        found.add("keys")
    elif not region:
        found.add("region")
    return frozenset(found)


def settle(
    environ: MutableMapping[str, str], values: dict[str, str], of_file: Mapping[str, str]
) -> None:
    """Set the AWS variables of a ``.env`` file in the environment, where botocore reads them.

    Without an endpoint, the region of AWS becomes that of the settings. With an access key in the
    settings, or for a directory, nothing is changed, unless a key of KMS is a recipient.
    """
    for_store = not (_has_key(values) or "STORAGE_URL" in values)
    if not for_store and not _wants_kms(values):
        return
    for variable, value in of_file.items():
        if variable.startswith("AWS_") and not environ.get(variable):
            environ[variable] = value
    if not for_store:
        return
    for variable in label_of_region(values).values():
        values["S3_REGION"] = values[variable]


def label_of_region(values: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that S3_REGION is taken from, if it is taken from another."""
    if _has_key(values) or "S3_ENDPOINT" in values or "S3_REGION" in values:
        return {}
    named = [name for name in _REGIONS if name in values]
    return {"S3_REGION": named[0]} if named else {}


def secrets(values: Mapping[str, str]) -> list[str]:
    """Return the secrets of AWS in the environment, if they may be used."""
    if (_has_key(values) or "STORAGE_URL" in values) and not _wants_kms(values):
        return []
    return [values[name] for name in _SECRET if name in values]


def _has_key(values: Mapping[str, str]) -> bool:
    return any(name in values or f"{name}_FILE" in values for name in _KEYS)


def _wants_kms(values: Mapping[str, str]) -> bool:
    """Return whether a recipient is a key of KMS, which any identity of AWS may be for."""
    return "arn:aws" in values.get("BACKUP_ENCRYPTION_RECIPIENTS", "")


def _has_identity(values: Mapping[str, str]) -> bool:
    if any(name in values for name in _OF_AN_IDENTITY):
        return True
    folder = Path(values.get("HOME") or "/nonexistent") / ".aws"
    return (folder / "credentials").is_file() or (folder / "config").is_file()
