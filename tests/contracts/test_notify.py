"""Messages by Apprise to a real HTTP server and a real SMTP server."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from pgstash import events
from pgstash.errors import DatabaseUnreachableError
from pgstash.monitoring.http_delivery import Courier, finished
from pgstash.monitoring.messages import KINDS
from pgstash.monitoring.notify import Addresses, Notifier
from pgstash.monitoring.redaction import Scrubber
from support.hooks import Receiver, receiving
from support.smtp import mailbox

NAME = "backup_20260131_020000.sql.gz"
SECRET = "PlantedSecret-0123456789"
BEGAN = datetime(2026, 1, 31, 2, tzinfo=UTC)
ATTEMPTED = events.BackupAttempted("db", "shop")
DRILLING = events.DrillAttempted(NAME)
ERROR = DatabaseUnreachableError.__name__
FAILED = events.BackupFailed(NAME, 3.2, f"down, {SECRET}", "Check it.", "db", "shop", ERROR, 10)
SUCCEEDED = events.BackupSucceeded(NAME, 1, "s3://x", 1, 102_000_000, 1, 1, "db", "shop")
SHRUNK = events.BackupShrunk(NAME, ("1 row instead of 9",))
DRILL_FAILED = events.DrillFailed(NAME, 7.0, "no rows", "Look.", "db", "shop", "X", 60)
PASSED = events.DrillSucceeded(NAME, 4.0, 3.0, "s3://p", BEGAN, 5, 1, 1, "db", "shop")
NOT_COPIED = events.CopyFailed(
    NAME, "offsite", 2.0, "down", "", after_backup=True, error="Y", host="db", database="shop"
)
NOT_PRUNED = events.PruneFailed("refused", "Look.", error="Z", host="db", database="shop")

Before = Callable[[str, datetime], str | None]


def titles(
    *heard: events.Event, before: str | None = "", wanted: str = ",".join(KINDS)
) -> list[str]:
    """Return the titles of the messages that a receiver of JSON gets."""
    with receiving() as receiver:
        url = receiver.url().replace("http:", "json:")
        warnings = tell([url], heard, before, wanted)
        assert warnings == []
        return [each.json["title"] for each in receiver.received]


def tell(
    urls: list[str], heard: tuple[events.Event, ...], before: str | None, wanted: str
) -> list[str]:
    warnings: list[str] = []
    courier = Courier("A message", warnings.append)
    asked: list[tuple[str, datetime]] = []

    def asked_before(operation: str, began: datetime) -> str | None:
        asked.append((operation, began))
        return before

    addresses = Addresses(urls, frozenset(wanted.split(",")), Scrubber([SECRET]))
    notifier = Notifier(addresses, courier, asked_before, lambda: BEGAN)
    with finished([courier]):
        for event in heard:
            notifier(event)
    assert all(began == BEGAN for _, began in asked)
    return warnings


@pytest.mark.parametrize(
    ("heard", "before", "expected"),
    [
        ([ATTEMPTED, FAILED], "", ["Backup failed: shop on db"]),
        ([ATTEMPTED, FAILED], None, ["Backup failed: shop on db"]),
        ([ATTEMPTED, FAILED], "OtherError", ["Backup failed: shop on db"]),
        ([ATTEMPTED, FAILED], ERROR, []),
        ([ATTEMPTED, SUCCEEDED], ERROR, ["Well again: Backup succeeded: shop on db"]),
        ([ATTEMPTED, SUCCEEDED], "", ["Backup succeeded: shop on db"]),
        ([ATTEMPTED, SUCCEEDED], None, ["Backup succeeded: shop on db"]),
        ([DRILLING, DRILL_FAILED], "", ["Drill failed: shop on db"]),
        ([DRILLING, DRILL_FAILED], "X", []),
        ([DRILLING, PASSED], "X", ["Well again: Drill passed: shop on db"]),
        ([NOT_COPIED, NOT_COPIED], "", ["Copying failed: shop on db"]),
        ([NOT_PRUNED, NOT_PRUNED], "", ["Pruning failed: shop on db"]),
    ],
)
def test_a_message_when_something_changes(
    heard: list[events.Event], before: str | None, expected: list[str]
) -> None:
    assert titles(*heard, before=before) == expected


def test_only_what_is_wanted() -> None:
    assert titles(ATTEMPTED, SUCCEEDED, wanted="failure,recovery") == []
    assert titles(ATTEMPTED, SUCCEEDED, before=ERROR, wanted="failure,success") == [
        "Backup succeeded: shop on db"
    ]
    shrunk = titles(ATTEMPTED, SHRUNK, SUCCEEDED, ATTEMPTED, SUCCEEDED, wanted="shrunk")
    assert shrunk == ["Much smaller than usual: Backup succeeded: shop on db"]


def test_what_the_service_tries_again_is_one_message() -> None:
    again = events.BackupFailed(NAME, 1, "x", "", "db", "shop", ERROR, 10, repeated=True)
    assert titles(ATTEMPTED, FAILED, ATTEMPTED, again) == ["Backup failed: shop on db"]


def test_a_mail_without_secrets() -> None:
    with mailbox() as box:
        url = f"mailto://127.0.0.1:{box.port}/?from=a@example.com&to=b@example.com&mode=insecure"
        assert tell([url], (ATTEMPTED, FAILED), "", "failure") == []
        [mail] = box.messages
    assert mail["Subject"] == "Backup failed: shop on db"
    body = mail.get_body(("plain", "html"))
    assert body is not None
    assert "down, ***" in body.get_content()
    assert "What to do: Check it." in body.get_content()
    assert SECRET not in mail.as_string()


def test_one_address_that_fails_harms_no_other_and_is_named_by_its_number() -> None:
    with (
        mailbox(refuses=True) as box,
        receiving() as receiver,
        receiving(Receiver([500])) as broken,
    ):
        urls = [
            f"mailto://127.0.0.1:{box.port}/?from=a@example.com&to=b@example.com&mode=insecure",
            broken.url("/planted-token").replace("http:", "json:"),
            f"nothing://{SECRET}",
            receiver.url().replace("http:", "json:"),
        ]
        [warning] = tell(urls, (ATTEMPTED, FAILED), "", "failure")
        assert len(receiver.received) == 1
    assert "address 1 of NOTIFY_URLS (E-Mail): " in warning
    assert "address 2 of NOTIFY_URLS (JSON): " in warning
    assert "500" in warning
    assert "address 3 of NOTIFY_URLS is not one that Apprise knows" in warning
    assert "address 4" not in warning
    assert SECRET not in warning
    assert "planted-token" not in warning


def test_names_and_errors_are_no_markup_in_a_mail() -> None:
    odd = events.BackupFailed(
        NAME, 1.0, 'no <a href="http://x">table</a>', "Look\nat it.", "db", "shop", ERROR, 10
    )
    with mailbox() as box:
        url = f"mailto://127.0.0.1:{box.port}/?from=a@example.com&to=b@example.com&mode=insecure"
        assert tell([url], (ATTEMPTED, odd), "", "failure") == []
        [mail] = box.messages
    assert mail.get_body(("html",)) is None
    plain = mail.get_body(("plain",))
    assert plain is not None
    assert 'no <a href="http://x">table</a>' in plain.get_content()
    assert "\nWhat to do: Look\nat it." in plain.get_content().replace("\r\n", "\n")


def test_what_a_service_would_refuse_as_too_long_is_cut() -> None:
    long = events.BackupFailed(NAME, 1.0, "x" * 90_000, "", "db", "shop", ERROR, 10)
    with receiving() as receiver:
        urls = [
            f"rocket://{'a' * 17}/{'b' * 43}@127.0.0.1:{receiver.port}/#alerts",
            receiver.url().replace("http:", "json:"),
        ]
        assert tell(urls, (ATTEMPTED, long), "", "failure") == []
        cut, whole = (each.json for each in receiver.received)
    assert "Backup failed" in cut["text"]
    assert len(cut["text"]) <= 1000
    assert len(whole["message"]) > 4000


def test_an_error_inside_one_address_harms_no_other() -> None:
    with receiving() as receiver:
        url = receiver.url().replace("http:", "json:")
        odd = f"{url}?+X-Odd=%E2%82%AC"  # no header can have it
        [warning] = tell([odd, url], (ATTEMPTED, FAILED), "", "failure")
        assert len(receiver.received) == 1
    assert "address 1 of NOTIFY_URLS (JSON): UnicodeEncodeError" in warning
    assert "address 2" not in warning


@pytest.mark.parametrize("problem", ["silent", "broken"])
def test_a_store_that_does_not_say_what_was_before_keeps_no_message_back(problem: str) -> None:
    ended = threading.Event()

    def before(_operation: str, _began: datetime) -> str | None:
        if problem == "broken":
            raise ValueError("no answer that can be read")
        ended.wait(20)
        return ERROR

    warnings: list[str] = []
    with receiving() as receiver:
        url = receiver.url().replace("http:", "json:")
        courier = Courier("A message", warnings.append)
        addresses = Addresses([url], frozenset(["failure"]), Scrubber([]))
        notifier = Notifier(addresses, courier, before, ask_seconds=0.1)
        with finished([courier]):
            notifier(ATTEMPTED)
            notifier(FAILED)
            receiver.wait_for(1, 5)
            ended.set()
    assert warnings == []
