"""The commands of a fleet, as far as its libraries are installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pgstash.errors import ConfigurationError
from pgstash.runtime import Runtime
from pgstash.settings import Settings, jobs
from pgstash.settings.fleet import LABEL, LABELS

if TYPE_CHECKING:
    from pgstash.fleet.administration import Overview
    from pgstash.fleet.connector import Link

_NO_QUEUE = "QUEUE_URL is missing. Set it to the connection string of the queue's database."
_ONE_JOB = (
    "There is one job only, and a queue is for several. Set DATABASES, or name a configuration "
    "file with PGSTASH_CONFIG."
)
_SERVICE = (
    "QUEUE_URL is set, so the runs of all jobs come from the queue. Start `pgstash worker` on each "
    "machine instead, or remove QUEUE_URL."
)


def refuse_service(settings: Settings) -> None:
    """Raise ConfigurationError if the jobs belong to a fleet: a service would run them too."""
    if settings.queue_url is not None:
        raise ConfigurationError([_SERVICE])


def work(settings: Settings, runtime: Runtime, labels: Sequence[str]) -> None:
    """Be a worker until a signal raises Interrupted. Raises ConfigurationError, DatabaseError."""
    problems = [
        f"--label {each} is not allowed. Expected: {LABELS}."
        for each in labels
        if not LABEL.fullmatch(each)
    ]
    origin = settings.origin
    every = origin.config.process() if origin.config else settings
    if not jobs.are_several(every):
        problems.append(_ONE_JOB)
    if settings.queue_url is None:
        problems.append(_NO_QUEUE)
    if problems:
        raise ConfigurationError(problems)
    with _installed():
        from pgstash.commands import membership  # noqa: PLC0415 - not everybody has its libraries
    membership.work(every, runtime, labels)


def migrate(settings: Settings) -> list[str]:
    """Create or update the tables; return what was applied."""
    with _link(settings, migrated=False) as link:
        from pgstash.fleet import schema  # noqa: PLC0415 - not everybody has its libraries

        return schema.migrate(link)


def overview(settings: Settings) -> Overview:
    """Return the state of the queue."""
    with _link(settings) as link:
        from pgstash.fleet import administration  # noqa: PLC0415 - as above

        return administration.overview(link, settings.worker_timeout)


def retry(settings: Settings, numbers: Sequence[int] | None) -> tuple[int, list[int]]:
    """Put failed runs into the queue again, without numbers all of them.

    Returns how many there are, and the numbers that are of none.
    """
    with _link(settings) as link:
        from pgstash.fleet import administration  # noqa: PLC0415 - as above

        every = administration.failed(link) if numbers is None else numbers
        return _each(every, lambda number: administration.retry(link, number))


def cancel(settings: Settings, numbers: Sequence[int]) -> tuple[int, list[int]]:
    """Cancel runs; return how many, and the numbers of those that neither wait nor run."""
    with _link(settings) as link:
        from pgstash.fleet import administration  # noqa: PLC0415 - as above

        return _each(numbers, lambda number: administration.cancel(link, number))


def _each(numbers: Sequence[int], change: Callable[[int], bool]) -> tuple[int, list[int]]:
    refused = [number for number in numbers if not change(number)]
    return len(numbers) - len(refused), refused


@contextlib.contextmanager
def _link(settings: Settings, *, migrated: bool = True) -> Iterator[Link]:
    """Open the queue. Raises ConfigurationError and DatabaseError."""
    if settings.queue_url is None:
        raise ConfigurationError([_NO_QUEUE])
    with _installed():
        from pgstash.fleet import connector, schema  # noqa: PLC0415 - as above
    with connector.Link(settings.queue_url.get_secret_value()) as link:
        if migrated:
            schema.require(link)
        yield link


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Raise ConfigurationError if the libraries of the extra are missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        problem = (
            f"QUEUE_URL is set, but the library for it is not installed ({error.name}). Run: pip "
            "install 'pgstash[fleet]'"
        )
        raise ConfigurationError([problem]) from error
