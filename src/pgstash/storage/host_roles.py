"""The roles of the hosts that use one store, each with an identity of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Role = Literal["writer", "pruner", "reader"]
ROLES: Sequence[Role] = get_args(Role)

TASKS = {
    "writer": "make backups, and neither read nor delete them",
    "pruner": "delete old backups",
    "reader": "restore and drill",
}
"""What a host of each role does."""
