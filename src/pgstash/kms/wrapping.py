"""Wraps the random passphrase of a backup by keys of KMS, and unwraps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pgstash.counting import counted
from pgstash.errors import CorruptedError, EncryptionError, PipelineError
from pgstash.format import kms as stored
from pgstash.format.kms import Wrap
from pgstash.pipeline import age


class Kms(Protocol):
    """The service. Both methods raise EncryptionError, a retryable one if it does not answer."""

    def encrypt(self, arn: str, plain: bytes, context: Mapping[str, str]) -> Wrap:
        """Encrypt up to 4 KiB with the key that an ARN names."""

    def decrypt(self, wrap: Wrap, context: Mapping[str, str]) -> bytes:
        """Decrypt what that key encrypted with that context. Raises CorruptedError, too."""


Open = Callable[[], Kms]
"""Returns the service. Its library is slow to import, so it is opened when it is needed."""


def not_configured() -> Kms:
    """Raise EncryptionError: KMS cannot be asked here."""
    raise EncryptionError("AWS KMS cannot be asked here")


def wrap(kms: Kms, passphrase: str, backup_id: str, arns: Sequence[str]) -> list[Wrap]:
    """Return the passphrase, encrypted by each key. Raises what :class:`Kms` raises."""
    context = stored.context(backup_id)
    return [kms.encrypt(each, passphrase.encode(), context) for each in arns]


def unwrap(kms: Kms, what: str, wraps: Sequence[Wrap], backup_id: str) -> str:
    """Return the passphrase by the first key that decrypts it; ``what`` names the object.

    Raises CorruptedError if all are damaged, EncryptionError if no key can be used.
    """
    failed: list[PipelineError] = []
    for each in wraps:
        try:
            plain = kms.decrypt(each, stored.context(backup_id))
        except PipelineError as error:
            failed.append(error)
            continue
        # Whoever can write to the store can name a key of their own.
        passphrase = plain.decode("ascii", errors="replace")
        if age.is_passphrase(passphrase):
            return passphrase
        failed.append(CorruptedError(f"{what} holds no passphrase of pgstash: it was replaced"))
    raise _all(what, failed)


def _all(what: str, failed: Sequence[PipelineError]) -> PipelineError:
    """Return one error for several keys, with the hint of the one that is easiest to fix."""
    first = next((each for each in failed if isinstance(each, EncryptionError)), failed[0])
    if len(failed) == 1:
        return first
    reasons = "; ".join(each.message for each in failed)
    return type(first)(
        f"none of {counted(len(failed), 'key')} opens {what}: {reasons}",
        hint=first.hint,
        retryable=any(each.retryable for each in failed),
    )
