"""What Slack and Discord refuse, as their references and their answers say.

Slack: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks and
https://docs.slack.dev/legacy/legacy-messaging/legacy-secondary-message-attachments.
Discord: https://docs.discord.com/developers/resources/webhook#execute-webhook and
https://docs.discord.com/developers/resources/message#embed-object-embed-limits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime

_SLACK_KEYS = {"text", "attachments"}
_ATTACHMENT_KEYS = {"fallback", "color", "text", "fields", "mrkdwn_in", "footer"}
_EMBED_LIMITS = {"title": 256, "description": 4096}
_MOST_FIELDS, _LONGEST_NAME, _LONGEST_VALUE, _LONGEST_EMBED = 25, 256, 1024, 6000


def refused_by_slack(body: bytes) -> str:
    """Return the word that Slack answers, or an empty text if it takes the message."""
    try:
        message = json.loads(body)
    except ValueError:
        return "invalid_payload"
    if not isinstance(message, dict) or not set(message) <= _SLACK_KEYS:
        return "invalid_payload"
    if not message.get("text") and not message.get("attachments"):
        return "no_text"
    attachments = message.get("attachments", [])
    if len(attachments) > 100:
        return "too_many_attachments"
    for each in attachments:
        texts = [each["fallback"], each["text"]]
        texts += [text for field in each["fields"] for text in (field["title"], field["value"])]
        right = set(each) <= _ATTACHMENT_KEYS and re.fullmatch("#[0-9a-f]{6}", each["color"])
        if not right or not all(isinstance(text, str) and text for text in texts):
            return "invalid_attachments"
    return ""


def refused_by_discord(body: bytes) -> str:
    """Return Discord's answer, or an empty text if it takes the message."""
    try:
        message = json.loads(body)
    except ValueError:
        return _discord("The request body contains invalid JSON.", 50109)
    if not isinstance(message, dict) or not (message.get("content") or message.get("embeds")):
        return _discord("Cannot send an empty message", 50006)
    if any(_is_refused(embed) for embed in message.get("embeds", [])):
        return _discord("Invalid Form Body", 50035)
    return ""


def _is_refused(embed: Mapping[str, object]) -> bool:
    total, wrong = 0, not isinstance(embed["color"], int)
    for name, limit in _EMBED_LIMITS.items():
        total += len(str(embed[name]))
        wrong |= not 0 < len(str(embed[name])) <= limit
    fields = embed["fields"]
    if not isinstance(fields, list) or len(fields) > _MOST_FIELDS:
        return True
    for field in fields:
        name, value = field["name"], field["value"]
        total += len(name) + len(value)
        wrong |= not 0 < len(name) <= _LONGEST_NAME or not 0 < len(value) <= _LONGEST_VALUE
        wrong |= not isinstance(field["inline"], bool)
    datetime.fromisoformat(str(embed["timestamp"]))
    return wrong or total > _LONGEST_EMBED


def _discord(message: str, code: int) -> str:
    return json.dumps({"message": message, "code": code})
