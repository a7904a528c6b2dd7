"""The secret parts of a URL: messages of libraries may quote them separately."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

_TOKEN_LENGTH = 12  # shorter parts are words such as "services"


def of_urls(urls: Iterable[str]) -> list[str]:
    """Return URLs and their secret parts; an empty text has none."""
    return [part for url in urls if url for part in (url, *of_url(url))]


def of_url(url: str) -> list[str]:
    """Return the path, its longer parts, and the password of a URL."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    longer = [part for part in (target, *parts.path.split("/")) if len(part) >= _TOKEN_LENGTH]
    return longer + [part for part in (parts.password, unquote(parts.password or "")) if part]
