"""The place of backups: two stores with the same place would hold the same objects."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from pgstash.settings import regions
from pgstash.settings.model import Settings

_PORTS = {"http": 80, "https": 443}


def of(settings: Settings) -> tuple[str, ...] | None:
    """Return what distinguishes the place from others; None if no store is configured."""
    url, prefix = settings.store, settings.backup_prefix
    if url is None:
        if settings.s3_bucket is None:
            return None
        return ("s3", _host(settings.s3_url or ""), settings.s3_bucket, prefix)
    if url.scheme == "file":
        return ("file", *_folder(Path(url.name) / prefix))
    where = (
        settings.storage_emulator_host if url.scheme == "gs" else settings.azure_storage_endpoint
    )
    return (url.scheme, _host(where or ""), url.account, url.name, prefix)


def _folder(path: Path) -> tuple[str, ...]:
    """Return what identifies a folder: its inode, or its real path if it does not exist yet.

    One folder may have several paths: by links, by mounts, or with a part of the prefix in it.
    """
    try:
        found = path.stat()
    except OSError:
        return (os.path.realpath(path),)
    return (str(found.st_dev), str(found.st_ino)) if found.st_ino else (os.path.realpath(path),)


def _host(url: str) -> str:
    """Return host and port; on AWS, the name of a bucket is unique in all regions."""
    if regions.is_of_aws(url):
        return "AWS"
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or _PORTS.get(parts.scheme)}"
