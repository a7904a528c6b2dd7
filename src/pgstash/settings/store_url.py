"""The URL of a store: which store it names, and the settings that follow from it."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

Scheme = Literal["file", "s3", "azure", "gs"]

EXPECTED = (
    "file:///directory, s3://bucket/prefix, azure://account/container/prefix or gs://bucket/prefix"
)
# What Azure's SDK reads itself.
_SECRET = ("AZURE_CLIENT_CERTIFICATE_PASSWORD", "AZURE_CLIENT_SECRET", "AZURE_PASSWORD")

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}", re.ASCII)
# https://cloud.google.com/storage/docs/buckets#naming
_GCS_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", re.ASCII)
# $root and $web are Azure's own.
_CONTAINER = re.compile(r"[a-z0-9](-?[a-z0-9]){2,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store: a directory, a bucket, or a container of an account.

    ``name`` is the path of the directory, or the name of the bucket or container. Without a
    ``prefix``, that of ``BACKUP_PREFIX`` is used.
    """

    scheme: Scheme
    name: str
    account: str = ""
    prefix: str = ""


def parse(url: str) -> StoreUrl:
    """Return what a URL names. Raises ValueError with the reason."""
    parts = urlsplit(url)
    try:
        path = unquote(parts.path, errors="strict")
    except UnicodeDecodeError:
        raise ValueError("has a '%' and digits that are not of UTF-8 text") from None
    if parts.scheme == "file":
        return _directory(parts.netloc, path)
    if parts.scheme not in ("s3", "azure", "gs"):
        raise ValueError("does not begin with file://, s3://, azure:// or gs://")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must not contain credentials, '?' or '#'")
    if not parts.netloc:
        raise ValueError(
            f"must name a {'storage account' if parts.scheme == 'azure' else 'bucket'}"
        )
    if parts.scheme == "azure":
        return _container(parts.netloc, path.strip("/"))
    if parts.scheme == "gs" and not _GCS_BUCKET.fullmatch(parts.netloc):
        raise ValueError(
            "must name a bucket, which has 3 to 222 lower-case letters, digits, '-', '_' and "
            "'.': gs://bucket"
        )
    scheme: Scheme = "s3" if parts.scheme == "s3" else "gs"
    return StoreUrl(scheme, parts.netloc, prefix=path.strip("/"))


def _directory(host: str, path: str) -> StoreUrl:
    if host not in ("", "localhost") or path in ("", "/"):
        raise ValueError("must be file:// and the absolute path of a directory: file:///backups")
    return StoreUrl("file", path)


def _container(account: str, path: str) -> StoreUrl:
    container, _, prefix = path.partition("/")
    if not _ACCOUNT.fullmatch(account):
        raise ValueError(
            "must begin with the name of a storage account, which has 3 to 24 lower-case letters "
            "and digits: azure://account/container"
        )
    if not _CONTAINER.fullmatch(container):
        raise ValueError(
            "must name a container, which has 3 to 63 lower-case letters, digits and single "
            "hyphens: azure://account/container"
        )
    return StoreUrl("azure", container, account, prefix.strip("/"))


def settle(values: MutableMapping[str, str]) -> list[str]:
    """Put what ``STORAGE_URL`` names into the settings for it; return contradictions.

    Its prefix becomes ``BACKUP_PREFIX``. For S3, its bucket becomes ``S3_BUCKET``, and the other
    settings of S3 are those that are needed without the URL.
    """
    try:
        found = parse(values.get("STORAGE_URL", "").strip())
    except ValueError:
        return []  # the setting is refused when it is checked
    named = {"BACKUP_PREFIX": found.prefix}
    if found.scheme == "s3":
        named["S3_BUCKET"] = found.name
    problems = []
    for variable, value in named.items():
        present = values.get(variable, "").strip().strip("/")
        if value and present and present != value:
            problems.append(
                f"{variable} is {present}, but STORAGE_URL names {value}. Unset {variable}, or "
                "correct one of them."
            )
        if value:
            values[variable] = value
    problems += unusable_prefix(found, values.get("BACKUP_PREFIX", ""))
    if found.scheme == "s3":
        del values["STORAGE_URL"]
    return problems


def replace(values: MutableMapping[str, str], url: str) -> None:
    """Remove the settings that another ``STORAGE_URL``, given for one command, takes the place of.

    The other settings of the store stay: its keys may open that place too.
    """
    try:
        found = parse(url)
    except ValueError:
        return  # the setting is refused when it is checked
    values.pop("S3_BUCKET", None)
    if found.prefix:
        values.pop("BACKUP_PREFIX", None)
    if found.scheme != "s3":
        values.pop("S3_OBJECT_LOCK_DAYS", None)


def unusable_prefix(url: StoreUrl | None, prefix: str) -> list[str]:
    """Return the problem of a prefix that a store would change, if there is one."""
    if url is None or url.scheme != "azure" or "\\" not in prefix:
        return []
    problem = (
        "BACKUP_PREFIX must not contain '\\' for Azure, which stores it as '/', so that no "
        "backup would be found again. Write '/' instead."
    )
    return [problem]


def secret_parts(value: str) -> list[str]:
    """Return the key and the signature in a connection string or a SAS token of Azure.

    Messages of libraries may quote them alone.
    """
    found = re.findall(r"(?:AccountKey=|\bsig=)([^;&]+)", value, re.IGNORECASE)
    return [each for part in found for each in {part, unquote(part)}]


def identity_secrets(values: Mapping[str, str]) -> list[str]:
    """Return the secrets of an identity of Azure in the environment."""
    return [values[name] for name in _SECRET if values.get(name)]


def without_prefix(url: str) -> str:
    """Return the same URL of a bucket or a container, without the prefix in it."""
    found = parse(url.strip())
    place = f"{found.account}/{found.name}" if found.account else found.name
    return f"{found.scheme}://{place}"
