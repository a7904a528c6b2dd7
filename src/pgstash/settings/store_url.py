"""The URL of a store: which store it names, and the settings that follow from it."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote, urlsplit

Scheme = Literal["file", "s3", "azure"]

EXPECTED = "file:///directory, s3://bucket/prefix or azure://account/container/prefix"
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}", re.ASCII)
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
    path = unquote(parts.path)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or path in ("", "/"):
            raise ValueError(
                "must be file:// and the absolute path of a directory: file:///backups"
            )
        return StoreUrl("file", path)
    if parts.scheme not in ("s3", "azure"):
        raise ValueError("does not begin with file://, s3:// or azure://")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError("must not contain credentials, '?' or '#'")
    if not parts.netloc:
        raise ValueError(f"must name a {'bucket' if parts.scheme == 's3' else 'storage account'}")
    if parts.scheme == "s3":
        return StoreUrl("s3", parts.netloc, prefix=path.strip("/"))
    container, _, prefix = path.strip("/").partition("/")
    if not _ACCOUNT.fullmatch(parts.netloc):
        raise ValueError(
            "must begin with the name of a storage account, which has 3 to 24 lower-case letters "
            "and digits: azure://account/container"
        )
    if not _CONTAINER.fullmatch(container):
        raise ValueError(
            "must name a container, which has 3 to 63 lower-case letters, digits and single "
            "hyphens: azure://account/container"
        )
    return StoreUrl("azure", container, parts.netloc, prefix.strip("/"))


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
    if found.scheme == "s3":
        del values["STORAGE_URL"]
    return problems


def secret_parts(value: str) -> list[str]:
    """Return the key and the signature in a connection string or a SAS token of Azure.

    Messages of libraries may quote them alone.
    """
    found = re.findall(r"(?:AccountKey=|\bsig=)([^;&]+)", value, re.IGNORECASE)
    return [each for part in found for each in {part, unquote(part)}]
