"""The preflight of the way to the store: who could read along."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from pgstash.check.finding import Finding


def look(endpoint: str | None, setting: str) -> Finding:
    """Return whether the connection to the store is encrypted, or need not be.

    ``setting`` is where the user would change the ``endpoint``; None is a directory.
    """
    url = urlsplit(endpoint or "")
    host = url.hostname or ""
    if endpoint is None:
        return Finding("store TLS", "ok", "not needed: a directory")
    if url.scheme == "https":
        return Finding("store TLS", "ok", f"on, to {host}")
    if _is_loopback(host):
        return Finding("store TLS", "ok", "not needed: the connection stays on this machine")
    return Finding(
        "store TLS",
        "warning",
        f"off: anyone on the network path to {host} can read the backups",
        f"Start {setting} with https://, or turn BACKUP_ENCRYPTION on.",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
