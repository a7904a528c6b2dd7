"""The endpoints of S3 on AWS, by their regions."""

from __future__ import annotations

from urllib.parse import urlsplit

_OF_AWS = (".amazonaws.com", ".amazonaws.com.cn")


def endpoint_of(region: str) -> str:
    """Return the URL of S3 in a region.

    https://docs.aws.amazon.com/general/latest/gr/s3.html
    """
    china = ".cn" if region.startswith("cn-") else ""
    return f"https://s3.{region}.amazonaws.com{china}"


def is_of_aws(endpoint: str) -> bool:
    """Return whether a URL leads to AWS; a malformed one does not."""
    try:
        return (urlsplit(endpoint).hostname or "").endswith(_OF_AWS)
    except ValueError:
        return False
