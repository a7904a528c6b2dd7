"""Settings of roles are read as pg_dumpall writes them, and nothing else is taken for one."""

from __future__ import annotations

from pgstash.postgres.restore.role_settings import Setting, read

SCRIPT = rb"""
-- ALTER ROLE commented SET work_mem TO '1MB';
CREATE ROLE "ALTER ROLE a SET x TO 'y';
ALTER ROLE in_a_name SET x TO 'y';
";
ALTER ROLE app WITH NOSUPERUSER LOGIN PASSWORD 'x';
ALTER ROLE app SET search_path TO 'shop', 'Odd "one"', '';
ALTER ROLE app SET "pgstash.own" TO 'it''s
ALTER ROLE in_a_text SET work_mem TO ''1MB'';
';
ALTER ROLE "Odd ""n""; --" SET "pgstash.path" TO E'C:\\new\\''q';
ALTER ROLE app SET work_mem TO DEFAULT;
ALTER ROLE app IN DATABASE shop SET work_mem TO '1MB';
ALTER ROLE app RESET ALL;
"""


def test_what_is_a_setting() -> None:
    assert read(SCRIPT) == [
        Setting("app", "search_path", ("shop", 'Odd "one"', "")),
        Setting("app", "pgstash.own", ("it's\nALTER ROLE in_a_text SET work_mem TO '1MB';\n",)),
        Setting('Odd "n"; --', "pgstash.path", ("C:\\new\\'q",)),
    ]


def test_the_statement_that_gives_it_again() -> None:
    [first, own, path] = read(SCRIPT)
    assert first.statement.as_string() == (
        """ALTER ROLE "app" SET "search_path" TO 'shop', 'Odd "one"', '';"""
    )
    assert "'it''s\nALTER" in own.statement.as_string()
    assert path.statement.as_string().endswith(r" TO  E'C:\\new\\''q';")
