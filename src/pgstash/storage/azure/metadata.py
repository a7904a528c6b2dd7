"""The names of metadata, as Azure accepts them.

They must be identifiers of C#, so they cannot have the hyphens that pgstash's names have.
https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_ESCAPED = re.compile(r"_([0-9a-f]{2})", re.ASCII)
_NOT_ALLOWED = re.compile(r"[^a-z0-9]|\A[0-9]", re.ASCII)


def encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata with names that Azure accepts: ``raw-bytes`` becomes ``raw_2dbytes``."""
    return {
        _NOT_ALLOWED.sub(lambda found: f"_{ord(found[0]):02x}", name.lower()): value
        for name, value in metadata.items()
    }


def decoded(metadata: Mapping[str, str] | None) -> dict[str, str]:
    """Return metadata with the names that were stored."""
    return {
        _ESCAPED.sub(lambda found: chr(int(found[1], 16)), name.lower()): value
        for name, value in (metadata or {}).items()
    }
