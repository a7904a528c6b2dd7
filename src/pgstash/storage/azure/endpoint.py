"""Where the blob service of an account is."""

from __future__ import annotations


def of(account: str, endpoint: str | None, connection_string: str | None) -> str:
    """Return the URL that requests go to, as the SDK chooses it.

    https://learn.microsoft.com/azure/storage/common/storage-configure-connection-string
    """
    pairs = (pair.partition("=") for pair in (connection_string or "").split(";"))
    found = {name.strip().lower(): value for name, _, value in pairs}
    if "blobendpoint" in found:
        return found["blobendpoint"]
    if connection_string:
        scheme = found.get("defaultendpointsprotocol", "https")
        suffix = found.get("endpointsuffix", "core.windows.net")
        return f"{scheme}://{account}.blob.{suffix}"
    return endpoint or f"https://{account}.blob.core.windows.net"
