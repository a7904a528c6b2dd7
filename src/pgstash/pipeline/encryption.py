"""AES-256-CBC in the format of ``openssl enc -aes-256-cbc -salt -pbkdf2``, in both directions.

The format is ``Salted__``, eight bytes of salt, then the ciphertext with PKCS#7 padding. Key and IV
are 48 bytes of PBKDF2-HMAC-SHA256 of passphrase and salt, with 10,000 rounds unless more are
requested (``-iter``): the defaults of that command
(https://docs.openssl.org/master/man1/openssl-enc/). CBC does not detect tampering; the digests
under an HMAC in the manifest do.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from zlib_ng import zlib_ng

from pgstash.errors import CorruptedError, EncryptionError

ROUNDS = 10_000
MOST_ROUNDS = 10_000_000
"""With this many, each object takes several seconds. More are refused, also when reading: whoever
can write to the store could otherwise keep a restore busy for hours."""

SALT_BYTES = 8
_MAGIC = b"Salted__"
_HEADER_BYTES = len(_MAGIC) + SALT_BYTES
_KEY_BYTES = 32
_BLOCK = 16
_ID_BYTES = 8

_SEALED_LEVEL = 7
_GZIP_FORMAT = 31  # window of 2^15 bytes, plus 16 for a gzip header and trailer (zlib's manual)


@dataclass(frozen=True, slots=True)
class Key:
    """The output of PBKDF2 for a passphrase and one object's salt; its repr shows only the salt."""

    salt: bytes
    _derived: bytes = field(repr=False)

    @classmethod
    def derive(cls, passphrase: str, salt: bytes, rounds: int = ROUNDS) -> Key:
        """Derive the key of one object from the passphrase and the object's salt.

        Raises CorruptedError if there are fewer or more rounds than pgstash uses.
        """
        if not ROUNDS <= rounds <= MOST_ROUNDS:
            raise CorruptedError(
                f"{rounds} rounds of PBKDF2 are not between {ROUNDS} and {MOST_ROUNDS}"
            )
        derived = hashlib.pbkdf2_hmac(
            "sha256", passphrase.encode(), salt, rounds, _KEY_BYTES + _BLOCK
        )
        return cls(salt, derived)

    def authenticate(self, message: bytes) -> str:
        """Return the HMAC-SHA256 of a message, in hex.

        The HMAC key is derived by HKDF (RFC 5869) from the PBKDF2 output, so that guessing the
        passphrase costs no less here than at the ciphertext.
        """
        hkdf = HKDF(hashes.SHA256(), length=32, salt=None, info=b"pgstash manifest v1")
        return hmac.new(hkdf.derive(self._derived), message, hashlib.sha256).hexdigest()

    @property
    def id(self) -> str:
        """The salt, and 64 bits that only this passphrase gives with it, for metadata.

        They are derived like the key of the HMAC, for the same reason: to try a passphrase on them
        costs as much as to try it on the ciphertext. Another object of the same passphrase has
        another id, because it has another salt.
        """
        hkdf = HKDF(hashes.SHA256(), length=_ID_BYTES, salt=None, info=b"pgstash key id v1")
        identifying = hkdf.derive(self._derived)
        return f"{self.salt.hex()}:{identifying.hex()}"

    def _cipher(self, before: bytes | None = None) -> Cipher[modes.CBC]:
        """Return the cipher from the beginning, or after the block ``before``."""
        return Cipher(
            algorithms.AES(self._derived[:_KEY_BYTES]),
            modes.CBC(self._derived[_KEY_BYTES:] if before is None else before),
        )


def encrypt(chunks: Iterable[bytes], key: Key) -> Iterator[bytes]:
    """Yield the header, then the ciphertext of the chunks. Raises EncryptionError."""
    try:
        encryptor = key._cipher().encryptor()  # noqa: SLF001 - the key is this module's own
    except (UnsupportedAlgorithm, ValueError) as error:
        raise EncryptionError(f"this OpenSSL does not offer AES-256-CBC: {error}") from error
    yield _MAGIC + key.salt
    plain_bytes = 0
    for chunk in chunks:
        plain_bytes += len(chunk)
        yield encryptor.update(chunk)
    padding = _BLOCK - plain_bytes % _BLOCK
    yield encryptor.update(bytes([padding]) * padding) + encryptor.finalize()


def stored_range(offset: int, length: int) -> tuple[int, int]:
    """Return the offset and the length to read of an encrypted object for a plain range.

    To decrypt a block takes the block before it, which is read too (NIST SP 800-38A, 6.2).
    ``length`` is more than 0.
    """
    first, last = offset // _BLOCK, (offset + length - 1) // _BLOCK
    return first * _BLOCK, (last - first + 2) * _BLOCK


def decrypt_range(stored: Iterable[bytes], key: Key, offset: int, length: int) -> Iterator[bytes]:
    """Yield a plain range from the bytes that :func:`stored_range` names.

    None of it is verified. If the object is shorter, less is yielded.
    """
    source, before = iter(stored), b""
    while len(before) < _BLOCK and (chunk := next(source, b"")):
        before += chunk
    cipher = key._cipher() if offset < _BLOCK else key._cipher(before[:_BLOCK].ljust(_BLOCK))  # noqa: SLF001 - the key is this module's own
    decryptor = cipher.decryptor()
    skip, left = offset % _BLOCK, length
    for chunk in itertools.chain([before[_BLOCK:]], source):
        plain = decryptor.update(chunk)
        wanted = plain[skip : skip + left]
        skip = max(0, skip - len(plain))
        left -= len(wanted)
        yield wanted


def is_whole(head: bytes, tail: bytes, key: Key, plain_bytes: int) -> bool:
    """Return whether an object begins and ends as :func:`encrypt` writes it.

    ``head`` is its first block, ``tail`` are its last two; ``plain_bytes`` is its plain size.
    """
    padding = _BLOCK - plain_bytes % _BLOCK
    cipher = key._cipher() if plain_bytes < _BLOCK else key._cipher(tail[:_BLOCK].ljust(_BLOCK))  # noqa: SLF001 - the key is this module's own
    last = cipher.decryptor().update(tail[-_BLOCK:])
    return head == _MAGIC + key.salt and last[-padding:] == bytes([padding]) * padding


def sealed(text: bytes, key: Key | None) -> bytes:
    """Return a small object as companions are stored: compressed, encrypted if there is a key."""
    # The schema of 3,000 tables is 5 MB: zlib takes 8 times as long, and saves 3 % more.
    compressed = zlib_ng.compress(text, _SEALED_LEVEL, _GZIP_FORMAT)
    return b"".join(encrypt([compressed], key)) if key else compressed


def decrypt(chunks: Iterable[bytes], passphrase: str, rounds: int = ROUNDS) -> Iterator[bytes]:
    """Yield the plaintext of an object that :func:`encrypt` or ``openssl enc`` wrote.

    Raises CorruptedError if the header or the end is missing, or the padding is wrong: by damage or
    a wrong passphrase, which are the same to CBC. This does not verify the bytes yielded before.
    """
    source = iter(chunks)
    header = b""
    for chunk in source:
        header += chunk
        if len(header) >= _HEADER_BYTES:
            break
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        raise CorruptedError(
            "not an encrypted object: it does not begin like the output of openssl enc"
        )
    key = Key.derive(passphrase, header[len(_MAGIC) : _HEADER_BYTES], rounds)
    decryptor = key._cipher().decryptor()  # noqa: SLF001 - the key is this module's own

    # The last block is padding and is held back until it is known to be the last.
    held = decryptor.update(header[_HEADER_BYTES:])
    cipher_bytes = len(header) - _HEADER_BYTES
    for chunk in source:
        cipher_bytes += len(chunk)
        plain = held + decryptor.update(chunk)
        keep = max(0, len(plain) - _BLOCK)
        held = plain[keep:]
        if keep:
            yield plain[:keep]
    if cipher_bytes == 0 or cipher_bytes % _BLOCK:
        raise CorruptedError("the encrypted object is cut short")
    padding = held[-1]
    if not 1 <= padding <= _BLOCK or held[-padding:] != bytes([padding]) * padding:
        raise CorruptedError("the last block does not decrypt: a wrong key, or damage")
    yield held[:-padding]
