"""Why a client tool failed is found out whatever the names of the tables are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash.errors import DatabaseError, DumpError, LockTimeoutError
from pgstash.postgres.dump.failure_cause import Tool
from pgstash.postgres.server import login

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

# What is left of a name in LATIN1 that is read as UTF-8.
NAME = 'public."stra\N{REPLACEMENT CHARACTER}e"'


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        (f"LOCK TABLE {NAME} IN ACCESS SHARE MODE", LockTimeoutError),
        (f"LOCK TABLE public.mixed, {NAME} IN ACCESS SHARE MODE", LockTimeoutError),
        (f"COPY {NAME} (a) TO stdout;", DumpError),
    ],
)
def test_a_name_that_arrived_incomplete(
    statement: str, kind: type[DatabaseError], make_database: MakeDatabase
) -> None:
    tool = Tool("pg_dump", login.inspect(make_database("latin1").uri))
    error = tool.failure(1, [f"pg_dump: detail: Query was: {statement}"])
    assert type(error) is kind
    assert error.hint
