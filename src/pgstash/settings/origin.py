"""Which job settings are for, and what a configuration file has to do with them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgstash.settings.config.file import Config


@dataclass(frozen=True, slots=True)
class Origin:
    """Where settings come from.

    ``job`` is the name of the one of several jobs that they are for, and ``server`` the name of its
    server in the file ``config``; each is empty, or None, if there is no such thing. ``referenced``
    are the variables of the environment that the file takes values from.
    """

    job: str = ""
    server: str = ""
    config: Config | None = field(default=None, repr=False)
    referenced: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
