"""The roles of a lost server: its newest backup decides."""

from __future__ import annotations

from pgstash.postgres.restore import server_roles
from pgstash.postgres.restore.server_roles import Script

HASH = "SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5"
NEWEST = f"""
CREATE ROLE app;
ALTER ROLE app WITH NOSUPERUSER INHERIT NOCREATEROLE CREATEDB LOGIN NOREPLICATION NOBYPASSRLS \
PASSWORD '{HASH}';
CREATE ROLE team;
ALTER ROLE team WITH NOSUPERUSER INHERIT NOCREATEROLE NOCREATEDB NOLOGIN NOREPLICATION NOBYPASSRLS;
ALTER ROLE app SET work_mem TO '9MB';
""".encode()
OLDER = (
    NEWEST
    + f"""
CREATE ROLE gone;
ALTER ROLE gone WITH SUPERUSER INHERIT NOCREATEROLE NOCREATEDB LOGIN NOREPLICATION NOBYPASSRLS \
PASSWORD '{HASH}';
ALTER ROLE app SET role TO 'gone';
GRANT team TO app;
GRANT team TO gone;
""".encode()
)


def test_what_was_revoked_and_dropped_since_does_not_come_back() -> None:
    found = server_roles.gathered(
        [Script(NEWEST, passwords=True, system="1"), Script(OLDER, passwords=True, system="1")]
    )
    assert list(found.logins) == ["app", "team", "gone"]
    assert found.dropped == ["gone"]
    assert found.logins["app"].password == HASH
    assert found.logins["app"].rights == ("CREATEDB",)
    assert not found.logins["gone"].can_login
    assert found.logins["gone"].rights == ()
    assert found.memberships == []
    assert [each.name for each in found.settings] == ["work_mem"]


def test_each_server_decides_for_its_own() -> None:
    found = server_roles.gathered(
        [Script(NEWEST, passwords=True, system="1"), Script(OLDER, passwords=False, system="2")]
    )
    assert found.dropped == []
    assert found.logins["app"].password == HASH
    assert found.logins["gone"].can_login
    assert found.logins["gone"].password is None
    assert [(each.group, each.member) for each in found.memberships] == [("team", "gone")]
    assert [each.name for each in found.settings] == ["work_mem"]
