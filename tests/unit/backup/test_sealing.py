"""What a new backup is encrypted with, and which format that needs."""

from __future__ import annotations

import os

import pytest

from pgstash.backup.sealing import Keys, sealing_of
from pgstash.errors import EncryptionError
from pgstash.format import manifest as manifests
from pgstash.pipeline import age, encryption
from support.age_keys import person

ANN = person("ann")
OLD_READER = (manifests.FORMAT, manifests.READER)
NEW_READER = (manifests.NEWEST, manifests.NEWEST_READER)


def test_without_keys_nothing_is_encrypted() -> None:
    keys = Keys(None)
    found = sealing_of(keys, os.urandom, "id")
    assert not keys
    assert found.new_key(os.urandom) is None
    assert (found.format, found.reader) == OLD_READER
    assert found.metadata(None) == {}


@pytest.mark.parametrize(("rounds", "reader"), [(10_000, OLD_READER), (10_001, NEW_READER)])
def test_a_passphrase_needs_a_newer_reader_only_with_more_rounds(
    rounds: int, reader: tuple[int, str]
) -> None:
    keys = Keys("a passphrase", rounds=rounds)
    found = sealing_of(keys, os.urandom, "id")
    key = found.new_key(lambda count: b"s" * count)
    assert keys
    assert key == encryption.Key.derive("a passphrase", b"s" * 8, rounds)
    assert (found.format, found.reader) == reader
    assert key is not None
    assert found.metadata(key) == {"key-id": key.id}
    assert found.wrapped is None


def test_recipients_get_a_random_passphrase_whatever_the_key_is() -> None:
    keys = Keys("a passphrase", [ANN.recipient], 20_000)
    first, second = (sealing_of(keys, os.urandom, "id") for _ in range(2))
    assert first.wrapped
    wrapped = age.unwrap("it", first.wrapped, ANN.identity)
    assert wrapped == age.Wrapped(str(first.passphrase), [ANN.recipient])
    assert len({"a passphrase", first.passphrase, second.passphrase}) == 3
    assert first.rounds == encryption.ROUNDS
    assert (first.format, first.reader) == NEW_READER
    assert first.metadata(first.new_key(os.urandom)) == {"key-wrap": "age"}
    for text in (repr(first), repr(keys)):
        assert str(first.passphrase) not in text
        assert "a passphrase" not in text


def test_what_cannot_be_wrapped_makes_no_backup() -> None:
    with pytest.raises(EncryptionError, match="could not be wrapped"):
        sealing_of(Keys(None, ["age1wrong"]), os.urandom, "id")
