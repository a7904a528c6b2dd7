"""What a connection string and libpq's variables tell of the source, before its server answers."""

from __future__ import annotations

import pytest

from pgstash.identity import Identity
from pgstash.postgres import address


@pytest.mark.parametrize(
    ("url", "variables", "expected"),
    [
        ("postgresql://u@db1:5433/shop", {}, Identity("shop", None, "db1", "5433")),
        ("postgresql://u@db1", {}, Identity("u", None, "db1")),
        ("postgresql:///shop", {"PGHOST": "db1"}, Identity("shop", None, "db1")),
        ("postgresql://db1,db2:5433/shop", {}, Identity("shop")),
        ("postgresql:///shop?host=/run/postgresql", {}, Identity("shop", None, "/run/postgresql")),
        ("postgresql://u@db1/?service=x", {}, Identity(None, None, "db1")),
        ("", {"PGSERVICE": "x", "PGUSER": "u"}, Identity()),
        ("", {"PGDATABASE": "shop", "PGHOSTADDR": "::1"}, Identity("shop", None, "::1")),
        ("", {"PGDATABASE": "caf\udce9", "PGHOST": "db1"}, Identity(None, None, "db1")),
        ("", {}, Identity()),
    ],
)
def test_the_configured_source(url: str, variables: dict[str, str], expected: Identity) -> None:
    assert address.identity(url, variables) == expected
