"""The preflight of notifications: do their receivers accept a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pgstash.check.finding import Finding, Part
from pgstash.postgres.server import conninfo

_NONE = {
    "webhook": Finding("webhook", "skipped", "WEBHOOK_URL is not set"),
    "notify": Finding("notify", "skipped", "NOTIFY_URLS is not set"),
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where notifications go: what findings call it, and the setting that names it.

    ``send_test`` takes the host and the name of a database, and returns the problem. ``missing`` is
    what must be installed before; empty if nothing.
    """

    topic: str
    part: Part
    variable: str
    send_test: Callable[[str, str], str]
    missing: str = ""


def untried(destinations: Sequence[Destination]) -> Iterator[Finding]:
    """Yield how to test each destination. Nothing is sent."""
    if not any(each.part == "webhook" for each in destinations):
        yield _NONE["webhook"]
    for each in destinations:
        if each.missing:
            yield Finding(each.topic, "failure", each.missing)
        else:
            yield Finding(each.topic, "skipped", f"not sent: run `pgstash check {each.part}`")


def tried(destinations: Sequence[Destination], part: Part, source_url: str) -> Iterator[Finding]:
    """Send a test to each destination of a part; yield the results."""
    chosen = [each for each in destinations if each.part == part]
    if not chosen:
        yield _NONE[part]
    host, database = conninfo.named(source_url)
    for each in chosen:
        problem = each.missing or each.send_test(host, database)
        if problem:
            remedy = f"Check {each.variable} and the log of its receiver."
            yield Finding(each.topic, "failure", problem, remedy)
        else:
            yield Finding(each.topic, "ok", "the receiver accepted a test notification")
