"""The preflight of what is configured: all that could be wrong was refused, this is the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pgstash.check.finding import Finding


def look(*, encrypted: bool, weak_key: str, misspelt: Sequence[str]) -> Iterator[Finding]:
    """Yield what is said of the settings; the texts are what is unwise about them."""
    if not misspelt:
        yield Finding("configuration", "ok", "every setting is valid")
    for text in misspelt:
        yield Finding("configuration", "warning", text, "Correct the name, or remove it.")
    if weak_key:
        yield Finding("encryption key", "warning", weak_key, "Mind that old backups keep theirs.")
    elif encrypted:
        yield Finding("encryption key", "ok", "AES-256, and the passphrase is long")
    else:
        yield Finding("encryption key", "ok", "none: backups are stored unencrypted")
