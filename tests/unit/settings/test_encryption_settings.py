"""Settings of recipients, identities and earlier keys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pgstash import settings
from pgstash.commands.stored import access_of
from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Settings
from support.age_keys import person, ssh_person
from support.kms import KEY as KMS_KEY

ANN, BEN = person("ann"), person("ben")
LOCAL = {
    "DATABASE_URL": "postgresql://backup@db.example.com:5432/shop",
    "STORAGE_URL": "file:///backups",
}
ON = LOCAL | {"BACKUP_ENCRYPTION": "true"}
FOR_ANN = ON | {"BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient}
KEY = "k" * 32
NO_FILE = Path("/nonexistent/.env")


@pytest.fixture(autouse=True)
def _nothing_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PG"):
            monkeypatch.delenv(name)


def load(values: dict[str, str]) -> Settings:
    return settings.load(dict(values), NO_FILE)


def problems(values: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(values)
    assert caught.value.__cause__ is None
    return caught.value.problems


def test_recipients_are_enough_to_encrypt() -> None:
    both = f"{ANN.recipient}, {BEN.recipient}\n"
    values = load(ON | {"BACKUP_ENCRYPTION_RECIPIENTS": both})
    assert values.recipients == [ANN.recipient, BEN.recipient]
    assert values.passphrase is None
    assert values.warnings() == []


def test_a_key_only_reads_if_there_are_recipients() -> None:
    values = load(FOR_ANN | {"BACKUP_ENCRYPTION_KEY": "short"})
    assert (values.passphrase, values.reading_passphrase) == (None, "short")
    assert values.warnings() == []  # of a weak key: no new backup has it


def test_recipients_may_rest_while_encryption_is_off() -> None:
    values = load(FOR_ANN | {"BACKUP_ENCRYPTION": "false"})
    assert values.recipients == []


def test_recipients_without_encryption_are_hardly_meant() -> None:
    (problem,) = problems(LOCAL | {"BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient})
    assert problem.startswith("BACKUP_ENCRYPTION is missing, but BACKUP_ENCRYPTION_RECIPIENTS is")


@pytest.mark.parametrize("wrong", ["age1wrong", ANN.identity])
def test_a_wrong_recipient_is_the_only_problem(wrong: str) -> None:
    """That there is no key either is not reported, since none is needed."""
    (problem,) = problems(ON | {"BACKUP_ENCRYPTION_RECIPIENTS": wrong})
    assert problem.startswith("BACKUP_ENCRYPTION_RECIPIENTS ")
    assert wrong not in problem


@pytest.mark.parametrize("interval", ["after-backup", "3600"])
def test_drills_of_the_service_need_an_identity(interval: str) -> None:
    wanted = FOR_ANN | {"VERIFY_INTERVAL": interval}
    (problem,) = problems(wanted)
    assert problem.startswith("VERIFY_INTERVAL is set, but a drill could not read the backups")
    assert "BACKUP_DECRYPTION_IDENTITY" in problem
    assert load(wanted | {"BACKUP_DECRYPTION_IDENTITY": ANN.identity}).verify_interval
    assert load(wanted | {"BACKUP_ENCRYPTION": "false"}).verify_interval
    read = settings.load(dict(wanted), NO_FILE, needs=["storage"], only_reads=True)
    assert read.verify_interval is None


def test_an_identity_is_a_value_or_a_file(tmp_path: Path) -> None:
    file = ANN.file(tmp_path)
    for value in (ANN.identity, file.read_text(), str(file), f"  {ANN.identity}\n"):
        read = load(FOR_ANN | {"BACKUP_DECRYPTION_IDENTITY": value})
        assert ANN.identity in (read.identity or "")
    pointed = load(FOR_ANN | {"BACKUP_DECRYPTION_IDENTITY_FILE": str(file)})
    assert ANN.identity in (pointed.identity or "")
    who = ssh_person(tmp_path)
    for value in (who.identity, str(tmp_path / "id_ed25519")):
        read = load(FOR_ANN | {"BACKUP_DECRYPTION_IDENTITY": value})
        assert "OPENSSH PRIVATE KEY" in (read.identity or "")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("/nonexistent/id.txt", "names /nonexistent/id.txt, which cannot be read: No such file"),
        ("Planted", "contains something else than secret keys"),
        ("age1planted", "contains something else than secret keys"),
    ],
)
def test_a_wrong_identity_is_not_quoted(value: str, reason: str) -> None:
    (problem,) = problems(FOR_ANN | {"BACKUP_DECRYPTION_IDENTITY": value})
    assert problem.startswith(f"BACKUP_DECRYPTION_IDENTITY {reason}")
    assert "lanted" not in problem


def test_a_file_that_is_no_identity_is_named(tmp_path: Path) -> None:
    for number, content in enumerate((b"# nothing", b"\xff\xfe")):
        file = tmp_path / f"{number}"
        file.write_bytes(content)
        (problem,) = problems(FOR_ANN | {"BACKUP_DECRYPTION_IDENTITY": str(file)})
        assert problem.startswith(f"BACKUP_DECRYPTION_IDENTITY names {file}, which ")


def test_old_keys_are_lines_and_a_comma_is_part_of_one() -> None:
    values = load(ON | {"BACKUP_ENCRYPTION_KEY": KEY, "BACKUP_ENCRYPTION_OLD_KEYS": "a, b\n\nc"})
    assert values.old_passphrases == ["a, b", "c"]
    (problem,) = problems(LOCAL | {"BACKUP_ENCRYPTION_OLD_KEYS": "a\tPlanted"})
    assert problem.startswith("BACKUP_ENCRYPTION_OLD_KEYS must be lines of printable characters")
    assert "Planted" not in problem


def test_every_line_of_a_secret_is_removed_from_the_log(tmp_path: Path) -> None:
    who = ssh_person(tmp_path)
    old = "the first old passphrase\nthe second old passphrase"
    values = load(
        FOR_ANN
        | {
            "BACKUP_DECRYPTION_IDENTITY": f"# comment of mine\n{BEN.identity}\n{who.identity}",
            "BACKUP_ENCRYPTION_OLD_KEYS": old,
        }
    )
    scrub = Scrubber(values.secrets()).scrub
    key_line = who.identity.splitlines()[2]
    for secret in (*old.splitlines(), BEN.identity, key_line):
        assert secret not in repr(values)
        assert scrub(f"said: {secret}!") == "said: ***!"
    assert scrub("comment of mine") == "comment of mine"


def test_a_machine_that_only_restores_may_have_an_identity_alone() -> None:
    only = {"STORAGE_URL": "file:///b", "BACKUP_DECRYPTION_IDENTITY": ANN.identity}
    assert settings.load(only, NO_FILE, needs=["storage"]).only_reads_with_key


def test_a_passphrase_that_looks_like_a_comment_is_removed_from_the_log() -> None:
    """Only the files of age and SSH have comments."""
    old = ["#planted-passphrase-1", "-----planted-passphrase-2"]
    values = load(LOCAL | {"BACKUP_ENCRYPTION_OLD_KEYS": "\n".join(old)})
    assert values.old_passphrases == old
    scrub = Scrubber(values.secrets()).scrub
    assert [scrub(f"said: {each}!") for each in old] == ["said: ***!"] * 2


def test_a_machine_that_only_restores_may_have_old_keys_alone() -> None:
    only = {"STORAGE_URL": "file:///b", "BACKUP_ENCRYPTION_OLD_KEYS": KEY}
    assert settings.load(only, NO_FILE, needs=["storage"]).only_reads_with_key


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"BACKUP_ENCRYPTION_KEY": KEY}, True),
        ({"BACKUP_ENCRYPTION_KEY": KEY, "BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient}, False),
        ({"BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient}, False),
        ({"BACKUP_ENCRYPTION_KEY": KEY, "BACKUP_ENCRYPTION": "false"}, False),
    ],
)
def test_backups_for_recipients_are_in_doubt_where_new_ones_have_a_passphrase(
    more: dict[str, str], *, expected: bool
) -> None:
    values = load(ON | {"BACKUP_DECRYPTION_IDENTITY": ANN.identity} | more)
    assert access_of(values, unverified=False).only_passphrase == expected


def test_a_user_without_a_home_is_a_wrong_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run with a user id that has no entry."""

    def unknown(_uid: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    (problem,) = problems(LOCAL | {"BACKUP_DECRYPTION_IDENTITY": "~/identity.txt"})
    assert problem.startswith(
        "BACKUP_DECRYPTION_IDENTITY names ~/identity.txt, which cannot be read"
    )


def test_an_identity_is_not_read_without_end() -> None:
    (problem,) = problems(LOCAL | {"BACKUP_DECRYPTION_IDENTITY": "/dev/zero"})
    assert problem.startswith("BACKUP_DECRYPTION_IDENTITY names /dev/zero, which")


FOR_KMS = ON | {"BACKUP_ENCRYPTION_RECIPIENTS": KMS_KEY}


def test_a_key_of_kms_is_enough_to_encrypt() -> None:
    values = load(FOR_KMS)
    assert values.recipients == values.kms_recipients == [KMS_KEY]
    assert values.passphrase is None
    (problem,) = problems(ON | {"BACKUP_ENCRYPTION_RECIPIENTS": KMS_KEY[:-40]})
    assert "1 recipient that cannot be used (entry 1 of 1)" in problem
    assert "arn:aws:kms:" in problem


def test_drills_of_the_service_may_ask_kms() -> None:
    """Whether it may decrypt is known only when it is asked."""
    both = f"{ANN.recipient},{KMS_KEY}"
    for recipients in (KMS_KEY, both):
        wanted = {"BACKUP_ENCRYPTION_RECIPIENTS": recipients, "VERIFY_INTERVAL": "after-backup"}
        assert load(ON | wanted).verify_interval == "after-backup"


def test_a_machine_that_only_restores_may_name_a_key_of_kms_alone() -> None:
    only = {"STORAGE_URL": "file:///b", "BACKUP_ENCRYPTION_RECIPIENTS": KMS_KEY}
    found = settings.load(only, NO_FILE, needs=["storage"], only_reads=True)
    assert found.only_reads_with_key
    assert access_of(found, unverified=False).only_passphrase is False


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ({"STORAGE_URL": "file:///backups"}, False),
        ({"S3_ENDPOINT": "https://minio:9000"}, False),
        ({"S3_ENDPOINT": "https://s3.eu-central-1.amazonaws.com"}, True),
        ({"S3_REGION": "eu-central-1"}, True),
    ],
)
def test_the_identity_of_the_store_is_one_of_aws_in_its_own_s3(
    store: dict[str, str], *, expected: bool
) -> None:
    keys = {"S3_BUCKET": "b", "S3_ACCESS_KEY_ID": "x", "S3_SECRET_ACCESS_KEY": "y"}
    more = {} if "STORAGE_URL" in store else keys if "S3_ENDPOINT" in store else {"S3_BUCKET": "b"}
    source = {"DATABASE_URL": LOCAL["DATABASE_URL"]}
    assert load(source | store | more).is_on_aws == expected


@pytest.mark.parametrize("recipient", [KMS_KEY, ANN.recipient])
def test_variables_of_aws_are_for_kms_too(recipient: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AWS_ACCESS_KEY_ID=x\nAWS_SECRET_ACCESS_KEY=planted-of-aws\n")
    environ = dict(ON | {"BACKUP_ENCRYPTION_RECIPIENTS": recipient})
    values = settings.load(environ, tmp_path / ".env")
    assert ("AWS_ACCESS_KEY_ID" in environ) == (recipient == KMS_KEY)
    assert ("planted-of-aws" in values.secrets()) == (recipient == KMS_KEY)
