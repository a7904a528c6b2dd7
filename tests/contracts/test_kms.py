"""Keys of AWS KMS: what is sent and stored, what its answers become, and what is not believed.

The service is a server of the tests with the real protocol; boto3 is a second client of it.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from pgstash import events, settings
from pgstash.commands import kms as configured
from pgstash.errors import CorruptedError, EncryptionError, PipelineError
from pgstash.format import kms as stored
from pgstash.format import names
from pgstash.format.kms import Wrap
from pgstash.kms import wrapping
from pgstash.kms.client import KmsClient
from pgstash.pipeline import age
from pgstash.storage.memory import MemoryStorage
from support.identities import ROLE, Identities
from support.kms import ALIAS, FAR, IDENTITY, KEY, OTHER, Kms, Refusal
from support.stored import CLOSING, make

ID = "0123456789abcdef"
NO_FILE = Path("/nonexistent/.env")
CONTEXT = stored.context(ID)
PASSPHRASE = age.new_passphrase(lambda count: b"k" * count)
PLAIN = PASSPHRASE.encode()
FRESH = {"region": "us-east-1"}  # for a client of its own, which reads the environment anew


def failure(request: Callable[[], object]) -> PipelineError:
    with pytest.raises(PipelineError) as raised:
        request()
    assert PASSPHRASE not in str(raised.value) + raised.value.hint
    return raised.value


@pytest.mark.parametrize(("arn", "key"), [(KEY, KEY), (ALIAS, KEY), (FAR, FAR)])
def test_what_one_key_encrypts_it_decrypts(
    kms: Kms, open_kms: Callable[..., KmsClient], arn: str, key: str
) -> None:
    client = open_kms()
    made = client.encrypt(arn, PLAIN, CONTEXT)
    assert (made.recipient, made.key) == (arn, key)
    assert PLAIN not in made.ciphertext
    assert client.decrypt(made, CONTEXT) == PLAIN
    assert kms.asked == [("Encrypt", arn, CONTEXT), ("Decrypt", key, CONTEXT)]
    region = key.split(":")[3]
    assert set(kms.signed) == {(IDENTITY["AWS_ACCESS_KEY_ID"], region)}


def test_the_object_opens_by_hand_with_its_context_alone(
    open_kms: Callable[..., KmsClient],
) -> None:
    text = stored.dump(ID, wrapping.wrap(open_kms(), PASSPHRASE, ID, [OTHER, ALIAS]))
    found = json.loads(text)
    assert found["context"] == {"pgstash-backup": ID}
    assert [each["recipient"] for each in found["keys"]] == [OTHER, ALIAS]
    independent = boto3.client("kms", region_name="eu-central-1")
    for each in found["keys"]:
        blob = base64.b64decode(each["ciphertext"])
        answer = independent.decrypt(
            CiphertextBlob=blob, EncryptionContext=found["context"], KeyId=each["key"]
        )
        assert answer["Plaintext"] == PLAIN
        with pytest.raises(independent.exceptions.InvalidCiphertextException):
            independent.decrypt(CiphertextBlob=blob, KeyId=each["key"])
    independent.close()


def test_a_wrap_of_another_backup_does_not_open(open_kms: Callable[..., KmsClient]) -> None:
    client = open_kms()
    made = client.encrypt(KEY, PLAIN, stored.context("f" * 16))
    error = failure(lambda: client.decrypt(made, CONTEXT))
    assert isinstance(error, CorruptedError)
    assert "was made for another backup (InvalidCiphertextException" in error.message


@pytest.mark.parametrize(
    ("code", "words", "hint"),
    [
        (
            "AccessDeniedException",
            "KMS denies it",
            "Allow kms:Encrypt with this key to access key",
        ),
        ("NotFoundException", "there is no such key", "Check the ARN"),
        ("InvalidArnException", "does not accept the ARN", "Check the ARN"),
        ("DisabledException", "the key is disabled", f"aws kms enable-key --key-id {KEY}"),
        ("KMSInvalidStateException", "the state of the key", "aws kms cancel-key-deletion"),
        ("InvalidKeyUsageException", "is not for encryption", "ENCRYPT_DECRYPT"),
        (
            "UnrecognizedClientException",
            "does not accept the credentials",
            "AWS_ACCESS_KEY_ID in",
        ),
        ("InvalidSignatureException", "does not accept the credentials", "the clock here"),
        (
            "ExpiredTokenException",
            "does not accept the credentials",
            "Requests are signed with",
        ),
        ("SomethingNew", "KMS answered SomethingNew", ""),
    ],
)
def test_a_refusal_is_explained_by_its_code_and_not_repeated(
    kms: Kms, open_kms: Callable[..., KmsClient], code: str, words: str, hint: str
) -> None:
    kms.refusals = [Refusal(400, code)]
    said: list[events.Event] = []
    error = failure(lambda: open_kms(said).encrypt(KEY, PLAIN, CONTEXT))
    assert isinstance(error, EncryptionError)
    assert not error.retryable
    assert error.message.startswith(f"cannot encrypt the passphrase of a backup with {KEY}: ")
    assert words in error.message
    assert hint in error.hint
    assert said == []
    assert IDENTITY["AWS_SECRET_ACCESS_KEY"] not in error.message + error.hint


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "ThrottlingException"),
        (400, "LimitExceededException"),
        (500, "KMSInternalException"),
        (500, "KeyUnavailableException"),
        (503, "DependencyTimeoutException"),
        (503, "SomethingNew"),
    ],
)
def test_what_may_pass_is_tried_again(
    kms: Kms, open_kms: Callable[..., KmsClient], status: int, code: str
) -> None:
    kms.refusals = [Refusal(status, code)] * 2
    kms.once = True
    said: list[events.Event] = []
    assert open_kms(said).encrypt(KEY, PLAIN, CONTEXT).key == KEY
    assert [type(event) for event in said] == [events.Retrying] * 2
    kms.refusals, kms.once = [Refusal(status, code)], False
    error = failure(lambda: open_kms().encrypt(KEY, PLAIN, CONTEXT))
    assert isinstance(error, EncryptionError)
    assert error.retryable
    assert f"KMS answered {code}" in error.message


@pytest.mark.parametrize(
    "answers",
    [
        {"KeyId": OTHER},
        {"KeyId": ALIAS},
        {"KeyId": "x" * 9000},
        {"KeyId": None},
        {"CiphertextBlob": ""},
        {"CiphertextBlob": "cGxhbnRlZA" * 3 + "!"},
        {"CiphertextBlob": None},
    ],
    ids=str,
)
def test_an_answer_that_wraps_nothing_makes_no_backup(
    kms: Kms, open_kms: Callable[..., KmsClient], answers: dict[str, Any]
) -> None:
    kms.answers = answers
    for arn in (KEY, ALIAS) if answers != {"KeyId": OTHER} else (KEY,):
        error = failure(lambda: open_kms().encrypt(arn, PLAIN, CONTEXT))  # noqa: B023 - called at once
        assert isinstance(error, EncryptionError)
        assert len(error.message) < 600


def test_an_answer_with_the_plain_passphrase_is_not_stored(
    kms: Kms, open_kms: Callable[..., KmsClient]
) -> None:
    kms.answers = {"CiphertextBlob": base64.b64encode(b"x" + PLAIN).decode()}
    assert "is that KMS?" in failure(lambda: open_kms().encrypt(KEY, PLAIN, CONTEXT)).message


def test_the_key_of_an_alias_may_not_be_of_another_account(
    kms: Kms, open_kms: Callable[..., KmsClient]
) -> None:
    kms.answers = {"KeyId": KEY.replace("123456789012", "999999999999")}
    assert "KMS answered for" in failure(lambda: open_kms().encrypt(ALIAS, PLAIN, CONTEXT)).message


@pytest.mark.parametrize(
    "plain", [b"", b"\xff\xfe", b"pgstash-key-", b"a passphrase", PLAIN + b"\n"]
)
def test_only_a_passphrase_of_pgstash_is_taken(
    kms: Kms, open_kms: Callable[..., KmsClient], plain: bytes
) -> None:
    """Whoever can write to the store can name a key of their own, which decrypts to anything."""
    client = open_kms()
    made = client.encrypt(KEY, plain or b"something", CONTEXT)
    if not plain:
        kms.answers = {"Plaintext": ""}
    error = failure(lambda: wrapping.unwrap(client, "key.kms", [made], ID))
    assert isinstance(error, CorruptedError)
    assert "key.kms holds no passphrase of pgstash" in error.message


def test_the_answer_of_another_key_is_not_taken(
    kms: Kms, open_kms: Callable[..., KmsClient]
) -> None:
    made = open_kms().encrypt(KEY, PLAIN, CONTEXT)
    kms.answers = {"KeyId": OTHER}
    assert "KMS answered for" in failure(lambda: open_kms().decrypt(made, CONTEXT)).message


def test_any_of_several_keys_opens_it(kms: Kms, open_kms: Callable[..., KmsClient]) -> None:
    client = open_kms()
    wraps = wrapping.wrap(client, PASSPHRASE, ID, [KEY, FAR])
    kms.refusals = [Refusal(400, "DisabledException", arn=KEY)]
    assert wrapping.unwrap(client, "key.kms", wraps, ID) == PASSPHRASE
    kms.refusals.append(Refusal(500, "KMSInternalException", arn=FAR))
    error = failure(lambda: wrapping.unwrap(client, "key.kms", wraps, ID))
    assert error.message.startswith("none of 2 keys opens key.kms: cannot decrypt")
    assert "DisabledException" in error.message
    assert "KMSInternalException" in error.message
    assert "enable-key" in error.hint
    assert error.retryable


def test_one_damaged_wrap_does_not_hide_why_the_other_fails(
    kms: Kms, open_kms: Callable[..., KmsClient]
) -> None:
    client = open_kms()
    wraps = [Wrap(KEY, KEY, b"damaged"), client.encrypt(OTHER, PLAIN, CONTEXT)]
    kms.refusals = [Refusal(400, "AccessDeniedException", arn=OTHER)]
    error = failure(lambda: wrapping.unwrap(client, "key.kms", wraps, ID))
    assert isinstance(error, EncryptionError)
    assert "kms:Decrypt" in error.hint
    assert isinstance(failure(lambda: wrapping.unwrap(client, "it", wraps[:1], ID)), CorruptedError)


def test_without_credentials_the_message_names_them(
    kms: Kms, open_kms: Callable[..., KmsClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    error = failure(lambda: open_kms(**FRESH).encrypt(KEY, PLAIN, CONTEXT))
    assert isinstance(error, EncryptionError)
    assert error.message.endswith("no credentials of AWS were found")
    assert "AWS_ACCESS_KEY_ID" in error.hint
    assert kms.signed == []


def test_a_profile_that_is_missing_is_named(
    open_kms: Callable[..., KmsClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "missing")
    error = failure(lambda: open_kms(**FRESH).encrypt(KEY, PLAIN, CONTEXT))
    assert isinstance(error, EncryptionError)
    assert "missing" in error.message


@pytest.mark.parametrize("role", [None, ROLE])
def test_an_access_key_of_the_settings_signs(
    kms: Kms,
    open_kms: Callable[..., KmsClient],
    monkeypatch: pytest.MonkeyPatch,
    role: str | None,
) -> None:
    learnt: list[str] = []
    with Identities("own", "planted-own") as identities:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", identities.endpoint)
        own = {"access_key_id": "own", "secret_access_key": "planted-own", "role_arn": role}
        open_kms(**own, learn=learnt.extend).encrypt(KEY, PLAIN, CONTEXT)
    assert kms.signed == [("own", "eu-central-1")]
    assert identities.asked == (["AssumeRole"] if role else [])
    assert {"planted-own", *identities.tokens} <= set(learnt)


def test_credentials_that_expired_are_fetched_again(
    kms: Kms, open_kms: Callable[..., KmsClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Identities("key", "planted-secret") as identities:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        for name, value in identities.variables("container", tmp_path).items():
            monkeypatch.setenv(name, value)
        kms.refusals, kms.once = [Refusal(400, "ExpiredTokenException")], True
        assert open_kms(**FRESH).encrypt(KEY, PLAIN, CONTEXT).key == KEY
        assert identities.asked == ["container", "container"]


def test_a_service_that_is_not_there_is_tried_again(
    open_kms: Callable[..., KmsClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", "http://127.0.0.1:1")
    said: list[events.Event] = []
    error = failure(lambda: open_kms(said, **FRESH).encrypt(KEY, PLAIN, CONTEXT))
    assert isinstance(error, EncryptionError)
    assert error.retryable
    assert "the region eu-central-1" in error.hint
    assert len(said) == 2


def test_another_service_is_not_taken_for_kms(
    open_kms: Callable[..., KmsClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Identities("key", "secret") as other:
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", other.endpoint)
        error = failure(lambda: open_kms(**FRESH).encrypt(KEY, PLAIN, CONTEXT))
    assert isinstance(error, EncryptionError)


def test_the_ciphertext_of_another_key_is_damage(open_kms: Callable[..., KmsClient]) -> None:
    client = open_kms()
    made = client.encrypt(KEY, PLAIN, CONTEXT)
    error = failure(lambda: client.decrypt(Wrap(OTHER, OTHER, made.ciphertext), CONTEXT))
    assert isinstance(error, CorruptedError)
    assert "IncorrectKeyException" in error.message


AWS = {"S3_BUCKET": "b", "S3_ENDPOINT": "https://s3.eu-central-1.amazonaws.com"}
OWN = {"S3_ACCESS_KEY_ID": "of-the-store", "S3_SECRET_ACCESS_KEY": "planted-of-the-store"}


@pytest.mark.parametrize(
    ("store", "signer"),
    [
        (AWS | OWN, "of-the-store"),
        (AWS, IDENTITY["AWS_ACCESS_KEY_ID"]),
        (AWS | OWN | {"S3_ENDPOINT": "https://minio"}, IDENTITY["AWS_ACCESS_KEY_ID"]),
        ({"STORAGE_URL": "file:///backups"}, IDENTITY["AWS_ACCESS_KEY_ID"]),
    ],
    ids=["S3 with a key", "S3 without", "another store", "a directory"],
)
def test_the_identity_of_the_store_signs_if_it_is_one_of_aws(
    kms: Kms, store: dict[str, str], signer: str
) -> None:
    values = settings.load({**os.environ, **store}, NO_FILE, needs=["storage"], only_reads=True)
    opener = configured.opener(values, events.ignore)
    opener().encrypt(KEY, PLAIN, CONTEXT)
    assert opener() is opener()
    assert kms.signed == [(signer, "eu-central-1")]


def test_how_a_backup_is_opened_by_hand() -> None:
    storage = MemoryStorage()
    made = make(b"SELECT 1;\n" + CLOSING, passphrase=PASSPHRASE)
    assert configured.by_hand(storage, "p/", made.manifest) == []
    name = names.kms_name(made.base, made.manifest.id)
    wraps = [Wrap(FAR, FAR, b"one"), Wrap(ALIAS, KEY, b"two")]
    storage.put(f"p/{name}", stored.dump(made.manifest.id, wraps), {})
    first, second, cut, decrypt = configured.by_hand(storage, "p/", made.manifest)
    assert [first, second] == [("kms key", FAR), ("kms key", KEY)]
    assert name in cut[1]
    assert f"--encryption-context pgstash-backup={made.manifest.id} " in decrypt[1]
    assert "--region us-west-2 " in decrypt[1]


def test_an_object_of_any_size_is_not_read_into_memory() -> None:
    """Whoever can write to the store can put anything in its place."""
    storage = MemoryStorage()
    made = make(b"SELECT 1;\n" + CLOSING, passphrase=PASSPHRASE)
    name = names.kms_name(made.base, made.manifest.id)
    storage.put(f"p/{name}", b"x" * (age.LARGEST + 1), {})
    error = failure(lambda: configured.by_hand(storage, "p/", made.manifest))
    assert isinstance(error, CorruptedError)
    assert "larger than any that pgstash writes" in error.message
