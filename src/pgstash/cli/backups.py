"""The commands that read what is stored: list, show, cat, restore, drill."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pgstash import manifest as manifests
from pgstash import recovery
from pgstash.cli.running import run
from pgstash.errors import OutputError, PgstashError
from pgstash.events import Emit
from pgstash.identity import Identity
from pgstash.monitoring import log
from pgstash.monitoring.wording import size, span
from pgstash.settings import Need, Settings
from pgstash.signals import Interruption, end_by

_SHOWN = 20
_ABSENT = "-"
_TIME = "%Y-%m-%dT%H:%M:%SZ"

_Name = Annotated[
    str,
    typer.Argument(
        metavar="BACKUP",
        help="latest, the name of a backup, the path of a FILE (with a / in it), or - for stdin.",
    ),
]
_Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="Of which source the latest backup is wanted, as DATABASE@ID or DATABASE, if several "
        "have backups under BACKUP_PREFIX. `pgstash list` shows them.",
        metavar="SOURCE",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Unverified = Annotated[
    bool,
    typer.Option("--unverified", help="Read a backup that nothing vouches for: without manifest."),
]


def list_backups(
    *,
    everything: Annotated[
        bool, typer.Option("--all", help=f"All of them, not only the newest {_SHOWN}.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """List the backups, the newest first. Needs no encryption key.

    PROVEN is when a drill last restored the backup and found everything in it.
    """

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        found = recovery.list_backups(values, newest=None if everything else _SHOWN)
        if as_json:
            print_line(json.dumps([_facts(each) for each in found], indent=2))
            return
        now = datetime.now(UTC)
        # Of one source its database's name is enough.
        by_source = len({_source(each) for each in found}) > 1
        whose = "SOURCE" if by_source else "DATABASE"
        heads = ["NAME", "TIME", "AGE", "SIZE", whose, "SERVER", "ENCRYPTED", "PROVEN"]
        _print_table([heads, *(_row(each, now, by_source=by_source) for each in found)])

    run(work, needs=["storage"], only_reads=True, stdout_is_data=True)


def show(name: _Name = "latest", *, source: _Source = None, as_json: _Json = False) -> None:
    """Show the manifest of a backup: what is in it, tables and rows included."""
    _refuse_needless(source, name)

    def work(values: Settings, emit: Emit, _interruption: Interruption) -> None:
        manifest = recovery.manifest_of(values, recovery.Wanted(name, source=source), emit)
        if as_json:
            print_line(manifests.dump(manifest, None).decode().rstrip())
            return
        for key, value in _about(manifest):
            print_line(f"{key:<12}{log.printable(value)}")
        print_line("")
        tables = [[_qualified(each), str(each.rows)] for each in manifest.tables]
        _print_table([["TABLE", "ROWS"], *sorted(tables)])

    run(work, needs=_needs(name), only_reads=True, stdout_is_data=True)


def cat(name: _Name = "latest", *, source: _Source = None, unverified: _Unverified = False) -> None:
    """Write the plain SQL of a backup to stdout.

    It is checked on the way. Exit status 0 means that all of it was as it had been written: do
    not use what came before any other status.
    """
    _refuse_needless(source, name)
    wanted = recovery.Wanted(name, unverified=unverified, source=source)

    def work(values: Settings, emit: Emit, _interruption: Interruption) -> None:
        found = recovery.open_archive(values, wanted, emit)
        with found.script() as chunks:
            for chunk in chunks:
                with _writing():
                    sys.stdout.buffer.write(chunk)
        with _writing():
            sys.stdout.buffer.flush()

    run(work, needs=_needs(name), only_reads=True, stdout_is_data=True)


def restore(  # noqa: PLR0913 - one argument for each option
    name: _Name = "latest",
    *,
    to: Annotated[
        str | None,
        typer.Option(
            help="The database to restore into: postgresql://user@host:5432/database. RESTORE_URL "
            "says it too; a password is better kept there, or in a PGPASSFILE.",
            metavar="URL",
        ),
    ] = None,
    at: Annotated[
        datetime | None,
        typer.Option(
            help="The newest backup that began at this time (UTC) or before.",
            formats=["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"],
            metavar="TIME",
        ),
    ] = None,
    source: _Source = None,
    create: Annotated[
        str | None,
        typer.Option(
            help="Make a new database of this name on that server, with encoding, locale and "
            "settings of the old one, and restore into it.",
            metavar="NAME",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Restore into a database that is not empty, over what has the same name; not with "
            "--table.",
        ),
    ] = False,
    create_roles: Annotated[
        bool,
        typer.Option(
            "--create-roles",
            help="Make the roles of the source that the target lacks, without login and rights.",
        ),
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this table, read without the others: schema.name, with * and ? as in "
            "pg_dump's --table; may be given several times. Into an empty or a new database come "
            "all definitions, and the rows and indexes of these tables.",
            metavar="PATTERN",
        ),
    ] = None,
    data_only: Annotated[
        bool,
        typer.Option("--data-only", help="Only rows, into tables that are there; needs --table."),
    ] = False,
    unverified: _Unverified = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Look at backup and target, say what would be done."),
    ] = False,
) -> None:
    """Restore a backup into an empty or a new database.

    It is streamed into psql in one transaction, which is committed when everything was as it had
    been written. Exit status 0 means that everything is in the target; after any other the
    message says what happened to the target: nearly always nothing.
    """
    if at and name != "latest":
        raise typer.BadParameter("is for when no backup is named", param_hint="--at")
    if create is not None and overwrite:
        raise typer.BadParameter("is not for a new database", param_hint="--overwrite")
    if table and overwrite:
        raise typer.BadParameter(
            "replaces everything; with --table restore into a new or an empty database, or add "
            "rows by --data-only",
            param_hint="--overwrite",
        )
    if data_only and not table:
        raise typer.BadParameter("needs --table, at least one", param_hint="--data-only")
    if data_only and create is not None:
        raise typer.BadParameter(
            "adds to tables that are there, and replaces nothing", param_hint="--data-only"
        )
    _refuse_needless(source, name)
    wanted = recovery.Wanted(name, at.replace(tzinfo=UTC) if at else None, unverified, source)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        recovery.restore_backup(
            values,
            wanted,
            emit,
            interruption.deferred,
            create=create,
            overwrite=overwrite,
            dry_run=dry_run,
            create_roles=create_roles,
            tables=table or [],
            rows_only=data_only,
        )

    given = {"RESTORE_URL": to} if to else None
    run(work, needs=_needs(name, "target"), given=given, only_reads=True)


def drill(
    name: Annotated[
        str,
        typer.Argument(metavar="BACKUP", help="latest, or the name of a backup."),
    ] = "latest",
    *,
    all_unproven: Annotated[
        bool,
        typer.Option(
            "--all-unproven", help="Every backup that no drill has proven, the newest first."
        ),
    ] = False,
    source: _Source = None,
) -> None:
    """Prove that a backup restores: restore it into scratch, look at it, drop it.

    Scratch is a database on the server of VERIFY_DATABASE_URL, or a throwaway server that is
    started for it. Every digest, the rows of every table, indexes, constraints and sequences are
    looked at, and what MIN_TABLE_COUNT and VERIFY_SQL ask. Exit status 0 means that the backup
    passed, and that the proof is stored beside it.
    """
    if all_unproven and name != "latest":
        raise typer.BadParameter("is for when no backup is named", param_hint="--all-unproven")
    _refuse_needless(source, name)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        if not all_unproven:
            recovery.drill_backup(values, name, emit, interruption.deferred, source=source)
            return
        failures = []
        for each in recovery.unproven(values, emit, source):
            try:
                recovery.drill_backup(values, each, emit, interruption.deferred)
            except PgstashError as error:
                log.LOGGER.debug("What led to it", exc_info=error)
                failures.append(error)
            interruption.hear()
        if failures:
            raise failures[0]

    run(work, needs=["storage"])


def _refuse_needless(source: str | None, name: str) -> None:
    if source is not None and name != "latest":
        raise typer.BadParameter("is for when no backup is named", param_hint="--source")


def _needs(name: str, *others: Need) -> Sequence[Need]:
    return others if recovery.Wanted(name).is_file else ("storage", *others)


def _facts(listed: recovery.Listed) -> dict[str, Any]:
    known = listed.metadata
    facts: dict[str, Any] = {
        "name": listed.backup.name,
        "time": listed.backup.started.strftime(_TIME),
        "size": listed.backup.size,
        "encrypted": listed.backup.encrypted,
        "proven": listed.backup.proven.strftime(_TIME) if listed.backup.proven else None,
    }
    names = ("database", "host", "system", "server", "client", "tool", "id")
    facts |= {key: known.get(key) for key in names}
    facts["source"] = _source(listed)
    for key in ("raw-bytes", "tables", "rows"):
        value = known.get(key, "")
        facts[key.replace("-", "_")] = int(value) if value.isdecimal() else None
    return facts


def _source(listed: recovery.Listed) -> str | None:
    identity = Identity.of(listed.metadata)
    return identity.label if identity.database else None


def _row(listed: recovery.Listed, now: datetime, *, by_source: bool) -> list[str]:
    backup = listed.backup
    return [
        backup.name,
        backup.started.strftime(_TIME),
        span(max(0.0, (now - backup.started).total_seconds())),
        size(backup.size),
        _source(listed) or _ABSENT if by_source else listed.metadata.get("database", _ABSENT),
        listed.metadata.get("server", _ABSENT),
        "yes" if backup.encrypted else "no",
        backup.proven.strftime(_TIME) if backup.proven else _ABSENT,
    ]


def _about(manifest: manifests.Manifest) -> list[tuple[str, str]]:
    database = manifest.database
    locale = f", {database.locale_provider}: {database.locale}" if database.locale else ""
    encryption = manifest.encryption
    return [
        ("name", manifest.archive),
        ("started", manifest.started),
        ("finished", manifest.finished),
        ("size", f"{size(manifest.stored_bytes)} stored, {size(manifest.raw_bytes)} plain"),
        ("sha256", manifest.sha256),
        ("database", f"{database.name} on {database.host}:{database.port}"),
        ("encoding", f"{database.encoding}, {database.collate}, {database.ctype}{locale}"),
        *(("setting", setting) for setting in database.settings),
        ("server", manifest.server),
        ("client", f"pg_dump {manifest.client}"),
        *(("option", option) for option in manifest.options),
        ("tool", manifest.tool),
        ("encryption", f"{encryption.cipher}, {encryption.kdf}" if encryption else "none"),
        *(("role", log.printable(role)) for role in manifest.roles),
        *(("extension", f"{each.name} {each.version}") for each in manifest.extensions),
        ("id", manifest.id),
        ("rows", f"{sum(each.rows for each in manifest.tables)} in {len(manifest.tables)} tables"),
    ]


def _qualified(table: manifests.Table) -> str:
    return f"{table.schema}.{table.name}" if table.schema else table.name


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    shown = [[log.printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(padded).rstrip())


def print_line(line: str) -> None:
    """Print to stdout, and end as a tool does when nobody reads that any more.

    Raises OutputError.
    """
    with _writing():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        end_by(signal.SIGPIPE)
    except OSError as error:
        raise OutputError(f"stdout cannot be written to: {error.strerror}") from error
