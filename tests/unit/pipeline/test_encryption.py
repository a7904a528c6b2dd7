"""Encryption is openssl's own format in both directions, and damage is never silent."""

from __future__ import annotations

import os
import random
import subprocess
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgstash.errors import CorruptedError
from pgstash.pipeline.encryption import (
    ROUNDS,
    Key,
    decrypt,
    decrypt_range,
    encrypt,
    is_whole,
    stored_range,
)

PASSPHRASE = "correct horse battery staple"
SALT = bytes(range(8))
KEY = Key.derive(PASSPHRASE, SALT)
# Printable text only: no byte of it can pass for padding, so every cut must be seen. (A cut
# after a block that ends in what looks like padding is what the manifest's digests are for.)
TEXT = b"All happy families are alike; each unhappy family is unhappy in its own way."
SIZES = [*range(101), 4095, 4096, 4097, 1024 * 1024]


def openssl(direction: str, data: bytes, passphrase: str = PASSPHRASE) -> bytes:
    command = ["openssl", "enc", direction, "-aes-256-cbc", "-pbkdf2", "-pass", "env:KEY"]
    environment = {"PATH": os.environ["PATH"], "KEY": passphrase}
    return subprocess.run(
        command, input=data, stdout=subprocess.PIPE, check=True, env=environment
    ).stdout


def cut(data: bytes, positions: list[int]) -> list[bytes]:
    edges = [0, *sorted(position % (len(data) + 1) for position in positions), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - the same each time


@pytest.mark.parametrize("size", SIZES)
def test_openssl_opens_ours_and_we_open_openssls(size: int) -> None:
    plain = noise(size)
    ours = b"".join(encrypt([plain], KEY))
    assert openssl("-d", ours) == plain
    theirs = openssl("-salt", plain)
    assert len(theirs) == len(ours)
    assert b"".join(decrypt([theirs], PASSPHRASE)) == plain


@pytest.mark.parametrize("passphrase", ["pässwörd 密码 🔑", " ", "a" * 500, "$'\"\\`"])
def test_passphrases_are_taken_as_openssl_takes_them(passphrase: str) -> None:
    ours = b"".join(encrypt([TEXT], Key.derive(passphrase, SALT)))
    assert openssl("-d", ours, passphrase) == TEXT
    assert b"".join(decrypt([openssl("-salt", TEXT, passphrase)], passphrase)) == TEXT


@given(st.binary(max_size=200), st.lists(st.integers(0, 250)), st.lists(st.integers(0, 250)))
@example(b"x" * 64, [16, 32, 48], [16, 32, 48, 64, 80])
@example(b"", [], list(range(33)))
def test_chunks_do_not_matter(plain: bytes, coming: list[int], going: list[int]) -> None:
    whole = b"".join(encrypt([plain], KEY))
    assert b"".join(encrypt(cut(plain, coming), KEY)) == whole
    assert b"".join(decrypt(cut(whole, going), PASSPHRASE)) == plain


def test_byte_by_byte() -> None:
    stored = b"".join(encrypt([TEXT[i : i + 1] for i in range(len(TEXT))], KEY))
    assert openssl("-d", stored) == TEXT
    single = [stored[i : i + 1] for i in range(len(stored))]
    assert b"".join(decrypt(single, PASSPHRASE)) == TEXT


def test_nothing_is_held_back_but_the_last_block() -> None:
    stored = b"".join(encrypt([noise(100_000)], KEY))
    chunks = [stored[i : i + 1000] for i in range(0, len(stored), 1000)]
    sent = received = 0
    reader = decrypt((chunk for chunk in chunks if (sent := sent + len(chunk))), PASSPHRASE)
    for plain in reader:
        received += len(plain)
        assert sent - received <= 1000 + 16 + 32


@pytest.mark.parametrize("whole", [True, False], ids=["one chunk", "byte by byte"])
def test_a_cut_at_any_byte_is_an_error(*, whole: bool) -> None:
    stored = b"".join(encrypt([TEXT], KEY))
    for end in range(len(stored)):
        cut_short = stored[:end]
        chunks = [cut_short] if whole else [cut_short[i : i + 1] for i in range(end)]
        with pytest.raises(CorruptedError):
            list(decrypt(chunks, PASSPHRASE))


def test_trailing_bytes_are_an_error() -> None:
    stored = b"".join(encrypt([TEXT], KEY))
    for extra in range(1, 49):
        with pytest.raises(CorruptedError):
            list(decrypt([stored, b"\0" * extra], PASSPHRASE))


def test_two_objects_one_after_the_other_are_an_error() -> None:
    stored = b"".join(encrypt([TEXT], KEY))
    plain = b""
    try:
        plain = b"".join(decrypt([stored, stored], PASSPHRASE))
    except CorruptedError:
        return
    # The end of the second is right as openssl reads it; what precedes it must not be the text.
    assert plain != TEXT
    assert openssl("-d", stored + stored) == plain


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"Salted__",
        b"Salted__1234567",
        b"Salted__12345678",
        b"salted__" + bytes(40),
        b"\x1f\x8b",
    ],
)
def test_what_is_not_encrypted_is_an_error(stored: bytes) -> None:
    with pytest.raises(CorruptedError):
        list(decrypt([stored], PASSPHRASE))
    with pytest.raises(CorruptedError):
        list(decrypt([], PASSPHRASE))


def test_a_wrong_passphrase_is_an_error_that_says_so() -> None:
    stored = b"".join(encrypt([TEXT], KEY))
    with pytest.raises(CorruptedError, match="wrong key") as caught:
        list(decrypt([stored], "another"))
    assert "BACKUP_ENCRYPTION_KEY" in caught.value.hint


def test_padding_is_checked_whole() -> None:
    """Change each of 16 bytes of padding through the ciphertext block before it (CBC)."""
    stored = bytearray(b"".join(encrypt([b"0123456789abcdef"], KEY)))
    for position in range(16, 32):
        changed = bytearray(stored)
        changed[position] ^= 0x40
        with pytest.raises(CorruptedError):
            list(decrypt([bytes(changed)], PASSPHRASE))


def test_the_header_holds_the_salt() -> None:
    stored = b"".join(encrypt([TEXT], KEY))
    assert stored[:16] == b"Salted__" + SALT


def test_rounds_are_those_of_openssl() -> None:
    command = ["openssl", "enc", "-aes-256-cbc", "-pbkdf2", "-iter", str(ROUNDS), "-P"]
    options = ["-S", SALT.hex(), "-pass", "env:KEY"]
    environment = {"PATH": os.environ["PATH"], "KEY": PASSPHRASE}
    with_rounds = subprocess.run(
        [*command, *options], capture_output=True, check=True, env=environment
    )
    without = [word for word in command if word not in ("-iter", str(ROUNDS))]
    by_default = subprocess.run(
        [*without, *options], capture_output=True, check=True, env=environment
    )
    assert b"key=" in by_default.stdout
    assert with_rounds.stdout == by_default.stdout


def test_authentication_depends_on_message_passphrase_and_salt_alone() -> None:
    again = Key.derive(PASSPHRASE, bytes(range(8)))
    assert KEY.authenticate(b"text") == again.authenticate(b"text")
    assert len(KEY.authenticate(b"text")) == 64
    others = {
        KEY.authenticate(b"text"),
        KEY.authenticate(b"texT"),
        Key.derive(PASSPHRASE, b"another!").authenticate(b"text"),
        Key.derive("another", SALT).authenticate(b"text"),
    }
    assert len(others) == 4


def test_authentication_is_pinned() -> None:
    """Manifests that were written must stay readable: this value must never change."""
    assert KEY.authenticate(b"text") == (
        "8af4cdac4e7fc36105b510e59137d48e4077f140145d5577d6a1b049d58380d8"
    )


def test_repr_shows_the_salt_and_no_key() -> None:
    shown = repr(KEY) + str(KEY) + f"{KEY}"
    assert repr(SALT) in shown
    assert repr(KEY._derived)[2:-1] not in shown  # noqa: SLF001 - the secret that is looked for
    assert KEY._derived.hex() not in shown  # noqa: SLF001 - as above
    assert PASSPHRASE not in shown


@given(
    st.integers(0, 200),
    st.integers(0, 250),
    st.integers(1, 250),
    st.lists(st.integers(0, 300), max_size=5),
)
@example(64, 0, 64, [])
@example(64, 16, 16, [1, 15, 16, 17])
@example(64, 63, 1, [])
@example(17, 15, 2, list(range(64)))
def test_a_range_is_decrypted_alone(
    size: int, offset: int, length: int, positions: list[int]
) -> None:
    plain = noise(size)
    stored = b"".join(encrypt([plain], KEY))
    start, count = stored_range(offset, length)
    assert start >= 0
    assert count <= length + 48  # the one before it, and what is left of the first and the last
    chunks = [chunk for chunk in cut(stored[start : start + count], positions) if chunk]
    got = b"".join(decrypt_range(chunks, KEY, offset, length))
    assert got[: max(0, size - offset)] == plain[offset : offset + length]
    if offset + length <= size:
        assert len(got) == length


def test_a_range_is_decrypted_with_its_own_key_alone() -> None:
    stored = b"".join(encrypt([TEXT], KEY))
    start, count = stored_range(20, 30)
    other = Key.derive("another", SALT)
    got = b"".join(decrypt_range([stored[start : start + count]], other, 20, 30))
    assert got != TEXT[20:50]


def ends(stored: bytes) -> tuple[bytes, bytes]:
    return stored[:16], stored[-32:]


@given(st.binary(max_size=100))
@example(b"x" * 15)
@example(b"x" * 16)
@example(b"")
def test_what_was_encrypted_is_whole(plain: bytes) -> None:
    stored = b"".join(encrypt([plain], KEY))
    assert is_whole(*ends(stored), KEY, len(plain))


# A last block that was changed decrypts to chance, which passes for one byte of padding once in
# 256 times; for eight of them it does not.
LONG_PADDING = st.integers(0, 6).flatmap(lambda blocks: st.integers(16 * blocks, 16 * blocks + 8))


@given(LONG_PADDING, st.integers(0, 31), st.integers(0, 7))
def test_a_flipped_bit_at_either_end_is_seen(size: int, at: int, bit: int) -> None:
    stored = bytearray(b"".join(encrypt([noise(size)], KEY)))
    place = at if at < 16 else len(stored) - 32 + at
    stored[place] ^= 1 << bit
    assert not is_whole(*ends(bytes(stored)), KEY, size)


@given(LONG_PADDING, st.integers(0, 15))
def test_a_bit_before_the_last_block_flips_the_same_one_of_the_padding(size: int, at: int) -> None:
    """Of the plain bytes that stand in the last block nothing is known here."""
    stored = bytearray(b"".join(encrypt([noise(size)], KEY)))
    stored[len(stored) - 32 + at] ^= 1
    # In an object of one block that is the header, which decrypts nothing.
    seen = size >= 16 and at >= size % 16
    head, tail = bytes(stored[:16]), bytes(stored[-32:])
    if size < 16:
        head = b"Salted__" + SALT
    assert is_whole(head, tail, KEY, size) is not seen


@given(LONG_PADDING.filter(bool), st.integers(1, 40))
def test_what_is_cut_short_is_not_whole(size: int, missing: int) -> None:
    stored = b"".join(encrypt([noise(size)], KEY))
    cut_short = stored[: max(0, len(stored) - missing)]
    assert not is_whole(*ends(cut_short), KEY, size)
    assert not is_whole(*ends(stored[16:]), KEY, size)
    assert not is_whole(*ends(stored), Key.derive("another", SALT), size)
