"""`pgstash restore`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli.arguments import (
    At,
    From,
    Job,
    Mark,
    Name,
    Source,
    Unverified,
    at_time,
    given_by,
    needs_of,
    refuse_needless,
)
from pgstash.cli.outcome import JsonOutcome, reporting
from pgstash.cli.runner import Command, run
from pgstash.events import Emit
from pgstash.runtime import Runtime
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings


def restore(  # noqa: PLR0913 - one argument for each option
    name: Name = "latest",
    *,
    to: Annotated[
        str | None,
        typer.Option(
            help="The database to restore into: postgresql://user@host:5432/database. Leave the "
            "password to RESTORE_URL, with the same user, host and port, or to a PGPASSFILE. "
            "Without --to and --create, the database in RESTORE_URL must have the same name as "
            "the database that the backup is of.",
            metavar="URL",
        ),
    ] = None,
    at: At = None,
    source: Source = None,
    origin: From = None,
    job: Job = None,
    create: Annotated[
        str | None,
        typer.Option(
            help="Create a new database with this name on that server, with the encoding, locale "
            "and settings of the source database, and restore into it.",
            metavar="NAME",
        ),
    ] = None,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="With --create, put the new database in the place of an existing one of that "
            "name, once it is complete and has its owners and privileges. The old one is kept "
            "under another name: NAME_before_ and the time in UTC. Its sessions are ended.",
        ),
    ] = False,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Restore into a database that is not empty, and replace objects of the same name. "
            "Cannot be combined with --table.",
        ),
    ] = False,
    create_roles: Annotated[
        bool,
        typer.Option(
            "--create-roles",
            help="Create roles of the source that are missing on the target, without privileges. "
            "They can log in if the backup has their passwords (GLOBALS_PASSWORDS).",
        ),
    ] = False,
    no_owner: Annotated[
        bool,
        typer.Option(
            "--no-owner",
            help="Do not give objects their owners: the restoring role keeps them.",
        ),
    ] = False,
    no_privileges: Annotated[
        bool,
        typer.Option(
            "--no-privileges",
            help="Do not restore GRANT and REVOKE.",
        ),
    ] = False,
    no_analyze: Annotated[
        bool,
        typer.Option(
            "--no-analyze",
            help="Do not update the statistics for the planner at the end. Until ANALYZE has run, "
            "queries may be slow.",
        ),
    ] = False,
    skip_superuser_objects: Annotated[
        bool,
        typer.Option(
            "--skip-superuser-objects",
            help="Leave out what the restoring role may not create, such as event triggers and "
            "some extensions, and write its SQL to a file for an administrator. Without this "
            "option, the restore is refused.",
        ),
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Restore the rows of this table only, and read only its part of the backup: "
            "schema.name, with * and ? as in pg_dump's --table. May be given several times. An "
            "empty or a new database gets all definitions, but rows and indexes of these tables "
            "only.",
            metavar="PATTERN",
        ),
    ] = None,
    data_only: Annotated[
        bool,
        typer.Option("--data-only", help="Load only rows into existing tables; requires --table."),
    ] = False,
    into_existing: Annotated[
        bool,
        typer.Option(
            "--into-existing",
            help="Put the tables of --table back into a database that is in use, with rows, "
            "indexes, constraints, owners and privileges, in one transaction. A table that exists "
            "is refused.",
        ),
    ] = False,
    renamed: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="With --into-existing, give the only table of --table this name: schema.name, or "
            "a name in the same schema. Its indexes and sequences get similar names.",
            metavar="NAME",
        ),
    ] = None,
    mark: Mark = False,
    unverified: Unverified = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Inspect the backup and the target and show what would be done."
        ),
    ] = False,
    as_json: JsonOutcome = False,
) -> None:
    """Restore a backup into an empty or a new database.

    The restore is committed only after the whole backup has been verified. Exit status 0 means
    that everything is in the target. After any other exit status, the message describes what
    happened to the target: nearly always nothing.
    """
    from pgstash.commands.origin import of_copy
    from pgstash.commands.restore import restore_backup, target_of
    from pgstash.commands.stored import Wanted
    from pgstash.postgres.restore.request import Request

    if to is not None and not to.strip():
        # An unset variable of the shell must not turn this into a restore to RESTORE_URL.
        raise typer.BadParameter("is empty", param_hint="--to")
    _refuse_marking(table, mark=mark)
    _refuse_replacing(create, table, replace=replace, closed=no_owner or no_privileges)
    if create is not None and overwrite:
        raise typer.BadParameter("cannot be combined with --create", param_hint="--overwrite")
    if table and overwrite:
        raise typer.BadParameter(
            "cannot be combined with --table: restore into a new or an empty database, or add rows "
            "with --data-only",
            param_hint="--overwrite",
        )
    if data_only and not table:
        raise typer.BadParameter("requires at least one --table", param_hint="--data-only")
    if data_only and create is not None:
        raise typer.BadParameter(
            "cannot be combined with --create: it loads rows into existing tables",
            param_hint="--data-only",
        )
    if into_existing:
        _refuse_into_existing(
            table,
            {
                "--create": create is not None,
                "--create-roles": create_roles,
                "--data-only": data_only,
            },
        )
    if renamed is not None:
        _refuse_renaming(renamed, table or (), into_existing=into_existing)
    if skip_superuser_objects and (overwrite or data_only or into_existing):
        raise typer.BadParameter(
            "cannot be combined with --overwrite, which would drop what is then left out, nor with "
            "--data-only or --into-existing, which create no such objects",
            param_hint="--skip-superuser-objects",
        )
    refuse_needless(source, name, at)
    wanted = Wanted(name, unverified=unverified, source=source)

    request = Request(
        create=create,
        any_name=to is not None,
        overwrite=overwrite,
        tables=table or (),
        rows_only=data_only,
        into_existing=into_existing,
        renamed=renamed or "",
        create_roles=create_roles,
        no_owner=no_owner,
        no_privileges=no_privileges,
        no_analyze=no_analyze,
        mark=mark,
        dry_run=dry_run,
        replace=replace,
        skip_superuser_objects=skip_superuser_objects,
    )

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        chosen = at_time(wanted, at, values, emit)
        with reporting(values, emit, as_json=as_json) as heard:
            restore_backup(of_copy(values, origin), chosen, request, Runtime(heard, interruption))

    run(
        work,
        Command(
            needs=needs_of(wanted, origin, "target"),
            given=({"RESTORE_URL": to} if to else {}) | given_by(origin),
            only_reads=True,
            stdout_is_data=as_json,
            opening=lambda values: target_of(values, request),
            job=job,
        ),
    )


def _refuse_into_existing(table: list[str] | None, others: Mapping[str, bool]) -> None:
    """Refuse --into-existing without --table, and with ``others`` that were given."""
    if not table:
        raise typer.BadParameter("requires at least one --table", param_hint="--into-existing")
    for option, given in others.items():
        if given:
            problem = f"cannot be combined with {option}"
            raise typer.BadParameter(problem, param_hint="--into-existing")


def _refuse_renaming(renamed: str, table: Sequence[str], *, into_existing: bool) -> None:
    """Refuse --as for what is not one table, and names that no table can have."""
    from pgstash.postgres.restore.target import LONGEST_NAME
    from pgstash.postgres.tools import patterns

    if not into_existing:
        raise typer.BadParameter("requires --into-existing", param_hint="--as")
    if len(table) != 1:
        raise typer.BadParameter("requires exactly one --table", param_hint="--as")
    try:
        parts = patterns.name(renamed)
    except ValueError:
        raise typer.BadParameter(
            f"{renamed!r} is no name: give schema.name, with double quotes around anything but "
            "letters, digits and _",
            param_hint="--as",
        ) from None
    if any(len((part or "").encode()) > LONGEST_NAME for part in parts):
        raise typer.BadParameter(
            f"{renamed!r} is too long: a name has at most {LONGEST_NAME} bytes", param_hint="--as"
        )


def _refuse_replacing(
    create: str | None, table: list[str] | None, *, replace: bool, closed: bool
) -> None:
    """Refuse --replace without --create, and for what would not do as a replacement.

    Without owners or privileges the database would be ``closed`` to the applications.
    """
    if not replace:
        return
    if create is None:
        raise typer.BadParameter("requires --create", param_hint="--replace")
    if table:
        raise typer.BadParameter(
            "cannot be combined with --table: it replaces whole databases", param_hint="--replace"
        )
    if closed:
        raise typer.BadParameter(
            "cannot be combined with --no-owner or --no-privileges: no application could connect",
            param_hint="--replace",
        )


def _refuse_marking(table: list[str] | None, *, mark: bool) -> None:
    if mark and table:
        raise typer.BadParameter("cannot be combined with --table", param_hint="--mark")
