"""What a connection string and libpq's variables tell of the source, before its server answers."""

from __future__ import annotations

import pytest

from pgstash.format.identity import Identity
from pgstash.postgres.server import conninfo


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
    assert conninfo.identity(url, variables) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:Secret1@db.example.com/shop", "db.example.com:5432"),
        ("postgresql://u@db1:5433/shop", "db1:5433"),
        ("postgresql://[2001:db8::1]:6/shop", "[2001:db8::1]:6"),
        ("postgresql://db1,db2:5433/shop", "db1:5432,db2:5433"),
        ("postgresql:///shop?host=db1,db2&port=6", "db1:6,db2:6"),
        ("postgresql:///shop?host=/run/postgresql", "/run/postgresql:5432"),
        ("postgresql:///shop?hostaddr=192.0.2.1", "192.0.2.1:5432"),
        ("postgresql:///shop", "localhost:5432"),
        ("postgresql:///shop?service=prod", "the service prod"),
        ("postgresql://db1/shop?service=prod", "db1:5432"),
    ],
)
def test_an_address_for_people(url: str, expected: str) -> None:
    assert conninfo.address(url) == expected


LOGINS = [
    (
        "postgresql://ad%40min:s%2Fc+r%3D1@db:5433/x?sslmode=require",
        "postgresql://ad%40min@db:5433/",
    ),
    ("postgresql://u:pw@h/x?options=-c%20a%3D1%2B2", "postgresql://u@h/"),
    ("postgresql:///x?host=/run/a%20b&user=u&password=p", "postgresql://u@/"),
    ("postgresql://:pw@[::1]/x", "postgresql:///"),
    ("postgresql://a,b:5433/x?sslpassword=p", "postgresql:///"),
    ("postgres:///x?service=prod&password=p", "postgresql:///"),
]


@pytest.mark.parametrize(("url", "begin"), LOGINS)
def test_a_login_without_its_secrets_is_completed_again(url: str, begin: str) -> None:
    name = "my 'shop'/ü?&"
    short = conninfo.login_uri(url, name)
    assert short.startswith(f"{begin}my%20%27shop%27%2F%C3%BC%3F%26")
    assert not conninfo.SECRETS & conninfo.parse(short).keys()
    assert conninfo.parse(conninfo.completed(short, url)) == {**conninfo.parse(url), "dbname": name}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@other/x",
        "postgresql://v@db/x",
        "postgresql://db/x",
        "postgresql://u@db:5433/x",
        "postgresql://u@db/x?hostaddr=192.0.2.1",
        "postgresql://u@db/x?service=prod",
        "postgresql://u@db,other/x",
        "u@db/x",
        "postgresql://u@db:port/x",
        "",
    ],
)
def test_another_login_gets_nothing(url: str) -> None:
    assert conninfo.completed(url, "postgresql://u:pw@db/shop?sslmode=require") == url


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@db:5432/x", {"password": "pw", "sslmode": "require"}),
        ("postgresql://u:own@db/x", {"password": "own", "sslmode": "require"}),
        ("postgresql://u@db/x?sslmode=disable", {"password": "pw", "sslmode": "disable"}),
        ("postgresql://u@db/x?passfile=/p", {"passfile": "/p", "sslmode": "require"}),
    ],
)
def test_what_is_given_wins(url: str, expected: dict[str, str]) -> None:
    found = conninfo.parse(conninfo.completed(url, "postgresql://u:pw@db/shop?sslmode=require"))
    login = {"user": "u", "host": "db", "dbname": "x"}
    assert {key: value for key, value in found.items() if key != "port"} == {**login, **expected}


def test_a_setting_that_is_no_uri_completes_nothing() -> None:
    for wrong in ("", "'postgresql://u:pw@db/shop'", "host=db user=u password=pw"):
        assert conninfo.completed("postgresql://u@db/x", wrong) == "postgresql://u@db/x"


def test_parameters_of_frameworks_do_not_matter() -> None:
    for given, configured in (
        ("postgresql://u@db/x", "postgresql://u:pw@db/shop?schema=public&pgbouncer=true"),
        ("postgresql://u@db/x?schema=public", "postgresql://u:pw@db/shop"),
    ):
        more = "&" if "?" in given else "?"
        assert conninfo.completed(given, configured) == f"{given}{more}password=pw"
