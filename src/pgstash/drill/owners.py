"""Gives a restored database the owners and privileges of the source, and compares them with those.

They are read from the restored database by the code that a backup reads them with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pgstash import events
from pgstash.counting import counted
from pgstash.drill.scratch import Scratch
from pgstash.errors import DatabaseError, ScratchError, TargetLostError
from pgstash.format.manifest import Manifest
from pgstash.format.proof import Check
from pgstash.postgres.dump import owners_and_privileges as owners_dump
from pgstash.postgres.dump import schema_dump
from pgstash.postgres.restore import owners_and_privileges, target
from pgstash.postgres.scratch import inspection, owner_comparison
from pgstash.postgres.server import login
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import pg_dump_options
from pgstash.postgres.tools.tool_run import Limits, ToolRun
from pgstash.repository.archive import Archive
from pgstash.repository.script import without_settings_unknown_to
from pgstash.restore import preflight

_NAME = "owners and privileges"
_MOST_PROBLEMS = 20
_LIMITS = Limits(lock=60.0, idle=600.0)  # nobody else uses the database

# The owner of the database checks it afterwards, and must be able to read everything.
_STATE = """
    SELECT s.rolsuper AND o.rolsuper,
           pg_catalog.format('ALTER DATABASE %I OWNER TO %I', d.datname, o.rolname)
    FROM pg_catalog.pg_database d
    JOIN pg_catalog.pg_roles o ON o.oid = d.datdba
    JOIN pg_catalog.pg_roles s ON s.rolname OPERATOR(pg_catalog.=) session_user
    WHERE d.datname = pg_catalog.current_database()
"""

# On which extensions granted something while they were created. That is recorded for the role that
# created them, which is another one here, so pg_dump takes it for a change.
_SCHEMAS_OF_EXTENSIONS = """
    SELECT '"' || pg_catalog.replace(n.nspname, '"', '""') || '"'
    FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_init_privs p ON p.objoid = n.oid
    WHERE p.classoid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND p.privtype = 'e'
"""


def check(
    place: Scratch,
    archive: Archive,
    manifest: Manifest,
    environment: Mapping[str, str],
    emit: events.Emit,
) -> Iterator[Check]:
    """Yield the check of a restored database, unless no owners and privileges are stored.

    If the role of the drill is no superuser, that is only a warning. The database itself belongs to
    that role again afterwards. Raises CorruptedError, ScratchError, StorageError.
    """
    if manifest.privileges_sha256 is None:  # of pgstash 0.2 or older, or the backup warned of it
        return
    script = archive.privileges()
    if script is None:
        yield Check(_NAME, passed=False, found="the object that holds them is missing in the store")
        return
    try:
        into = login.inspect(inspection.login_of(place.url, place.database))
        with target.connected(into, "SQL_ASCII") as session:  # names are bytes
            may_give, give_back = session.execute(_STATE).fetchone() or (False, b"")
        if not may_give:
            emit(
                events.Warned(
                    "Owners and privileges are not checked, as the drill's role is no superuser on "
                    "the scratch server"
                )
            )
            return
        client = preflight.client(manifest, into, environment)
        tool_run = ToolRun(client, environment, events.ignore)
        known = b"".join(without_settings_unknown_to(into.major, iter([script])))
        found = _compared(into, known, manifest, tool_run)
        with target.connected(into, "SQL_ASCII") as session:
            session.execute(give_back)
    except (DatabaseError, TargetLostError) as error:
        raise ScratchError(
            f"owners and privileges cannot be checked: {error.message}",
            hint="Check the log of that server.",
        ) from error
    yield _check(found, into.codec)


def _compared(
    into: Server, script: bytes, manifest: Manifest, tool_run: ToolRun
) -> owner_comparison.Comparison:
    objects, of_database = owners_and_privileges.parts(script)
    refused = owners_and_privileges.apply(into, objects, tool_run).units
    # Its settings are left out: they could refuse the next session, and have been restored before.
    given = [each for unit in owners_and_privileges.units_of(of_database) for each in unit]
    for_database = b"\n".join([*owners_and_privileges.session_of(script), *given])
    refused = [*refused, *owners_and_privileges.apply(into, for_database, tool_run).units]
    with schema_dump.opened(into, tool_run, (), _LIMITS, snapshot=None) as contents:
        again = owners_dump.complete(into, owners_dump.of_objects(tool_run, contents))
    with target.connected(into, "SQL_ASCII") as session:
        schemas = [name for (name,) in session.execute(_SCHEMAS_OF_EXTENSIONS).fetchall()]
    return owner_comparison.compare(
        owners_and_privileges.units_of(script),
        owners_and_privileges.units_of(again.text),
        refused,
        more_on=None if pg_dump_options.leaving_out(manifest.options) else schemas,
        same_major=manifest.server.partition(".")[0] == str(into.major),
    )


def _check(found: owner_comparison.Comparison, codec: str) -> Check:
    if not found.problems:
        as_before = f"{counted(found.compared, 'statement')} as in the source"
        if found.left_out:
            as_before += f"; {found.left_out} left out, whose owner is a superuser in the source"
        return Check(_NAME, passed=True, found=as_before)
    some = b"; ".join(found.problems[:_MOST_PROBLEMS]).decode(codec, "backslashreplace")
    shown = " ".join(some.split())
    more = len(found.problems) - _MOST_PROBLEMS
    return Check(_NAME, passed=False, found=shown + (f"; and {more} more" if more > 0 else ""))
