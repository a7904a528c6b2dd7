"""The object ``….key.kms``: the passphrase of a backup, encrypted by keys of AWS KMS.

It is JSON with an entry for each key. KMS decrypts one of them only with the same encryption
context, which names the backup:
https://docs.aws.amazon.com/kms/latest/developerguide/encrypt_context.html
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pgstash.counting import counted
from pgstash.errors import CorruptedError, EncryptionError

CONTEXT = "pgstash-backup"
"""The name in the encryption context whose value is the id of the backup."""

MOST = 20
"""The most keys of one backup. Each may be tried, so that a long list would keep a reader busy."""

# https://docs.aws.amazon.com/kms/latest/APIReference/API_Encrypt.html
_LARGEST_CIPHERTEXT = 6144

# The region becomes a part of a host name.
_ARN = re.compile(
    r"arn:aws[a-z-]{0,20}:kms:(?P<region>[a-z]{2,8}(?:-[a-z]{1,12}){1,3}-\d{1,2}):\d{12}:"
    r"(?P<what>key|alias)/[A-Za-z0-9/_-]{1,250}",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Wrap:
    """A passphrase that one key encrypted.

    ``recipient`` is the ARN that the user named, of a key or of an alias; ``key`` is the ARN of the
    key that it led to.
    """

    recipient: str
    key: str
    ciphertext: bytes


def is_arn(text: str) -> bool:
    """Return whether this is the ARN of a key or an alias of KMS.

    https://docs.aws.amazon.com/kms/latest/developerguide/concepts-key-id.html
    """
    return _ARN.fullmatch(text) is not None


def is_alias(arn: str) -> bool:
    """Return whether an ARN is that of an alias, which may lead to another key later."""
    found = _ARN.fullmatch(arn)
    return found is not None and found["what"] == "alias"


def region_of(arn: str) -> str:
    """Return the region of an ARN. Raises ValueError if it is none."""
    found = _ARN.fullmatch(arn)
    if found is None:
        raise ValueError("not the ARN of a key of KMS")
    return found["region"]


def context(backup_id: str) -> dict[str, str]:
    """Return the encryption context of a backup."""
    return {CONTEXT: backup_id}


def dump(backup_id: str, wraps: Sequence[Wrap]) -> bytes:
    """Return the object. Raises EncryptionError if there are more keys than are read."""
    if len(wraps) > MOST:
        raise EncryptionError(
            f"{counted(len(wraps), 'key')} of KMS are more than the {MOST} that a backup can have"
        )
    keys = [
        {
            "recipient": each.recipient,
            "key": each.key,
            "ciphertext": base64.b64encode(each.ciphertext).decode(),
        }
        for each in wraps
    ]
    return (json.dumps({"context": context(backup_id), "keys": keys}, indent=2) + "\n").encode()


def load(what: str, data: bytes, backup_id: str) -> list[Wrap]:
    """Read the output of :func:`dump`; ``what`` is the name of the object.

    Raises CorruptedError if it is something else, or that of another backup.
    """
    try:
        value = json.loads(data)
        named = value["context"]
        wraps = [_wrap(each) for each in value["keys"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptedError(f"{what} is not an object with keys of KMS: {error}") from error
    if named != context(backup_id):
        raise CorruptedError(
            f"{what} is that of another backup",
            hint="Was it renamed or copied? Give each object its original name.",
        )
    if not 0 < len(wraps) <= MOST:
        raise CorruptedError(f"{what} has {counted(len(wraps), 'key')}, which pgstash never writes")
    return wraps


def _wrap(entry: Any) -> Wrap:  # noqa: ANN401 - any JSON
    recipient, key = entry["recipient"], entry["key"]
    if not is_arn(recipient) or not is_arn(key):
        raise ValueError("it names a key that is not an ARN of KMS")
    ciphertext = base64.b64decode(entry["ciphertext"], validate=True)
    if not 0 < len(ciphertext) <= _LARGEST_CIPHERTEXT:
        raise ValueError(f"a ciphertext has {len(ciphertext)} bytes")
    return Wrap(recipient, key, ciphertext)
