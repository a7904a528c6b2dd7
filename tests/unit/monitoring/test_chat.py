"""Messages for Slack and Discord: which URL gets which, what is in them, what cannot break them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.monitoring import chat
from pgstash.monitoring.receiver import Payload, Receiver
from pgstash.monitoring.redaction import Scrubber
from support.chat import refused_by_discord, refused_by_slack

SLACK = "https://hooks.slack.com/services/T0/B0/x"
DISCORD = "https://discord.com/api/webhooks/1/x"
SECRET = "PlantedSecret-0123456789"
NOW = datetime(2026, 1, 31, 2, 0, 22, tzinfo=UTC)


def payload(message: str = "It failed.", **extra: object) -> Payload:
    return {
        "timestamp": "2026-01-31T02:00:22Z",
        "status": "success" if extra.get("exit_code") == 0 else "failure",
        "message": message,
        "service": "postgres-backup",
        "database": {"host": "db.example.com", "name": "shop"},
        "extra": {"operation": "backup", "warnings": [], **extra},
    }


def body(url: str, message: Payload, secret: str = "", wanted: chat.Format | None = None) -> bytes:
    receiver = Receiver(url, Scrubber([SECRET]), wanted, secret, lambda: NOW)
    request = receiver.request(message)
    assert request.body is not None
    return request.body()


@pytest.mark.parametrize(
    ("url", "wanted", "expected"),
    [
        (SLACK, None, "slack"),
        (SLACK, "json", "json"),
        ("https://hooks.slack.com/triggers/T0/1/x", None, "json"),
        ("https://hooks.slack.com.example.com/services/T0/B0/x", None, "json"),
        (DISCORD, None, "discord"),
        ("https://ptb.discord.com/api/v10/webhooks/1/x/", None, "discord"),
        ("https://discordapp.com/api/webhooks/1/x?wait=true", None, "discord"),
        (f"{DISCORD}/slack", None, "slack"),
        (f"{DISCORD}/github", None, "json"),
        ("https://notdiscord.com/api/webhooks/1/x", None, "json"),
        ("https://chat.example.com/hooks/x", None, "json"),
        ("https://chat.example.com/hooks/x", "slack", "slack"),
    ],
)
def test_the_shape_that_a_url_takes(url: str, wanted: chat.Format | None, expected: str) -> None:
    assert chat.format_of(url, wanted) == expected


def test_a_failure_in_slack() -> None:
    message = payload("Backup failed: <!channel> & co", hint="Check it.", next_attempt="at 3")
    shown = json.loads(body(SLACK, message))
    assert shown["text"] == "Backup failed: shop on db.example.com"
    [attachment] = shown["attachments"]
    assert attachment["text"] == "Backup failed: &lt;!channel&gt; &amp; co"
    assert attachment["color"] == "#e01e5a"
    assert [(each["title"], each["value"]) for each in attachment["fields"]] == [
        ("What to do", "Check it."),
        ("Next attempt", "at 3"),
    ]
    assert attachment["mrkdwn_in"] == []


def test_a_success_in_discord() -> None:
    message = payload("Drill passed: a_b", operation="drill", exit_code=0, stored_bytes=102_000_000)
    shown = json.loads(body(DISCORD, message))
    assert shown["allowed_mentions"] == {"parse": []}
    [embed] = shown["embeds"]
    assert embed["title"] == "Drill passed: shop on db.example.com"
    assert embed["description"] == r"Drill passed: a\_b"
    assert embed["color"] == 0x2EB67D
    assert embed["fields"] == [{"name": "Stored", "value": "102MB", "inline": True}]


def test_a_copy_and_many_warnings() -> None:
    message = payload(operation="copy", copy="offsite", warnings=[f"w{n}" for n in range(20)])
    [attachment] = json.loads(body(SLACK, message))["attachments"]
    values = {each["title"]: each["value"] for each in attachment["fields"]}
    assert values == {"Copy": "offsite", "Warnings": "w0\nw1\nw2\nand 17 more"}


@pytest.mark.parametrize("url", [SLACK, DISCORD])
def test_no_secret_and_no_more_than_they_take(url: str) -> None:
    long = f"{'*' * 5000}{SECRET}"
    message = payload(SECRET + long, hint=long, copy=long, warnings=[SECRET + long] * 20)
    message["database"] = {"host": long, "name": SECRET}
    sent = body(url, message)
    assert SECRET.encode() not in sent
    assert (refused_by_slack if url == SLACK else refused_by_discord)(sent) == ""


@given(st.text(min_size=1), st.text(), st.lists(st.text()))
def test_any_text_is_taken(message: str, hint: str, warnings: list[str]) -> None:
    sent = payload(message, hint=hint, warnings=warnings)
    assert refused_by_slack(body(SLACK, sent)) == ""
    assert refused_by_discord(body(DISCORD, sent)) == ""


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("any text ü", "any text ü".encode()),
        ("whsec_" + base64.b64encode(b"k" * 24).decode(), b"k" * 24),
    ],
)
def test_the_signature_of_standard_webhooks(secret: str, key: bytes) -> None:
    receiver = Receiver("https://hooks.example.com/x", Scrubber([]), None, secret, lambda: NOW)
    request = receiver.request(payload())
    assert request.body is not None
    assert request.sign is not None
    sent = request.body()
    headers = request.sign(sent)
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + sent
    code = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{code}"
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert receiver.request(payload()).sign is not request.sign
    assert secret not in repr(receiver) + repr(request)


def test_nothing_is_signed_without_a_secret() -> None:
    assert Receiver("https://hooks.example.com/x", Scrubber([])).request(payload()).sign is None
