"""Names of required tables are read as SQL reads them, and compared with a dump's rows."""

from __future__ import annotations

import pytest

from pgstash.errors import RequiredTableError
from pgstash.postgres.dump.required_tables import Expected, Requirement, check, parse

USERS = Requirement("public", "users")
ORDERS = Requirement("shop", "orders", nonempty=True)


def test_names_are_read_as_in_sql() -> None:
    assert parse('Users, SHOP . orders :nonempty,"A.b,c"."d""e",ÄÖ') == [
        USERS,
        ORDERS,
        Requirement("A.b,c", 'd"e'),
        Requirement("public", "ÄÖ"),
    ]


def expected(requirement: Requirement, *partitions: str) -> Expected:
    own = (requirement.schema, requirement.table)
    parts = [own, *((requirement.schema, name) for name in partitions)]
    return Expected(requirement, parts, stored=True)


def test_all_is_there() -> None:
    rows = {("public", "users"): 0, ("shop", "orders"): 1}
    check([expected(USERS), expected(ORDERS)], rows)


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(RequiredTableError) as caught:
        check([expected(USERS), expected(ORDERS)], {("shop", "orders"): 0, ("shop", "users"): 5})
    first, *problems = str(caught.value).splitlines()
    assert first == "REQUIRE_TABLES is not met:"
    assert problems == [
        "public.users is not in the dump with its rows: is it excluded?",
        "shop.orders is empty",
    ]


def test_the_rows_of_a_partitioned_table_are_those_of_its_partitions() -> None:
    check([expected(ORDERS, "y1", "y2")], {("shop", "y1"): 0, ("shop", "y2"): 3})
    with pytest.raises(RequiredTableError, match="orders is empty"):
        check([expected(ORDERS, "y1", "y2")], {("shop", "y1"): 0, ("shop", "y2"): 0})
    with pytest.raises(RequiredTableError, match="is not in the dump"):
        check([expected(ORDERS, "y1")], {("shop", "y3"): 1})


def test_a_partitioned_table_without_partitions_is_there_and_empty() -> None:
    own = [("shop", "orders")]
    check([Expected(Requirement("shop", "orders"), own, stored=False)], {})
    with pytest.raises(RequiredTableError, match="orders is empty"):
        check([Expected(ORDERS, own, stored=False)], {})
