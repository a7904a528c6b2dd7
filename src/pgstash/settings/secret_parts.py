"""The secret parts of a URL: messages of libraries may quote them separately."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import parse_qsl, unquote, urlsplit

_TOKEN_LENGTH = 12  # shorter parts are words such as "services"


def of_all(urls: Iterable[str], addresses: Iterable[str]) -> list[str]:
    """Return URLs, and addresses of Apprise, and their secret parts; an empty text has none."""
    found = [part for url in urls if url for part in (url, *of_url(url))]
    return found + [part for each in addresses for part in _of_address(each)]


def _of_address(address: str) -> list[str]:
    """Return an address and its secret parts.

    A token may be where a web address has its host or its user, or in the query. What has a dot is
    the name of a server.
    """
    parts = urlsplit(address)
    pieces = re.split("[@:]", parts.netloc) + [value for _, value in parse_qsl(parts.query)]
    secret = [each for each in pieces if len(each) >= _TOKEN_LENGTH and "." not in each]
    return [address, *of_url(address), *secret, *map(unquote, secret)]


def of_url(url: str) -> list[str]:
    """Return the path, its longer parts, and the password of a URL."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    longer = [part for part in (target, *parts.path.split("/")) if len(part) >= _TOKEN_LENGTH]
    return longer + [part for part in (parts.password, unquote(parts.password or "")) if part]
