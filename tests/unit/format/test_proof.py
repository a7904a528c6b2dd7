"""A proof records what was shown, and cannot be forged without the key."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace

from pgstash.format import proof
from pgstash.pipeline.encryption import Key

KEY = Key.derive("correct horse battery staple, and more", b"a salt, ")
PROOF = proof.Proof(
    format=proof.FORMAT,
    reader=proof.READER,
    tool="pgstash test",
    archive="backup_20260131_020000.sql.gz.enc",
    id="0123456789abcdef",
    sha256="ab" * 32,
    at="2026-02-01T03:00:00Z",
    scratch="a throwaway server",
    server="18.6",
    client="18.6",
    seconds=7.5,
    restore_seconds=5.25,
    raw_bytes=1000,
    stored_bytes=300,
    tables=2,
    rows=10,
    checks=[proof.Check("rows", passed=True, found='2 tables, "ü"')],
    warnings=[],
)
HMAC = re.compile(rb',\n"hmac": "([0-9a-f]{64})"\n}\n\Z')


def test_without_a_key_it_is_what_was_shown() -> None:
    assert json.loads(proof.dump(PROOF, None)) == asdict(PROOF)


def test_the_hmac_covers_every_byte_before_it() -> None:
    text = proof.dump(PROOF, KEY.authenticate)
    found = HMAC.search(text)
    assert found
    assert found[1].decode() == KEY.authenticate(text[: found.start()])
    value = json.loads(text)
    assert value.pop("hmac") == found[1].decode()
    assert value == asdict(PROOF)


def test_another_proof_has_another_hmac() -> None:
    texts = [proof.dump(each, KEY.authenticate) for each in (PROOF, replace(PROOF, rows=11))]
    assert json.loads(texts[0])["hmac"] != json.loads(texts[1])["hmac"]
