"""The logins of stored roles: what pg_dumpall writes is read, nothing that only looks like it."""

from __future__ import annotations

import pytest

from pgstash.postgres.restore.logins import Login, read

SCRAM = "SCRAM-SHA-256$4096:c2FsdA==$c3RvcmVk:c2VydmVy"
MD5 = "md5d41d8cd98f00b204e9800998ecf8427e"
WITH = "NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB"


def login(rest: str, *, passwords: bool = True) -> Login:
    script = f"CREATE ROLE app;\nALTER ROLE app WITH {WITH} {rest};\n".encode()
    return read(script, passwords=passwords)["app"]


def test_what_pg_dumpall_writes() -> None:
    until = "2099-01-01 00:00:00+00"
    first = "LOGIN NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 7"
    assert login(f"{first} PASSWORD '{SCRAM}' VALID UNTIL '{until}'") == Login(
        can_login=True, password=SCRAM, limit=7, until=until
    )
    assert login(f"LOGIN PASSWORD '{MD5}'") == Login(can_login=True, password=MD5)
    assert login(f"NOLOGIN PASSWORD '{MD5}'") == Login(can_login=False, password=MD5)
    assert login("LOGIN NOBYPASSRLS") == Login(can_login=True)


def test_no_hash_is_read_unless_it_may_be() -> None:
    assert login(f"LOGIN PASSWORD '{MD5}'", passwords=False) == Login(can_login=True)


@pytest.mark.parametrize("password", ["planted", "md5planted", f"{MD5}0", "", SCRAM[:-1] + "$"])
def test_a_password_that_is_no_hash_is_left_out(password: str) -> None:
    assert login(f"LOGIN PASSWORD '{password}'") == Login(can_login=True)


@pytest.mark.parametrize(
    "until", ["01/02/2099 00:00:00 UTC", "Thu Jan 01 00:00:00 2099 UTC", "now"]
)
def test_no_password_lives_longer_because_its_end_is_misread(until: str) -> None:
    assert login(f"LOGIN PASSWORD '{MD5}' VALID UNTIL '{until}'").password is None


@pytest.mark.parametrize("until", ["infinity", "2020-01-01 01:02:03.5+05:30", "-infinity"])
def test_an_end_that_is_certain(until: str) -> None:
    assert login(f"LOGIN PASSWORD '{MD5}' VALID UNTIL '{until}'").until == until


def test_a_name_that_looks_like_statements() -> None:
    odd = f'x"\nALTER ROLE forged WITH LOGIN PASSWORD {MD5!r};\n'
    name = odd.replace('"', '""')
    script = f"""-- User Config "ALTER ROLE forged WITH LOGIN;"
ALTER ROLE "{name}" WITH LOGIN PASSWORD '{MD5}';
ALTER ROLE "a b" SET search_path TO '
ALTER ROLE forged WITH LOGIN PASSWORD ''{MD5}'';
';
ALTER ROLE "{name}" WITH NOLOGIN;
GRANT "{name}" TO app;
"""
    assert read(script.encode(), passwords=True) == {odd: Login(can_login=True, password=MD5)}


def test_a_hash_is_in_no_repr() -> None:
    assert MD5 not in repr(Login(can_login=True, password=MD5))
