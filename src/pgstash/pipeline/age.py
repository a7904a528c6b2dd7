"""Wraps the random passphrase of a backup for several people, in the format of ``age``.

An age file (https://age-encryption.org/v1) is encrypted to public keys, the recipients; each of
the secret keys that belong to them, the identities, opens it. Its plain text is the passphrase,
then a line for each recipient. A recipient cannot be found out from an age file, and openssl reads
a passphrase up to the first end of line.

pyrage implements the format. Not every installation has it, so it is imported when it is needed.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgstash.counting import counted
from pgstash.errors import CorruptedError, EncryptionError

INSTALL = "pip install 'pgstash[age]'"

LARGEST = 1024 * 1024
"""The largest wrapped passphrase in bytes that is read, and so may be stored."""

RANDOM_BYTES = 32

_LABEL = "for "
_SSH = ("ssh-ed25519", "ssh-rsa")
_OPENSSH_KEY = re.compile(
    r"-----BEGIN OPENSSH PRIVATE KEY-----.+?-----END OPENSSH PRIVATE KEY-----", re.DOTALL
)
_ENCRYPTED = ("age-encryption.org/", "-----BEGIN AGE ENCRYPTED FILE-----")
_NONCE_AND_TAG = 16 + 16  # bytes around a payload of one chunk
# Redaction knows passphrases by this form.
_PASSPHRASE = re.compile(r"pgstash-key-[0-9a-f]{64}", re.ASCII)
_SHOWN_OF_KEY = 20  # of 62 characters: enough to distinguish keys, with 80 random bits


class UnusableError(ValueError):
    """A list of recipients or identities that cannot be used; the message quotes none of it."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """A passphrase and the recipients that it is wrapped for."""

    passphrase: str = field(repr=False)
    recipients: Sequence[str]


def new_passphrase(random: Callable[[int], bytes]) -> str:
    """Return a passphrase with 256 random bits. Redaction masks all text of this form."""
    return f"pgstash-key-{random(RANDOM_BYTES).hex()}"


def public_key(entry: str) -> str | None:
    """Return a public key without the comment that may follow it; None if it is no public key.

    Raises UnusableError if the library is missing.
    """
    found = _canonical(entry)
    return None if _parsed_recipient(found) is None else found


def is_passphrase(text: str) -> bool:
    """Return whether a text has the form of :func:`new_passphrase`."""
    return _PASSPHRASE.fullmatch(text) is not None


def _canonical(entry: str) -> str:
    """Return a recipient without the comment that may follow an SSH key."""
    words = entry.split()
    return " ".join(words[:2]) if words[0] in _SSH else entry


def _parsed_recipient(recipient: str) -> Any:  # noqa: ANN401 - pyrage has no types
    pyrage = _pyrage()
    kind = pyrage.ssh if recipient.startswith(_SSH) else pyrage.x25519
    try:
        return kind.Recipient.from_str(recipient)
    except pyrage.RecipientError:
        return None


def identities(text: str) -> list[Any]:
    """Return the identities in the text of a file of age-keygen, or of SSH keys.

    Raises UnusableError if there is none, or if one cannot be used.
    """
    pyrage = _pyrage()
    if text.lstrip().startswith(_ENCRYPTED):
        raise UnusableError(
            "is encrypted with a passphrase itself. Decrypt it with `age -d`, and give the result"
        )
    blocks = _OPENSSH_KEY.findall(text)
    lines = [line.strip() for line in _OPENSSH_KEY.sub("", text).splitlines()]
    try:
        found: list[Any] = [
            *(pyrage.ssh.Identity.from_buffer(f"{block}\n".encode()) for block in blocks),
            *(pyrage.x25519.Identity.from_str(each) for each in lines if each and each[0] != "#"),
        ]
    except pyrage.IdentityError:
        raise UnusableError(
            "contains something else than secret keys of age-keygen (AGE-SECRET-KEY-1…) and "
            "OpenSSH keys without a passphrase"
        ) from None  # the cause may quote it
    if not found:
        raise UnusableError("contains no secret key")
    return found


def label(recipient: str) -> str:
    """Return a short name of a recipient: the beginning of its key, or an SSH fingerprint."""
    kind, _, key = recipient.partition(" ")
    if not key:
        return kind[:_SHOWN_OF_KEY]
    try:
        blob = base64.b64decode(key, validate=True)
    except ValueError:
        return kind[:_SHOWN_OF_KEY]
    # The beginning of what `ssh-keygen -l` prints.
    return (
        f"{kind}:SHA256:{base64.b64encode(hashlib.sha256(blob).digest()).decode()[:_SHOWN_OF_KEY]}"
    )


def wrap(wrapped: Wrapped) -> bytes:
    """Return an age file with the passphrase for its recipients.

    Raises EncryptionError, and UnusableError if the library is missing.
    """
    pyrage = _pyrage()
    lines = [wrapped.passphrase, *(f"{_LABEL}{each}" for each in wrapped.recipients)]
    parsed = [_parsed_recipient(each) for each in wrapped.recipients]
    try:
        packed: bytes = pyrage.encrypt("\n".join([*lines, ""]).encode(), parsed)
    except (pyrage.EncryptError, TypeError) as error:
        raise EncryptionError("the passphrase could not be wrapped for the recipients") from error
    if len(packed) > LARGEST:
        raise EncryptionError(
            f"{counted(len(parsed), 'recipient')} are more than fit into {LARGEST} bytes"
        )
    return packed


def unwrap(what: str, packed: bytes, identity: str) -> Wrapped:
    """Return the content of an age file that :func:`wrap` wrote; ``what`` is its name.

    ``identity`` is what :func:`identities` reads. Raises CorruptedError if none of these opens it,
    or if it is damaged, which pyrage does not distinguish. Raises EncryptionError if there is no
    usable identity.
    """
    try:
        pyrage, own = _pyrage(), identities(identity)
    except UnusableError as error:
        raise EncryptionError(f"{what} cannot be opened: the identity {error}") from error
    try:
        text: bytes = pyrage.decrypt(packed, own)
    except pyrage.DecryptError as error:
        raise CorruptedError(
            f"{what} does not open with the identity: it belongs to none of the recipients, or "
            "the object is damaged",
            hint="BACKUP_DECRYPTION_IDENTITY must be the secret key of one of the recipients: see "
            "`pgstash keys list`.",
        ) from error
    return _read(what, text)


def refuse_damaged(packed: bytes) -> None:
    """Raise CorruptedError unless this is an age file with a header and a passphrase.

    That is as much as shows without an identity. The library is not needed
    (https://age-encryption.org/v1).
    """
    if packed.startswith(_ENCRYPTED[1].encode()):
        whole = packed.rstrip().endswith(b"-----END AGE ENCRYPTED FILE-----")
    else:
        header, _, rest = packed.partition(b"\n--- ")
        _, _, payload = rest.partition(b"\n")
        is_header = header.startswith(_ENCRYPTED[0].encode())
        whole = is_header and len(payload) > _NONCE_AND_TAG
    if not whole:
        raise CorruptedError("it is not a whole age file")


def _read(what: str, text: bytes) -> Wrapped:
    try:
        passphrase, *lines = text.decode("ascii").splitlines()
    except ValueError:
        passphrase, lines = "", []
    if not is_passphrase(passphrase):
        raise CorruptedError(f"{what} holds no passphrase of pgstash: it was replaced")
    return Wrapped(
        passphrase, [each.removeprefix(_LABEL) for each in lines if each.startswith(_LABEL)]
    )


def _pyrage() -> Any:  # noqa: ANN401 - pyrage has no types
    """Return the library. Raises UnusableError if it is not installed."""
    try:
        import pyrage  # noqa: PLC0415 - not everybody has it, or needs it
    except ImportError as error:
        raise UnusableError(
            f"needs a library that is not installed. Install it: {INSTALL}"
        ) from error
    return pyrage
