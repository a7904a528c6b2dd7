"""Definitions for an administrator contain statements alone."""

from __future__ import annotations

import pytest

from pgstash.restore.superuser_objects import is_plain

PLAIN = [
    b"",
    b"CREATE EVENT TRIGGER t ON e\n   EXECUTE FUNCTION f();\n\nALTER EVENT TRIGGER t DISABLE;\n",
    b"""COMMENT ON EXTENSION "a\\""b" IS 'it''s \\! -- /* x';\n""",
    b"CREATE FUNCTION f(a int DEFAULT -1) RETURNS int LANGUAGE c AS $_$ \\! ' $$ $1 $_$;\n",
    b"CREATE FUNCTION f() RETURNS int LANGUAGE x AS $$\n\\! id\n$$;\n",
    b"CREATE SERVER s OPTIONS (a E'b\\\\c''\\\\', name 'E', e '\\', f E'\\\\');\n",
    b"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT ($1 + 1) / 2 - $2; END;\n",
    "COMMENT ON EVENT TRIGGER \xfc IS '\xe4';\n".encode(),
]
NOT_PLAIN = [
    b"CREATE SERVER s;\n\\! id\n",
    b"SELECT 'a\\';\n\\! id ';\n",
    b"SELECT E'\\' \\! id ';\n",
    b"SELECT E'\\'' \\! id ';\n",
    b"SELECT e'\\'' \\! id ';\n",
    b"SELECT fe'\\'' \\! id ';\n",
    b"SELECT 1; -- it's\n\\! id '\n",
    b"SELECT 1; /* it's */ \\! id '\n",
    b"SELECT a$b$ \\! id $b$;\n",
    b"SELECT 1$b$ \\! id $b$;\n",
    "SELECT \xfc$b$ \\! id $b$;\n".encode(),
    b"SELECT 'open \\! id",
    b"SELECT $$ open \\! id",
    b"SELECT $a$ x $b$;\n\\! id\n",
]


@pytest.mark.parametrize("definition", PLAIN)
def test_statements(definition: bytes) -> None:
    assert is_plain(definition)


@pytest.mark.parametrize("definition", NOT_PLAIN)
def test_commands_of_psql(definition: bytes) -> None:
    assert not is_plain(definition)
