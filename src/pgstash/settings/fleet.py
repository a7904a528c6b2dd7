"""Settings of a fleet: workers on several machines that share a queue."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, SecretStr

from pgstash.settings import validators
from pgstash.settings.declaration import Group, setting

LABEL = re.compile(r"[a-z0-9][a-z0-9_.-]{0,29}", re.ASCII)
"""A label of a worker, a server or a job."""

LABELS = (
    "labels of 1 to 30 lower-case letters, digits, '-', '_' and '.', beginning with a letter or a "
    "digit"
)


def split_labels(text: str) -> list[str]:
    """Return the labels in a list separated by commas."""
    return [each.strip() for each in text.split(",")]


def _labels(text: str) -> str:
    if not all(map(LABEL.fullmatch, split_labels(text))):
        raise ValueError("has a label that is not allowed")
    return text


class FleetSettings(Group):
    """Where the queue is, and how a worker takes part in it."""

    queue_url: Annotated[SecretStr, AfterValidator(validators.target_url)] | None = setting(
        "Fleet",
        "a URI such as postgresql://user@host:5432/database that names a database",
        "The PostgreSQL database with the queue that `pgstash worker` takes its runs from, on any "
        "number of machines. Needs `pip install 'pgstash[fleet]'` and `pgstash queue migrate`. "
        "Variables of libpq for the address and the login of the source are ignored.",
        default=None,
    )
    worker_labels: Annotated[str, AfterValidator(_labels)] | None = setting(
        "Fleet",
        f"{LABELS}, separated by commas",
        "What this worker is near to. It runs jobs that have one of these `labels` in the "
        "configuration file, and those without any. A worker without labels only runs the latter.",
        default=None,
    )
    worker_timeout: int = setting(
        "Fleet",
        "a whole number of seconds from 3 to 3600",
        "Seconds without a sign of life of a worker until its runs are given to another one. The "
        "same for all workers.",
        default=60,
        ge=3,
        le=3600,
    )
    worker_grace: int = setting(
        "Fleet",
        "a whole number of seconds from 2 to 86400",
        "Seconds that a worker has to stop after SIGTERM. In the first half its runs may end; then "
        "they are ended, and put back into the queue. Docker kills a container after 10 seconds, "
        "Kubernetes after 30.",
        default=8,
        ge=2,
        le=86_400,
    )
