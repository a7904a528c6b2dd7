"""The request that sends metrics of one job to a Pushgateway of Prometheus."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

from pgstash.monitoring.http_delivery import Request


def request(url: str, job: str, body: Callable[[], bytes]) -> Request:
    """Return the request that replaces the given metrics in the group of the job.

    POST leaves the others of the group, such as the last success after a failure. The name of the
    group is encoded, because it may hold a slash
    (https://github.com/prometheus/pushgateway#request-method).
    """
    parts = urlsplit(url)
    name = urlsafe_b64encode((job or "pgstash").encode(errors="replace")).decode()
    path = f"{parts.path.rstrip('/')}/metrics/job@base64/{name}"
    where = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
    return Request("POST", where, body, headers, tries=1)
