"""What frameworks add to a connection URI: left out, or refused with what to write instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import conninfo as libpq

from pgstash.postgres.server import conninfo, foreign_parameters

BASE = "postgresql://u:p@h:1/d"
IGNORED = sorted(foreign_parameters.IGNORED)


def reasons(url: str) -> list[str]:
    with pytest.raises(conninfo.UnusableUriError) as caught:
        conninfo.parse(url)
    return list(caught.value.reasons)


@pytest.mark.parametrize("name", IGNORED)
def test_libpq_knows_none_of_them(name: str) -> None:
    with pytest.raises(ValueError, match=r"is not percent-encoded"):
        conninfo.parse(f"{BASE}?{name}=1")
    assert foreign_parameters.without_ignored(f"{BASE}?{name}=1") == (BASE, [name])


@pytest.mark.parametrize(
    ("query", "left", "names"),
    [
        ("", "", []),
        ("?", "?", []),
        ("?sslmode=require", "?sslmode=require", []),
        ("?schema=a&sslmode=require&schema=b&pool=1", "?sslmode=require", ["schema", "pool"]),
        ("?serverVersion=16.2%20(Debian)&charset=utf8", "", ["serverVersion", "charset"]),
        ("?sslaccept=accept_invalid_certs", "", ["sslaccept"]),
        ("?sslaccept=strict", "?sslaccept=strict", []),
        ("?sslcompat=libpq&uselibpqcompat=true", "", ["sslcompat", "uselibpqcompat"]),
        ("?schema", "?schema", []),
        ("?schema=a/b", "?schema=a/b", []),
        ("?s%63hema=a", "", ["schema"]),
        ("?connect_timeout=3&connection_limit=3", "?connect_timeout=3", ["connection_limit"]),
        ("?options=-c%20search_path%3Dapp", "?options=-c%20search_path%3Dapp", []),
    ],
)
def test_what_is_left_out(query: str, left: str, names: list[str]) -> None:
    assert foreign_parameters.without_ignored(BASE + query) == (BASE + left, names or ())


def test_a_password_with_a_question_mark_is_kept() -> None:
    """To libpq it ends at the "@"."""
    url = "postgresql://u:p?pool=1&x=y@h/d"
    assert foreign_parameters.without_ignored(f"{url}?pool=2") == (url, ["pool"])
    assert conninfo.parse(url)["password"] == "p?pool=1&x=y"


@pytest.mark.parametrize("url", ["", "h", "host=h pool=1", "mysql://h", " postgresql://h?pool=1"])
def test_what_is_no_uri_is_left_alone(url: str) -> None:
    assert foreign_parameters.without_ignored(url) == (url, ())


@given(
    st.text(st.sampled_from("pw1@/:?#[]%&=+"), max_size=12),
    st.lists(st.sampled_from(["pool=1", "schema=a", "sslmode=require", "application_name=x"])),
)
def test_nothing_else_is_changed(password: str, parameters: list[str]) -> None:
    """Whatever a password does to the URI, libpq gets the same as without the parameters."""
    base = f"postgresql://u:{password}@h:1/d"
    known = [each for each in parameters if each.startswith(("sslmode", "application"))]
    left, names = foreign_parameters.without_ignored("?".join([base, "&".join(parameters)]))
    try:
        expected = libpq.conninfo_to_dict("?".join([base, "&".join(known)]))
    except Exception:  # noqa: BLE001 - any refusal
        return
    if "?" not in password:
        assert libpq.conninfo_to_dict(left) == expected
        assert set(names) == {each.split("=")[0] for each in parameters if each not in known}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sslmode=no-verify", "has sslmode=no-verify, which libpq does not know. Write sslmode=r"),
        (
            "sslmode=Require",
            "has sslmode=Require, which libpq does not know. Write sslmode=require",
        ),
        ("sslmode=secret", "has a value of sslmode, which libpq does not know. Write one of disa"),
        ("ssl=1", "has ssl=1, which libpq does not know. Write sslmode=require"),
        ("ssl=secret", "has ssl, which libpq does not know. Write sslmode=verify-full"),
        ("ssl=verify-ca", "has ssl=verify-ca, which libpq does not know. Write sslmode=verify-ca"),
        ("username=u", "has the parameter username, which libpq does not know. Write user"),
        (
            "SSLMODE=require",
            "has the parameter SSLMODE, which libpq does not know. Did you mean ssl",
        ),
        ("options=-c a=b", "has the parameter options with a value that is not percent-encoded"),
    ],
)
def test_what_to_write_instead(query: str, expected: str) -> None:
    [reason] = reasons(f"{BASE}?{query}")
    assert reason.startswith(expected)


@pytest.mark.parametrize(
    "query", ["ssl=true", "sslmode=require ", "requiressl=1", "sslmode=allow&"]
)
def test_what_libpq_accepts(query: str) -> None:
    assert conninfo.parse(f"{BASE}?{query}")["host"] == "h"


def test_what_cannot_be_named_is_reported_beside_the_others() -> None:
    found = reasons(f"{BASE}?sslmode=no-verify&password=a&b=c")
    assert [reason.split()[0] for reason in found] == ["has", "is"]
    assert "Percent-encode" in found[1]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg2://h/d", "begins with postgresql+psycopg2://. Write postgresql://"),
        ("postgres+asyncpg://h/d", "begins with postgres+asyncpg://. Write postgresql://"),
        ("PostgreSQL://h/d", "begins with PostgreSQL://. Write postgresql://"),
        ("pgsql://h/d", "begins with pgsql://. Write postgresql://"),
        ("prisma://h/?api_key=k", "is the URL of Prisma"),
        ("jdbc:postgresql:d", "is a JDBC URL"),
        ("${{ Postgres.URL }}", "contains ${{ Postgres.URL }}, a reference"),
        ("x${{y}}", "contains ${{…}}, a reference"),
        ("${DATABASE_URL}", "contains a reference such as ${NAME}, "),
        ("$(DATABASE_URL)", "contains a reference such as ${NAME}, "),
        ("postgresql://u:${DB_PASSWORD}@h/d", "contains a reference such as ${NAME}, "),
        ("postgresql://u:p@${DB_HOST}:1/d", "contains a reference such as ${NAME}, "),
        ("postgresql:///${DB_NAME}", "contains a reference such as ${NAME}, "),
    ],
)
def test_other_schemes(url: str, expected: str) -> None:
    [reason] = reasons(url)
    assert reason.startswith(expected)


@pytest.mark.parametrize("password", ["a${b}", "${", "$b", "$(b)c", "%24%7Bb%7D", "{{b}}"])
def test_a_password_that_is_like_a_reference(password: str) -> None:
    assert conninfo.parse(f"postgresql://u:{password}@h/d")["host"] == "h"


@pytest.mark.parametrize("url", ["mysql://h/d", "h", "https://h", "host=h", "a+b://c"])
def test_a_scheme_of_another_program(url: str) -> None:
    with pytest.raises(ValueError, match=r"must begin with postgresql:// or postgres://"):
        conninfo.parse(url)
