"""The preflight of the settings: report questionable ones; invalid ones were refused before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.check.finding import Finding


@dataclass(frozen=True, slots=True)
class Plan:
    """Facts about the settings.

    New backups are encrypted for ``recipients``, or with a passphrase if they are ``encrypted``.
    ``weak_key``, ``misspelt`` and ``odd_values`` are warnings in full sentences, ``notes`` are
    facts that the user should know.
    """

    encrypted: bool
    weak_key: str
    misspelt: Sequence[str]
    odd_values: Sequence[str]
    odd_value_remedy: str
    notes: Sequence[str]
    recipients: Sequence[str] = ()


def look(plan: Plan) -> Iterator[Finding]:
    """Yield what is questionable about the settings."""
    if not plan.misspelt and not plan.odd_values:
        yield Finding("configuration", "ok", "every setting is valid")
    for text in plan.misspelt:
        yield Finding("configuration", "warning", text, "Correct the name, or remove it.")
    for text in plan.odd_values:
        yield Finding("configuration", "warning", text, plan.odd_value_remedy)
    for text in plan.notes:
        yield Finding("configuration", "ok", text)
    if plan.weak_key:
        remedy = "Existing backups still need the old passphrase: keep it."
        yield Finding("encryption key", "warning", plan.weak_key, remedy)
    elif plan.recipients:
        what = f"AES-256, a random passphrase for each backup, for {', '.join(plan.recipients)}"
        yield Finding("encryption key", "ok", what)
    elif plan.encrypted:
        yield Finding("encryption key", "ok", "AES-256, and the passphrase is long")
    else:
        yield Finding("encryption key", "ok", "none: backups are stored unencrypted")
