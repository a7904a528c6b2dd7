"""The recipients of backups: public keys of age and SSH, and keys of AWS KMS by their ARNs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pgstash.counting import counted
from pgstash.format import kms
from pgstash.pipeline import age
from pgstash.pipeline.age import UnusableError

__all__ = ["UnusableError", "label", "labels", "of_age", "of_kms", "parse"]


def parse(text: str) -> list[str]:
    """Return the recipients of a list, separated by commas or ends of lines, without comments.

    Raises UnusableError if one of them is not a recipient, or if there is none.
    """
    entries = [entry for line in text.splitlines() for entry in _entries(line)]
    found: list[str] = []
    bad: list[str] = []
    for number, entry in enumerate(entries, 1):
        if entry.upper().startswith("AGE-SECRET-KEY-") or "PRIVATE KEY" in entry:
            raise UnusableError(
                "contains a secret key. Give the public key that belongs to it, which "
                "`age-keygen -y` prints"
            )
        recipient = entry if kms.is_arn(entry) else age.public_key(entry)
        if recipient is None:
            bad.append(str(number))
        elif recipient not in found:
            found.append(recipient)
    if bad:
        which = "entry" if len(bad) == 1 else "entries"
        raise UnusableError(
            f"has {counted(len(bad), 'recipient')} that cannot be used ({which} {', '.join(bad)} "
            f"of {len(entries)}). Give public keys: age1…, ssh-ed25519 … or ssh-rsa …, or ARNs of "
            "keys of AWS KMS: arn:aws:kms:…:key/… or arn:aws:kms:…:alias/…"
        )
    if not found:
        raise UnusableError("names no recipient")
    return found


def _entries(line: str) -> list[str]:
    line = line.strip()
    if line.startswith("#"):
        return []
    return [entry.strip() for entry in line.split(",") if entry.strip()]


def of_age(recipients: Iterable[str]) -> list[str]:
    """Return the public keys among recipients."""
    return [each for each in recipients if not kms.is_arn(each)]


def of_kms(recipients: Iterable[str]) -> list[str]:
    """Return the ARNs among recipients."""
    return [each for each in recipients if kms.is_arn(each)]


def label(recipient: str) -> str:
    """Return a short name of a public key; an ARN is its own name."""
    return recipient if kms.is_arn(recipient) else age.label(recipient)


def labels(recipients: Sequence[str]) -> str:
    """Return the labels of recipients, separated by commas."""
    return ", ".join(map(label, recipients))
