"""Finds the key of an encrypted backup: unwraps it, or chooses among passphrases.

The metadata of the archive identify the key and hold the number of rounds of PBKDF2. They are not
authenticated, so they only choose among the user's own keys: the HMAC of the manifest decides.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pgstash.errors import CorruptedError, EncryptionError, PipelineError, UnverifiedError
from pgstash.format import kms as stored_kms
from pgstash.format import metadata as stored_metadata
from pgstash.kms import wrapping
from pgstash.pipeline import age, encryption
from pgstash.pipeline import recipients as recipient_lists
from pgstash.repository.access import Access
from pgstash.repository.script import GZIP_MAGIC
from pgstash.storage.interface import Storage

_ROUNDS = re.compile(r"aes-256-cbc pbkdf2 (\d{1,12})", re.ASCII)
_ID = re.compile(r"([0-9a-f]{16}):[0-9a-f]{16}", re.ASCII)

_ALLOWED = range(encryption.ROUNDS, encryption.MOST_ROUNDS + 1)

# The header of openssl, and the first block of what was encrypted: gzip's header (RFC 1952).
BEGINNING = 32
"""The bytes of an encrypted object that :func:`opens` needs."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The objects of an encrypted backup that decide about its key.

    ``metadata`` are those of the archive. ``wrapped`` and ``kms`` are the keys of the passphrase
    wrapped for public keys and by KMS, if there are such, and ``sample`` that of an object that is
    encrypted with the passphrase. ``id`` is that of the backup.
    """

    name: str
    metadata: Mapping[str, str]
    wrapped: str | None
    sample: str | None
    kms: str | None = None
    id: str = ""

    @property
    def is_wrapped(self) -> bool:
        """Whether there is a wrapped passphrase."""
        return self.wrapped is not None or self.kms is not None


def settled(storage: Storage, stored: Stored, access: Access) -> Access:
    """Return how to read a backup: with the one passphrase and the rounds that fit.

    Raises EncryptionError if there is no key for it, CorruptedError if it was encrypted with
    another key, UnverifiedError if it is for recipients and ``access`` does not allow that,
    StorageError.
    """
    rounds = _recorded_rounds(stored)
    if for_recipients(stored.metadata, wrapped=stored.is_wrapped):
        _refuse_for_recipients(stored.name, access)
        access = replace(access, passphrase=unwrapped(storage, stored, access), older=())
    elif access.passphrases and (key_id := stored.metadata.get(stored_metadata.KEY_ID)):
        return _by_id(stored.name, key_id, replace(access, rounds=rounds or encryption.ROUNDS))
    possible = [rounds] if rounds else [access.rounds, encryption.ROUNDS]
    candidates = [
        replace(access, passphrase=passphrase, rounds=each, older=())
        for passphrase, each in itertools.product(access.passphrases, dict.fromkeys(possible))
    ]
    if len(candidates) > 1 and stored.sample is not None:
        with storage.read(stored.sample) as chunks:
            beginning = _beginning(chunks)
        candidates = [each for each in candidates if opens(beginning, each)] or candidates
    return candidates[0] if candidates else replace(access, rounds=possible[0])


def for_recipients(metadata: Mapping[str, str], *, wrapped: bool) -> bool:
    """Return whether a backup is for recipients, by the metadata of its archive.

    Only if these are lost it counts that there is a ``wrapped`` passphrase. Otherwise whoever may
    add objects to the store could add one to a backup with another passphrase.
    """
    recorded = "encryption" in metadata
    return stored_metadata.WRAPPED in metadata or (wrapped and not recorded)


def _refuse_for_recipients(name: str, access: Access) -> None:
    if access.only_passphrase and not access.unverified:
        raise UnverifiedError(
            f"{name} is encrypted for recipients, and new backups with BACKUP_ENCRYPTION_KEY. "
            "Anyone who knows the public keys and can write to the store may have put it there",
            hint="If new backups are for recipients, set BACKUP_ENCRYPTION_RECIPIENTS here too. If "
            "it is from before they had a passphrase, read it with --unverified. Its digests are "
            "still checked.",
        )


def _beginning(chunks: Iterable[bytes]) -> bytes:
    found = b""
    for chunk in chunks:
        found += chunk
        if len(found) >= BEGINNING:
            break
    return found


def opens(beginning: bytes, access: Access) -> bool:
    """Return whether an object that begins so decrypts to something that gzip compressed.

    This is no proof: one of 16 million wrong keys passes.
    """
    if access.passphrase is None:
        return False
    salt = beginning[8 : 8 + encryption.SALT_BYTES]
    key = encryption.Key.derive(access.passphrase, salt, access.rounds)
    found = b"".join(encryption.decrypt_range([beginning[:BEGINNING]], key, 0, 3))
    return found.startswith(GZIP_MAGIC + b"\x08")


def _recorded_rounds(stored: Stored) -> int | None:
    recorded = stored.metadata.get("encryption", "")
    found = _ROUNDS.fullmatch(recorded)
    if not found:
        return None
    rounds = int(found[1])
    if rounds not in _ALLOWED:
        raise CorruptedError(
            f"the metadata of {stored.name} name {rounds} rounds of PBKDF2, which pgstash does not "
            "use",
            hint=f"It uses {encryption.ROUNDS} to {encryption.MOST_ROUNDS}. Were the metadata "
            "changed?",
        )
    return rounds


def _by_id(name: str, key_id: str, access: Access) -> Access:
    """Return the passphrase that gives the recorded id. Raises CorruptedError if none does."""
    match = _ID.fullmatch(key_id)
    if not match:
        raise CorruptedError(f"the metadata of {name} name a key in a form that is not pgstash's")
    for passphrase in access.passphrases:
        key = encryption.Key.derive(passphrase, bytes.fromhex(match[1]), access.rounds)
        if key.id == key_id:
            return replace(access, passphrase=passphrase, older=())
    raise CorruptedError(
        f"{name} was encrypted with another key (id {key_id})",
        hint="Set BACKUP_ENCRYPTION_KEY to its passphrase, or add that to "
        "BACKUP_ENCRYPTION_OLD_KEYS.",
    )


def fits(key_id: str, recorded: str, passphrase: str) -> bool:
    """Return whether a passphrase gives an id; ``recorded`` is ``encryption`` of the metadata."""
    match, rounds = _ID.fullmatch(key_id), _ROUNDS.fullmatch(recorded)
    if not match or not rounds or int(rounds[1]) not in _ALLOWED:
        return False
    salt = bytes.fromhex(match[1])
    return encryption.Key.derive(passphrase, salt, int(rounds[1])).id == key_id


def unwrapped(storage: Storage, stored: Stored, access: Access) -> str:
    """Return the random passphrase of a backup. Raises what :func:`settled` raises.

    An identity opens it without a request. Without one, or if it is that of someone else, KMS is
    asked, if one of its keys is a recipient.
    """
    if stored.kms is None:
        return open_wrapped(storage, stored, access).passphrase
    failed: PipelineError | None = None
    if access.identity is not None and stored.wrapped is not None:
        try:
            return open_wrapped(storage, stored, access).passphrase
        except PipelineError as error:
            failed = error
    try:
        wraps = kms_wraps(storage, stored)
        return wrapping.unwrap(access.kms(), stored.kms, wraps, stored.id)
    except PipelineError as error:
        raise _neither(stored, error, failed) from error


def _neither(stored: Stored, error: PipelineError, failed: PipelineError | None) -> PipelineError:
    """Return the error of KMS, with why the identity ``failed``, or that one would do too."""
    message, hint = error.message, error.hint
    if failed is not None:
        message = f"{message}. The identity does not open it either: {failed.message}"
    elif stored.wrapped is not None:
        hint += " Or set BACKUP_DECRYPTION_IDENTITY to the secret key of one of the recipients."
    return type(error)(message, hint=hint.strip(), retryable=error.retryable)


def kms_wraps(storage: Storage, stored: Stored) -> list[stored_kms.Wrap]:
    """Return the passphrase as keys of KMS wrapped it; none if there is no such object.

    Raises CorruptedError, StorageError.
    """
    if stored.kms is None:
        return []
    with storage.read(stored.kms) as chunks:
        return stored_kms.load(stored.kms, b"".join(_limited(chunks)), stored.id)


def open_wrapped(storage: Storage, stored: Stored, access: Access) -> age.Wrapped:
    """Return the passphrase with its recipients. Raises what :func:`settled` raises."""
    if stored.wrapped is None:
        raise CorruptedError(
            f"the wrapped passphrase of {stored.name} is missing, so nobody can decrypt the backup",
            hint="The object ends in .key.age or .key.kms and lies next to the archive. Was it "
            "deleted, or not copied?",
        )
    if access.identity is None:
        found = storage.head(stored.wrapped).metadata.get(stored_metadata.RECIPIENTS, "")
        named = f" ({found})" if found.isascii() and found.isprintable() and found else ""
        raise EncryptionError(
            f"{stored.name} is encrypted for recipients, and there is no identity to read it with",
            hint=f"Set BACKUP_DECRYPTION_IDENTITY to the secret key of one of the recipients{named}"
            ", or to the path of its file.",
        )
    with storage.read(stored.wrapped) as chunks:
        packed = b"".join(_limited(chunks))
    return age.unwrap(stored.wrapped, packed, access.identity)


def recipients_metadata(recipients: Sequence[str]) -> dict[str, str]:
    """Return the recipients, as far as metadata have room for them, and their number."""
    return {
        stored_metadata.RECIPIENTS: recipient_lists.labels(recipients),
        stored_metadata.RECIPIENT_COUNT: str(len(recipients)),
    }


def _limited(chunks: Iterable[bytes]) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > age.LARGEST:
            raise CorruptedError("a wrapped passphrase is larger than any that pgstash writes")
        yield chunk
