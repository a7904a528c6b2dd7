"""What roles lack that were on the target before the recovery, or that a killed one has created."""

from __future__ import annotations

from pgstash.postgres.restore import role_differences
from pgstash.postgres.restore.logins import UNKNOWN, Login
from pgstash.postgres.restore.memberships import Membership
from pgstash.postgres.restore.role_differences import There
from pgstash.postgres.restore.role_settings import Setting
from pgstash.postgres.restore.server_roles import Roles

STORED = Roles(
    {
        "app": Login(can_login=True, rights=("CREATEDB", "BYPASSRLS")),
        "team": Login(),
        "gone": UNKNOWN,
    },
    [
        Membership("team", "app", ("ADMIN OPTION",)),
        Membership("pg_read_all_data", "app"),
        Membership("absent", "app"),
    ],
    [Setting("app", "work_mem", ("secret",)), Setting("app", "DateStyle", ("ISO",))],
    ["gone"],
)
SAME = There(
    {
        "app": ["LOGIN", "CREATEDB", "BYPASSRLS", "SUPERUSER"],
        "team": ["LOGIN"],
        "gone": [],
        "pg_read_all_data": [],
    },
    {("team", "app"), ("pg_read_all_data", "app")},
    {("app", "work_mem"), ("app", "datestyle")},
)


def test_roles_that_have_all_lack_nothing() -> None:
    assert role_differences.statements(STORED, SAME, 18) == []


def test_what_roles_lack_is_named_but_for_values() -> None:
    there = There({**SAME.rights, "app": ["CREATEDB"]}, set(), {("app", "work_mem")})
    assert role_differences.statements(STORED, there, 18) == [
        'ALTER ROLE "app" LOGIN BYPASSRLS;',
        'GRANT "team" TO "app" WITH ADMIN OPTION;',
        'GRANT "pg_read_all_data" TO "app";',
        'ALTER ROLE "app" SET "DateStyle" TO …;',
    ]
    nothing = There(there.rights, set(), set())
    assert "secret" not in str(role_differences.statements(STORED, nothing, 18))


def test_roles_that_are_not_there_are_left_out() -> None:
    without = {name: rights for name, rights in SAME.rights.items() if name != "app"}
    assert role_differences.statements(STORED, There(without, set(), set()), 18) == []
