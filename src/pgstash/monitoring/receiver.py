"""Where messages are posted to: the address, the shape of the body, and its signature.

Signed as https://www.standardwebhooks.com describes, for which many languages have a library.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pgstash.monitoring import chat
from pgstash.monitoring.http_delivery import TRIES, Request
from pgstash.monitoring.redaction import Scrubber

LONGEST_TEXT = 4000
"""Characters of each text of a message."""

# Their values are constants of pgstash: never scrubbed, even if a secret is the same word.
_CONSTANT = ("status", "service", "operation", "error")
_PREFIX = "whsec_"

Payload = dict[str, object]


@dataclass(frozen=True, slots=True)
class Receiver:
    """The receiver of messages. ``secret`` signs them, unless it is empty.

    ``format`` is None for the one that the URL takes.
    """

    url: str = field(repr=False)
    scrubber: Scrubber = field(repr=False)
    format: chat.Format | None = None
    secret: str = field(default="", repr=False)
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def request(self, payload: Payload, tries: int = TRIES) -> Request:
        """Return the request that posts a payload, without secrets."""
        number = f"msg_{uuid.uuid4().hex}"
        return Request(
            "POST",
            self.url,
            lambda: self._body(payload),
            {"Content-Type": "application/json"},
            (lambda body: self._signature(number, body)) if self.secret else None,
            tries,
        )

    def _body(self, payload: Payload) -> bytes:
        clean = scrubbed(payload, self.scrubber)
        match chat.format_of(self.url, self.format):
            case "slack":
                return json.dumps(chat.slack(clean)).encode()
            case "discord":
                return json.dumps(chat.discord(clean)).encode()
            case "json":
                return json.dumps(clean).encode()

    def _signature(self, number: str, body: bytes) -> Mapping[str, str]:
        """Return the headers that prove who sent the body, and when."""
        at = str(int(self.now().timestamp()))
        signed = b".".join((number.encode(), at.encode(), body))
        code = hmac.digest(signing_key(self.secret), signed, hashlib.sha256)
        return {
            "webhook-id": number,
            "webhook-timestamp": at,
            "webhook-signature": f"v1,{base64.b64encode(code).decode()}",
        }


def signing_key(secret: str) -> bytes:
    """Return the key: base64 after ``whsec_``, or else the text itself. Raises binascii.Error."""
    if secret.startswith(_PREFIX):
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    return secret.encode()


def scrubbed(payload: Payload, scrubber: Scrubber) -> Payload:
    """Return a payload without secrets, with long texts shortened."""
    return {
        key: value if key in _CONSTANT else _scrubbed_value(value, scrubber)
        for key, value in payload.items()
    }


def _scrubbed_value(value: object, scrubber: Scrubber) -> object:
    if isinstance(value, dict):
        return scrubbed(value, scrubber)
    if isinstance(value, list):
        return [_scrubbed_value(inner, scrubber) for inner in value]
    return short(value, scrubber) if isinstance(value, str) else value


def short(text: str, scrubber: Scrubber) -> str:
    """Scrub before shortening: half a secret would not be recognised."""
    text = scrubber.scrub(text)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
