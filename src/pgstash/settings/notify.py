"""Validators of what NOTIFY_URLS and NOTIFY_ON hold."""

from __future__ import annotations

import re

from pydantic import SecretStr

from pgstash.monitoring.messages import KINDS

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://.")


def addresses(urls: SecretStr) -> SecretStr:
    """Return addresses of Apprise. Whether it knows them is found out by sending."""
    each = urls.get_secret_value().split()
    wrong = [number for number, url in enumerate(each, 1) if not _ADDRESS.match(url)]
    if wrong or not each:
        numbers = ", ".join(map(str, wrong))
        raise ValueError(f"holds no URL as number {numbers}" if each else "holds no URL")
    return urls


def kinds(names: str) -> str:
    """Return kinds of messages, separated by commas."""
    if wrong := [each for each in map(str.strip, names.split(",")) if each not in KINDS]:
        raise ValueError(f"holds {', '.join(map(repr, wrong))}")
    return names
