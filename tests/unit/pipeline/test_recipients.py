"""Lists of recipients: public keys and keys of AWS KMS."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pgstash.pipeline import recipients
from support.age_keys import person
from support.kms import ALIAS, KEY

ANN = person("ann")


def test_public_keys_and_keys_of_kms_may_be_mixed() -> None:
    found = recipients.parse(f"# keys\n{KEY}, {ANN.recipient}\n{ALIAS}\n{KEY}")
    assert found == [KEY, ANN.recipient, ALIAS]
    assert recipients.of_kms(found) == [KEY, ALIAS]
    assert recipients.of_age(found) == [ANN.recipient]
    assert recipients.labels(found) == f"{KEY}, {ANN.recipient[:20]}, {ALIAS}"


@pytest.mark.parametrize("text", [KEY[:-40], "arn:aws:kms:eu-central-1:1:key/x", "alias/backups"])
def test_what_is_no_whole_arn_is_refused(text: str) -> None:
    with pytest.raises(recipients.UnusableError, match=r"\(entry 2 of 2\).*arn:aws:kms:…:key/…"):
        recipients.parse(f"{KEY},{text}")


def test_keys_of_kms_need_no_library_of_age() -> None:
    code = (
        "import sys; sys.modules['pyrage'] = None\n"
        "from pgstash.pipeline import recipients\n"
        f"print(recipients.parse({KEY!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert KEY in done.stdout
