"""What an existing database does at each login or statement cannot stop what a restore gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pgstash.events import ignore
from pgstash.postgres.restore import owners_and_privileges
from pgstash.postgres.server import login
from pgstash.postgres.tools.installed import ClientTools
from pgstash.postgres.tools.tool_run import ToolRun
from support.postgres import bin_dir, clean_environment

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

FIRST_WITH_LOGIN_TRIGGERS = 17


def test_privileges_are_given_where_triggers_refuse_logins_and_statements(
    make_database: MakeDatabase,
) -> None:
    database = make_database()
    server = login.inspect(database.uri)
    major = database.cluster.major
    database.run_sql(
        "CREATE TABLE t (); CREATE FUNCTION f() RETURNS event_trigger LANGUAGE plpgsql"
        " AS 'BEGIN RAISE EXCEPTION USING MESSAGE = ''planted''; END';"
        "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION f()"
    )
    if major >= FIRST_WITH_LOGIN_TRIGGERS:
        database.run_sql(
            "SET event_triggers = off; CREATE EVENT TRIGGER l ON login EXECUTE FUNCTION f()"
        )
    tools = ClientTools(bin_dir(major), major, f"{major}.0", 0)
    refusals = owners_and_privileges.apply(
        server,
        b"GRANT SELECT ON TABLE public.t TO PUBLIC;\n",
        ToolRun(tools, clean_environment(), ignore),
    )
    if major >= FIRST_WITH_LOGIN_TRIGGERS:
        # It stands in the way of the next login too.
        database.cluster.maintenance.run_sql(
            f'ALTER DATABASE "{database.name}" SET event_triggers = off'
        )
    assert (refusals.total, refusals.reasons) == (0, {})
    granted = "SELECT has_table_privilege('public', 'public.t', 'SELECT')"
    assert database.run_sql(granted).strip() == "t"
