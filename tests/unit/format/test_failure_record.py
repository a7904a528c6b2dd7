"""The record of a failed run: what is written is read again, and nothing hostile gets through."""

from __future__ import annotations

import pytest

from pgstash.errors import CorruptedError
from pgstash.format import failure_record
from pgstash.format.authenticated_json import Authenticate
from pgstash.format.failure_record import Facts, Failure
from pgstash.format.identity import Identity
from pgstash.repository.object_metadata import decoded

FAILURE = Failure(
    format=1,
    tool="pgstash 1.2.3",
    operation="drill",
    id="0123456789abcdef",
    started="2026-01-31T02:00:00Z",
    seconds=12.345,
    phase="restoring",
    error="DrillFailedError",
    exit_code=42,
    message="the table “ü” differs",
    hint="Do not rely on it.",
    backup="backup_20260131_020000.sql.gz",
    machine="worker-1",
)


def authenticate(text: bytes) -> str:
    return f"{len(text):064x}"


@pytest.mark.parametrize("key", [None, authenticate])
def test_what_is_written_is_read(key: Authenticate | None) -> None:
    assert failure_record.load("x", failure_record.dump(FAILURE, key), key) == FAILURE


def test_a_later_version_may_add_facts() -> None:
    text = failure_record.dump(FAILURE, None).replace(b"{\n", b'{\n"colour": "red",\n', 1)
    assert failure_record.load("x", text, None) == FAILURE


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, failure_record.dump(FAILURE, authenticate)]
)
def test_what_is_no_record(text: bytes) -> None:
    with pytest.raises(CorruptedError):
        failure_record.load("x", text, None)


def test_a_record_that_was_changed() -> None:
    text = failure_record.dump(FAILURE, authenticate).replace(b"restoring", b"restoring ")
    with pytest.raises(CorruptedError, match="HMAC"):
        failure_record.load("x", text, authenticate)


def test_the_metadata_have_everything_but_the_message() -> None:
    known = failure_record.facts(FAILURE, Identity("shöp", "7", "db1", "5432"))
    assert all(value.isascii() for value in known.values())
    assert not any("differs" in value or "worker" in value for value in known.values())
    assert Identity.of(decoded(known)) == Identity("shöp", "7", "db1", "5432")
    backup = "backup_20260131_020000.sql.gz"
    expected = Facts("drill", "DrillFailedError", 42, "restoring", 12.3, backup)
    assert failure_record.read_facts(decoded(known)) == expected


@pytest.mark.parametrize("number", ["", "-1", "x", "9" * 5000, "²", "1e9", "nan", "٣"])
def test_metadata_that_someone_else_wrote(number: str) -> None:
    known = {"exit-code": number, "seconds": number, "operation": number, "error": "x" * 5000}
    found = failure_record.read_facts(known)
    assert (found.exit_code, found.seconds, found.operation) == (None, None, "backup")
    assert len(found.error) == 100
    assert failure_record.read_facts({}) == Facts("backup", "", None, "", None, "")


@pytest.mark.parametrize(("text", "seconds"), [("0.0", 0.0), ("12.5", 12.5), ("7", 7.0)])
def test_a_duration(text: str, seconds: float) -> None:
    assert failure_record.seconds_of(text) == seconds
