"""The preflight of webhooks: does the receiver accept a test notification."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.check.finding import Finding
from pgstash.monitoring import webhook
from pgstash.monitoring.receiver import Receiver
from pgstash.postgres.server import conninfo

_NONE = Finding("webhook", "skipped", "WEBHOOK_URL is not set")


@dataclass(frozen=True, slots=True)
class Destination:
    """A webhook: what findings call it, the setting that names it, who receives it."""

    topic: str
    variable: str
    receiver: Receiver


def untried(destinations: Sequence[Destination]) -> Iterator[Finding]:
    """Yield how to test each webhook. Nothing is sent."""
    if not destinations:
        yield _NONE
    for each in destinations:
        yield Finding(each.topic, "skipped", "not sent: run `pgstash check webhook`")


def tried(destinations: Sequence[Destination], source_url: str) -> Iterator[Finding]:
    """Send a test notification to each webhook; yield the results."""
    if not destinations:
        yield _NONE
    host, database = conninfo.named(source_url)
    for each in destinations:
        problem = webhook.send_test(each.receiver, host, database)
        if problem:
            remedy = f"Check {each.variable} and the log of its receiver."
            yield Finding(each.topic, "failure", problem, remedy)
        else:
            yield Finding(each.topic, "ok", "the receiver accepted a test notification")
