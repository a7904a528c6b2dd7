"""Wrapped passphrases: who can open them, and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyrage
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.errors import CorruptedError, EncryptionError
from pgstash.pipeline import age, recipients
from pgstash.pipeline.age import UnusableError, Wrapped
from support.age_keys import opened_by_age, person, ssh_person

ANN, BEN, EVE = person("ann"), person("ben"), person("eve")
PASSPHRASE = age.new_passphrase(lambda count: b"r" * count)
WRAPPED = Wrapped(PASSPHRASE, [ANN.recipient, BEN.recipient])
PACKED = age.wrap(WRAPPED)


def test_a_passphrase_has_256_random_bits() -> None:
    asked: list[int] = []

    def random(count: int) -> bytes:
        asked.append(count)
        return b"\xa5" * count

    assert age.new_passphrase(random) == "pgstash-key-" + "a5" * 32
    assert asked == [32]


@pytest.mark.parametrize("who", [ANN, BEN])
def test_each_recipient_opens_it(who: object) -> None:
    packed = age.wrap(WRAPPED)
    assert PASSPHRASE.encode() not in packed
    assert age.unwrap("it", packed, getattr(who, "identity", "")) == WRAPPED
    assert PASSPHRASE not in repr(WRAPPED)


def test_nobody_else_opens_it() -> None:
    with pytest.raises(CorruptedError, match="does not open with the identity") as caught:
        age.unwrap("backup.key.age", age.wrap(WRAPPED), EVE.identity)
    assert "BACKUP_DECRYPTION_IDENTITY" in caught.value.hint
    assert EVE.identity not in str(caught.value)


def test_one_of_several_identities_is_enough() -> None:
    both = f"# two keys\n\n{EVE.identity}\n  {BEN.identity}\n"
    assert age.unwrap("it", age.wrap(WRAPPED), both) == WRAPPED


def test_age_itself_opens_it(tmp_path: Path) -> None:
    path = tmp_path / "key.age"
    path.write_bytes(age.wrap(WRAPPED))
    text = opened_by_age(path, ANN.file(tmp_path))
    # openssl takes the first line of a file, or of stdin, for the passphrase.
    assert text == f"{PASSPHRASE}\nfor {ANN.recipient}\nfor {BEN.recipient}\n"


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_ssh_keys_open_it(kind: str, tmp_path: Path) -> None:
    who = ssh_person(tmp_path, kind)
    [recipient] = recipients.parse(f"{who.recipient}\n")
    assert recipient == " ".join(who.recipient.split()[:2])
    packed = age.wrap(Wrapped(PASSPHRASE, [recipient, ANN.recipient]))
    assert age.unwrap("it", packed, who.identity).passphrase == PASSPHRASE
    assert age.unwrap("it", packed, f"{EVE.identity}\n{who.identity}").passphrase == PASSPHRASE
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / f"id_{kind}.pub"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    label = age.label(recipient)
    assert label.startswith(f"ssh-{kind}:SHA256:")
    assert label.partition(":")[2] in shown


def test_recipients_are_separated_by_commas_and_lines() -> None:
    text = f"# the team\n {ANN.recipient} ,{BEN.recipient}\n\n{ANN.recipient}\r\n"
    assert recipients.parse(text) == [ANN.recipient, BEN.recipient]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no recipient"),
        (" , \n# nobody", "names no recipient"),
        (f"{ANN.recipient},age1wrong,ssh-ed25519 AAAA", r"2 recipients .* \(entries 2, 3 of 3\)"),
        (f"{ANN.recipient}x", r"1 recipient .* \(entry 1 of 1\)"),
        ("a passphrase, by mistake", "2 recipients that cannot be used"),
        (EVE.identity, "contains a secret key"),
        (EVE.identity.lower(), "contains a secret key"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nx", "contains a secret key"),
    ],
)
def test_what_is_no_recipient_is_refused_and_not_quoted(text: str, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason) as caught:
        recipients.parse(text)
    for word in ("passphrase,", "mistake", "age1wrong", EVE.identity):
        assert word not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "contains no secret key"),
        ("# only a comment\n", "contains no secret key"),
        (ANN.recipient, "something else than secret keys"),
        (f"{ANN.identity}\nsomething", "something else than secret keys"),
        ("AGE-SECRET-KEY-1WRONG", "something else than secret keys"),
        ("age-encryption.org/v1\n-> scrypt", "is encrypted with a passphrase itself"),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nx", "is encrypted with a passphrase itself"),
    ],
)
def test_what_is_no_identity_is_refused_and_not_quoted(text: str, reason: str) -> None:
    with pytest.raises(UnusableError, match=reason) as caught:
        age.identities(text)
    assert "WRONG" not in str(caught.value)
    assert ANN.identity not in str(caught.value)


def test_an_ssh_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    who = ssh_person(tmp_path, passphrase="secret of the key")
    with pytest.raises(UnusableError, match="OpenSSH keys without a passphrase"):
        age.identities(who.identity)


def test_an_identity_that_cannot_be_used_is_an_error_of_encryption() -> None:
    with pytest.raises(EncryptionError, match="cannot be opened: the identity contains no secret"):
        age.unwrap("it", age.wrap(WRAPPED), "#")


@given(st.binary(max_size=200), st.integers(0, 200))
def test_damage_is_an_error(garbage: bytes, cut: int) -> None:
    packed = PACKED
    for data in (garbage, packed[:cut], packed[:cut] + garbage, packed[: -1 - cut]):
        with pytest.raises(CorruptedError):
            age.unwrap("it", data, ANN.identity)


@pytest.mark.parametrize("text", [b"", b"password\n", "ä".encode(), PASSPHRASE.encode() + b"0"])
def test_another_text_for_the_same_recipient_is_not_a_passphrase(text: bytes) -> None:
    """Anyone can encrypt a text for a public key."""
    packed = pyrage.encrypt(text, [pyrage.x25519.Recipient.from_str(ANN.recipient)])
    with pytest.raises(CorruptedError, match="holds no passphrase of pgstash"):
        age.unwrap("it", packed, ANN.identity)


def test_a_recipient_of_later_is_not_wrapped_for() -> None:
    with pytest.raises(EncryptionError, match="could not be wrapped"):
        age.wrap(Wrapped(PASSPHRASE, ["age2later"]))


def test_too_many_recipients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age, "LARGEST", len(age.wrap(WRAPPED)))
    with pytest.raises(EncryptionError, match="3 recipients are more than fit"):
        age.wrap(Wrapped(PASSPHRASE, [ANN.recipient] * 3))


def test_labels_are_short_and_of_any_text() -> None:
    assert age.label(ANN.recipient) == ANN.recipient[:20]
    assert age.label("ssh-ed25519 not/base64!") == "ssh-ed25519"
    assert recipients.labels([ANN.recipient, BEN.recipient]).count(", ") == 1


def test_without_the_library_the_message_has_the_command() -> None:
    code = (
        "import sys; sys.modules['pyrage'] = None\n"
        "from pgstash.pipeline import age, recipients\n"
        "try: recipients.parse('age1x')\n"
        "except age.UnusableError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"not installed\. Install it: pip install 'pgstash\[age\]'", done.stdout)
