"""Writes the events of copies to the log; part of :mod:`pgstash.monitoring.event_log`."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pgstash import events
from pgstash.monitoring.log import FAILURE, LOGGER, SUCCESS
from pgstash.monitoring.messages import copy_failure, seconds, size


def _copy_started(event: events.CopyStarted) -> None:
    LOGGER.info("Copying %s to %s (%s)", event.name, event.copy, size(event.stored_bytes))


def _copy_succeeded(event: events.CopySucceeded) -> None:
    if event.already:
        LOGGER.info("%s is complete in %s already: %s", event.name, event.copy, event.location)
        return
    inside = f", {size(event.inside_bytes)} copied inside the store" if event.inside_bytes else ""
    LOGGER.log(
        SUCCESS,
        "Copied %s to %s in %s (%s sent%s)",
        event.name,
        event.copy,
        seconds(event.seconds),
        size(event.sent_bytes),
        inside,
    )
    LOGGER.info("Copy location: %s", event.location)
    if event.verified is False:
        LOGGER.warning(
            "No digest of %s is known without its key. Only the size of the copy was compared",
            event.name,
        )


def _copy_failed(event: events.CopyFailed) -> None:
    hint = f"\n{event.hint}" if event.hint else ""
    level = logging.WARNING if event.after_backup else FAILURE
    LOGGER.log(level, "%s%s", copy_failure(event), hint)


WRITERS: dict[type[events.Event], Callable[..., None]] = {
    events.CopyStarted: _copy_started,
    events.CopySucceeded: _copy_succeeded,
    events.CopyFailed: _copy_failed,
}
