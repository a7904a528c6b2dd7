"""The object with the passphrase that keys of KMS encrypted: its form, and other objects."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from pgstash.errors import CorruptedError, EncryptionError
from pgstash.format import kms
from pgstash.format.kms import Wrap
from support.kms import ALIAS, FAR, KEY, OTHER

ID = "0123456789abcdef"
WRAPS = [Wrap(ALIAS, KEY, b"one"), Wrap(FAR, FAR, b"two")]


def test_what_is_written_is_read() -> None:
    assert kms.load("it", kms.dump(ID, WRAPS), ID) == WRAPS


def test_the_object_is_json_that_names_its_context_and_keys() -> None:
    assert json.loads(kms.dump(ID, WRAPS[:1])) == {
        "context": {"pgstash-backup": ID},
        "keys": [{"recipient": ALIAS, "key": KEY, "ciphertext": base64.b64encode(b"one").decode()}],
    }


def test_keys_of_a_later_pgstash_are_ignored() -> None:
    value = json.loads(kms.dump(ID, WRAPS))
    value["later"] = value["keys"][0]["later"] = "something"
    assert kms.load("it", json.dumps(value).encode(), ID) == WRAPS


def changed(**entry: Any) -> bytes:
    value = json.loads(kms.dump(ID, WRAPS))
    value["keys"][1].update(entry)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"context": {}}',
        b'{"context": {"pgstash-backup": "0123456789abcdef"}, "keys": []}',
        b'{"context": {"pgstash-backup": "0123456789abcdef"}, "keys": {"a": 1}}',
        b'{"context": {"pgstash-backup": "0123456789abcdef"}, "keys": [null]}',
        changed(key=None),
        changed(key=1),
        changed(key="arn:aws:kms:evil.example.com/:123456789012:key/x"),
        changed(recipient="alias/x"),
        changed(ciphertext=""),
        changed(ciphertext="%"),
        changed(ciphertext=1),
        changed(ciphertext=base64.b64encode(bytes(7000)).decode()),
        kms.dump(ID, WRAPS)[:-20],
    ],
    ids=lambda data: repr(data[-40:]),
)
def test_anything_else_is_damage(data: bytes) -> None:
    with pytest.raises(CorruptedError, match=r"^backup\.key\.kms (is not|has 0 keys)"):
        kms.load("backup.key.kms", data, ID)


def test_the_object_of_another_backup_is_named() -> None:
    with pytest.raises(CorruptedError, match="is that of another backup"):
        kms.load("backup.key.kms", kms.dump("f" * 16, WRAPS), ID)


def test_a_reader_is_not_kept_busy_by_many_keys() -> None:
    kms.load("it", kms.dump(ID, WRAPS[:1] * 20), ID)
    with pytest.raises(EncryptionError, match="21 keys of KMS are more than the 20"):
        kms.dump(ID, WRAPS[:1] * 21)
    value = json.loads(kms.dump(ID, WRAPS[:1]))
    value["keys"] *= 21
    with pytest.raises(CorruptedError, match="21 keys, which pgstash never writes"):
        kms.load("it", json.dumps(value).encode(), ID)


@pytest.mark.parametrize(
    ("arn", "region"),
    [
        (KEY, "eu-central-1"),
        (ALIAS, "eu-central-1"),
        (FAR, "us-west-2"),
        (
            OTHER.replace("arn:aws:", "arn:aws-cn:").replace("eu-central-1", "cn-north-1"),
            "cn-north-1",
        ),
        (KEY.replace("arn:aws:", "arn:aws-us-gov:").replace("eu-", "us-gov-"), "us-gov-central-1"),
    ],
)
def test_the_region_of_a_key(arn: str, region: str) -> None:
    assert kms.is_arn(arn)
    assert kms.region_of(arn) == region
    assert kms.is_alias(arn) == (arn == ALIAS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "alias/backups",
        "11111111-2222-3333-4444-555555555555",
        KEY + "\n",
        KEY.replace("kms", "s3"),
        KEY.replace("123456789012", "1234"),
        KEY.replace(":key/", ":grant/"),
        KEY.replace("eu-central-1", "evil.example.com"),
        KEY.replace("eu-central-1", "eu-central-1/"),
        KEY.replace("eu-central-1", ""),
        KEY.replace("1111", "\u0661" * 4),
        f"{KEY},x",
    ],
)
def test_what_is_no_arn_of_a_key(text: str) -> None:
    assert not kms.is_arn(text)
    assert not kms.is_alias(text)
    with pytest.raises(ValueError, match="not the ARN"):
        kms.region_of(text)
