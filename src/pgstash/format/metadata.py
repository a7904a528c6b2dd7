"""The metadata of stored objects: what can be read of a backup without its key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import quote

from pgstash.format import size_history
from pgstash.format.manifest import Manifest

# S3 keeps metadata in headers: ASCII, one line, 2 KB together
# (https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html).
_HEADER_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_LONGEST_HEADER = 255
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)

KEY_ID = "key-id"
"""The name of what distinguishes keys: see :attr:`pgstash.pipeline.encryption.Key.id`."""

SHA256 = "sha256"
"""The name of the digest of an archive as stored, in the metadata of its manifest."""

WRAPPED = "key-wrap"
"""The name of how the passphrase is wrapped: `age`, `kms` or both. Other backups lack it."""

RECIPIENTS = "recipients"
RECIPIENT_COUNT = "recipient-count"


def encoded(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata as they are stored."""
    return {key: header(value) for key, value in metadata.items()}


def header(value: str) -> str:
    """Percent-encode what a header cannot carry: non-ASCII, controls, spaces at the ends."""
    inner = _HEADER_SAFE if value == value.strip() else _HEADER_SAFE.strip()
    return quote(value, safe=inner, errors="surrogateescape")[:_LONGEST_HEADER]


def fits_headers(metadata: Mapping[str, str]) -> bool:
    """Return whether each store takes these names and values, as far as their characters decide.

    Names are tokens, and values printable ASCII without spaces at the ends (RFC 9110, 5.6.2).
    """
    return all(
        _TOKEN.fullmatch(name)
        and value.isascii()
        and value.isprintable()
        and value == value.strip()
        for name, value in metadata.items()
    )


def facts(manifest: Manifest, seconds: float) -> dict[str, str]:
    """Return the metadata of a manifest; ``seconds`` is how long the backup took."""
    size = figures(manifest)
    values = {
        "id": manifest.id,
        "raw-bytes": str(size.raw_bytes),
        "stored-bytes": str(manifest.stored_bytes),
        SHA256: manifest.sha256,
        "tables": str(size.tables),
        "rows": str(size.rows),
        "seconds": f"{seconds:.1f}",
        "server": manifest.server,
        **manifest.database.identity.metadata(),
    }
    return encoded(values)


def figures(manifest: Manifest) -> size_history.Figures:
    """Return the size of a backup."""
    return size_history.Figures(
        raw_bytes=manifest.raw_bytes,
        tables=len(manifest.tables),
        rows=sum(table.rows for table in manifest.tables),
    )
