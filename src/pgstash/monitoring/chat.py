"""Messages in the shapes that Slack and Discord take, made from the payload of the webhook.

Slack's attachments are the shape that Mattermost, Rocket.Chat and Discord's ``/slack`` take too:
https://docs.slack.dev/legacy/legacy-messaging/legacy-secondary-message-attachments.
Discord's embeds and their limits: https://docs.discord.com/developers/resources/message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pgstash.monitoring import messages

Format = Literal["json", "slack", "discord"]

_DISCORD_HOSTS = ("discord.com", "discordapp.com")
_GREEN, _RED = 0x2EB67D, 0xE01E5A
_PASSED = {"backup": "succeeded", "drill": "passed"}
_NAMES = {"copy": "Copying", "prune": "Pruning"}
_MOST_WARNINGS = 3

# Characters. Discord refuses a longer text; 6,000 in all. Slack shows the first 700 of a text.
_LONGEST_TITLE = 256
_LONGEST_TEXT = 2000
_LONGEST_VALUE = 700


def format_of(url: str, wanted: Format | None) -> Format:
    """Return the format for a URL: the wanted one, or what Slack's and Discord's own URLs take."""
    if wanted:
        return wanted
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path.rstrip("/")
    if host == "hooks.slack.com" and path.startswith("/services/"):
        return "slack"
    discord = host in _DISCORD_HOSTS or host.endswith(tuple(f".{each}" for each in _DISCORD_HOSTS))
    if discord and "/webhooks/" in path:
        if path.endswith("/slack"):
            return "slack"
        return "json" if path.endswith("/github") else "discord"
    return "json"


def slack(payload: Mapping[str, object]) -> dict[str, object]:
    """Return the message for Slack. Nothing in it is taken for markup or for a mention."""
    return {
        "text": _for_slack(title(payload)),
        "attachments": [
            {
                "fallback": _for_slack(title(payload)),
                "color": f"#{_color(payload):06x}",
                "text": _for_slack(_cut(str(payload["message"]), _LONGEST_TEXT)),
                "fields": [
                    {"title": name, "value": _for_slack(value), "short": len(value) < 40}  # noqa: PLR2004 - fits into half a line
                    for name, value in fields(payload).items()
                ],
                "mrkdwn_in": [],
                "footer": "pgstash",
            }
        ],
    }


def discord(payload: Mapping[str, object]) -> dict[str, object]:
    """Return the message for Discord. Nothing in it is taken for markup or for a mention."""
    return {
        "allowed_mentions": {"parse": []},
        "embeds": [
            {
                "title": _cut(_for_discord(title(payload)), _LONGEST_TITLE),
                "description": _cut(_for_discord(str(payload["message"])), _LONGEST_TEXT),
                "color": _color(payload),
                "fields": [
                    {
                        "name": name,
                        "value": _cut(_for_discord(value), _LONGEST_VALUE),
                        "inline": len(value) < 40,  # noqa: PLR2004 - fits next to another
                    }
                    for name, value in fields(payload).items()
                ],
                "timestamp": payload["timestamp"],
                "footer": {"text": "pgstash"},
            }
        ],
    }


def title(payload: Mapping[str, object]) -> str:
    """Return the headline of a message."""
    extra, database = _part(payload, "extra"), _part(payload, "database")
    where = f"{database['name']} on {database['host']}"
    if extra.get("test"):
        return f"Test of pgstash: {where}"
    operation = str(extra["operation"])
    ended = _PASSED[operation] if payload["status"] == "success" else "failed"
    return f"{_NAMES.get(operation, operation.capitalize())} {ended}: {where}"


def fields(payload: Mapping[str, object]) -> dict[str, str]:
    """Return what is below the message, by its name; no value is empty."""
    extra = _part(payload, "extra")
    found = {
        "What to do": extra.get("hint"),
        "Copy": extra.get("copy"),
        "Next attempt": extra.get("next_attempt"),
        "Last proven": extra.get("last_proof"),
        "Warnings": _warnings(extra.get("warnings")),
    }
    stored = extra.get("stored_bytes")
    if isinstance(stored, int):
        found["Stored"] = messages.size(stored)
    return {name: _cut(str(value), _LONGEST_VALUE) for name, value in found.items() if value}


def _warnings(warnings: object) -> str:
    if not isinstance(warnings, list):
        return ""
    first = [_cut(str(each), _LONGEST_VALUE // _MOST_WARNINGS - 10) for each in warnings]
    more = len(warnings) - _MOST_WARNINGS
    return "\n".join(first[:_MOST_WARNINGS] + ([f"and {more} more"] if more > 0 else []))


def _part(payload: Mapping[str, object], name: str) -> Mapping[str, object]:
    part = payload[name]
    if not isinstance(part, Mapping):
        raise TypeError(f"{name} is not a mapping")
    return part


def _color(payload: Mapping[str, object]) -> int:
    return _GREEN if payload["status"] == "success" else _RED


def _for_slack(text: str) -> str:
    """Escape what Slack reads as markup: https://docs.slack.dev/messaging/formatting-message-text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _for_discord(text: str) -> str:
    return re.sub(r"([\\*_~`|>#\[\]<])", r"\\\1", text)


def _cut(text: str, longest: int) -> str:
    """Cut a text. Half an escape at the end of it does no harm before the ellipsis."""
    return text if len(text) <= longest else f"{text[: longest - 2].rstrip(chr(92))}…"
