"""Set up everything that is notified of events: log, progress, webhooks, dead-man switch."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from pgstash import events
from pgstash.format.folders import folder_of
from pgstash.monitoring import event_log, progress
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Settings

if TYPE_CHECKING:
    from pydantic import SecretStr

    from pgstash.monitoring import http_delivery, webhook
    from pgstash.monitoring.notify import Addresses
    from pgstash.monitoring.receiver import Receiver


_JOB = "{job}"
"""What stands for the folder of a job in the URL of the dead-man switch."""


def _folder(settings: Settings) -> str:
    """Return the folder of a job; in a configuration file, after that of its server."""
    server, job = settings.origin.server, settings.job
    database = job.removeprefix(f"{server}/") if server else job
    return "-".join(folder_of(each) for each in (server, database) if each)


def receiver_of(settings: Settings, url: SecretStr) -> Receiver:
    """Return who receives messages at a URL, and in which shape."""
    from pgstash.monitoring.receiver import Receiver  # noqa: PLC0415 - imports an HTTP client

    secret = settings.webhook_secret
    return Receiver(
        url.get_secret_value(),
        Scrubber(settings.secrets()),
        settings.webhook_format,
        secret.get_secret_value() if secret else "",
    )


def addresses_of(settings: Settings) -> Addresses:
    """Return where messages by Apprise go, and which."""
    from pgstash.monitoring.notify import Addresses  # noqa: PLC0415 - imports an HTTP client

    scrubber = Scrubber(settings.secrets())
    return Addresses(settings.notify_addresses, settings.notify_kinds, scrubber)


@contextlib.contextmanager
def listening(settings: Settings, *, live: bool = True) -> Iterator[events.Emit]:
    """Yield an emitter that passes each event to log, progress, webhooks and dead-man switch.

    Progress is shown ``live`` on a terminal, unless several processes share it.
    The end of the block waits, for a limited time, until everything is delivered.
    """
    with contextlib.ExitStack() as stack:
        listeners = [event_log.listen, stack.enter_context(progress.listen(live=live))]
        listeners += stack.enter_context(_messengers(settings))
        listeners += stack.enter_context(_metrics(settings, file=live))

        def emit(event: events.Event) -> None:
            for listener in listeners:
                listener(event)

        yield emit


@contextlib.contextmanager
def _metrics(settings: Settings, *, file: bool) -> Iterator[list[events.Emit]]:
    """Yield the listeners that keep metrics; the file is written by the first process alone."""
    if not (settings.metrics_file or settings.metrics_pushgateway):
        yield []
        return
    from pgstash.commands import metrics  # noqa: PLC0415 - most runs do not need it

    with metrics.outputs(settings, file=file) as listener:
        yield [listener]


@contextlib.contextmanager
def _messengers(settings: Settings) -> Iterator[list[events.Emit]]:
    hook, ping = settings.webhook_url, settings.healthcheck_ping_url
    of_drills = settings.verify_webhook_url
    if not (hook or ping or of_drills or settings.notify_urls):
        yield []
        return
    # An HTTP client is slow to import, and most runs do not need it.
    from pgstash.monitoring import http_delivery, notify, webhook  # noqa: PLC0415

    scrubber = Scrubber(settings.secrets())
    listeners: list[events.Emit] = []
    couriers: list[http_delivery.Courier] = []

    def courier(what: str) -> http_delivery.Courier:
        couriers.append(
            http_delivery.Courier(what, lambda text: event_log.listen(events.Warned(text)))
        )
        return couriers[-1]

    # Without a job, the URL that has a place for one leads nowhere: the jobs ping their own.
    if ping and (_JOB not in ping.get_secret_value() or _folder(settings)):
        to_ping = courier("The healthcheck ping")
        # Only here: otherwise the name of the job would be part of a secret.
        own = ping.get_secret_value().replace(_JOB, quote(_folder(settings), safe=""))
        listeners.append(webhook.Ping(own, to_ping, scrubber))

    def webhook_to(url: SecretStr, what: str, operations: Collection[webhook.Operation]) -> None:
        listeners.append(
            webhook.Webhook(
                receiver_of(settings, url),
                courier(what),
                webhook.Wanted(
                    settings.webhook_on_success, settings.webhook_on_failure, operations
                ),
            )
        )

    if hook:
        webhook_to(
            hook, "The webhook", ["backup", "copy", "prune"] if of_drills else webhook.OPERATIONS
        )
    if of_drills:
        webhook_to(of_drills, "The drill webhook", ["drill"])
    if settings.notify_urls and (problem := notify.missing()):
        event_log.listen(events.Warned(problem))
    elif settings.notify_urls:
        from pgstash.commands import last_runs  # noqa: PLC0415 - asks the store

        before = partial(last_runs.error_before, settings)
        listeners.append(notify.Notifier(addresses_of(settings), courier("A message"), before))
    with http_delivery.finished(couriers):
        yield listeners
