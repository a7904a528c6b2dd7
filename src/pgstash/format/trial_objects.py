"""The names of the objects that `pgstash check` stores temporarily."""

from __future__ import annotations

import re

PREFIX = "pgstash-check-"
NAME = re.compile(rf"{PREFIX}[0-9a-f]{{16}}(-upload)?", re.ASCII)


def name(check_id: str) -> str:
    """Return the name of the object that one check stores; its id is random."""
    return f"{PREFIX}{check_id}"


def upload_name(check_id: str) -> str:
    """Return the name of the object that one check uploads in parts."""
    return f"{PREFIX}{check_id}-upload"
