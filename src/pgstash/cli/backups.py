"""`pgstash list`, `pgstash show` and `pgstash cat`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgstash.cli.arguments import (
    At,
    From,
    Job,
    Json,
    Name,
    Source,
    Unverified,
    at_time,
    given_by,
    needs_from,
    needs_of,
    refuse_needless,
)
from pgstash.cli.output import (
    line_width,
    print_line,
    print_table,
    shown_copies,
    table_width,
    writing,
)
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.events import BackupChosen, Emit, Event
from pgstash.format import authenticated_json
from pgstash.format import manifest as manifests
from pgstash.format.identity import Identity
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.monitoring.messages import size, span
from pgstash.settings import Settings
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands import stored

_SHOWN = 20
_ABSENT = "-"
_WHOSE = 4  # the column of the source


def list_backups(
    *,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all backups, not only the newest {_SHOWN}.")
    ] = False,
    origin: From = None,
    job: Job = None,
    as_json: Json = False,
) -> None:
    """List the stored backups, newest first. Needs no encryption key.

    PROVEN is the time of the last drill that restored the backup and passed all checks. A narrow
    terminal shows fewer columns; --json shows everything. With COPY_TO, COPIES names the copies
    that have the backup, with a question mark if a copy cannot be read.
    """
    from pgstash.commands import stored
    from pgstash.commands.listed_copies import presence
    from pgstash.commands.origin import of_copy, readable, suggested

    def work(configured: Settings, emit: Emit, _interruption: Interruption) -> None:
        newest = None if everything else _SHOWN
        chosen = of_copy(configured, origin)
        with suggested(chosen, emit):
            values = readable(chosen, emit)
            found = stored.list_backups(values, newest=newest, complete=as_json)
        if not found:
            nothing = stored.nothing_stored(values)
            log.LOGGER.info("%s\n%s", nothing.message, values.as_written(nothing.hint))
        if frozen := [each for each in found if each.backup.archived]:
            log.LOGGER.info("%s", _about_frozen(frozen, len(found)))
        copied = presence(values, found, emit)
        if as_json:
            every = [
                _facts(each) | ({"copies": copies} if copies else {})
                for each, copies in zip(found, copied, strict=True)
            ]
            print_line(json.dumps(every, indent=2))
            return
        now = datetime.now(UTC)
        # If all are of one source, the name of its database is enough.
        by_source = len({_source(each) for each in found}) > 1
        whose = "SOURCE" if by_source else "DATABASE"
        heads = ["NAME", "TIME", "AGE", "SIZE", whose, "SERVER", "ENCRYPTED", "PROVEN"]
        rows = [_row(each, now, by_source=by_source) for each in found]
        if values.copy_names:
            heads.append("COPIES")
            rows = [[*row, shown_copies(each)] for row, each in zip(rows, copied, strict=True)]
        print_table(_fitting([heads, *rows], line_width()))

    needs, given = needs_from(origin), given_by(origin)
    run(work, Command(needs=needs, given=given, only_reads=True, stdout_is_data=True, job=job))


def show(  # noqa: PLR0913 - one argument for each option
    name: Name = "latest",
    *,
    at: At = None,
    source: Source = None,
    origin: From = None,
    job: Job = None,
    as_json: Json = False,
) -> None:
    """Show the manifest of a backup: its source, size, versions, tables and row counts."""
    from pgstash.commands import kms, stored
    from pgstash.commands.origin import of_copy, suggested

    refuse_needless(source, name, at)
    wanted = stored.Wanted(name, source=source)

    def work(values: Settings, emit: Emit, _interruption: Interruption) -> None:
        chosen: list[BackupChosen] = []

        def listen(event: Event) -> None:
            if isinstance(event, BackupChosen):
                chosen.append(event)
            emit(event)

        chosen_store = of_copy(values, origin)
        moment = at_time(wanted, at, values, emit)
        with suggested(chosen_store, listen) as heard:
            manifest = stored.manifest_of(chosen_store, moment, heard)
        if as_json:
            facts = json.loads(manifests.dump(manifest, None))
            if at:
                facts["chosen"] = _chosen(chosen[0])
            print_line(authenticated_json.dump(facts, None).decode().rstrip())
            return
        folder = Path(wanted.name).absolute().parent if wanted.is_file else None
        by_hand = kms.opened_by_hand(chosen_store, manifest, folder)
        for key, value in (*_about(manifest), *by_hand):
            print_line(f"{key:<12}{log.printable(value)}")
        print_line("")
        tables = [[_qualified(each), str(each.rows)] for each in manifest.tables]
        print_table([["TABLE", "ROWS"], *sorted(tables)])

    needs, given = needs_of(wanted, origin), given_by(origin)
    run(work, Command(needs=needs, given=given, only_reads=True, stdout_is_data=True, job=job))


def cat(  # noqa: PLR0913 - one argument for each option
    name: Name = "latest",
    *,
    at: At = None,
    source: Source = None,
    origin: From = None,
    job: Job = None,
    unverified: Unverified = False,
) -> None:
    """Write the plain SQL of a backup to stdout.

    The data is verified while it is written. Exit status 0 means that all of it is intact. After
    any other exit status, do not use the output.
    """
    from pgstash.commands import stored
    from pgstash.commands.origin import of_copy, suggested

    refuse_needless(source, name, at)
    wanted = stored.Wanted(name, unverified=unverified, source=source)

    def work(values: Settings, emit: Emit, _interruption: Interruption) -> None:
        chosen = of_copy(values, origin)
        with suggested(chosen, emit) as heard:
            found = stored.open_archive(chosen, at_time(wanted, at, values, emit), heard)
            with found.script() as chunks:
                for chunk in chunks:
                    with writing():
                        sys.stdout.buffer.write(chunk)
        with writing():
            sys.stdout.buffer.flush()

    needs, given = needs_of(wanted, origin), given_by(origin)
    run(work, Command(needs=needs, given=given, only_reads=True, stdout_is_data=True, job=job))


def _about_frozen(frozen: Sequence[stored.Listed], of: int) -> str:
    classes = " or ".join(sorted({each.backup.archived for each in frozen}))
    return (
        f"Storage class {classes}: {len(frozen)} of {counted(of, 'backup')}. Such a backup has to "
        "be thawed before it can be restored, which takes hours."
    )


def _facts(listed: stored.Listed) -> dict[str, Any]:
    known = listed.metadata
    facts: dict[str, Any] = {
        "name": listed.backup.name,
        "time": iso(listed.backup.started),
        "size": listed.backup.size,
        "encrypted": listed.backup.encrypted,
        "archived": listed.backup.archived or None,
        "proven": iso(listed.backup.proven) if listed.backup.proven else None,
    }
    facts |= {key: known.get(key) for key in ("database", "system", "server", "id")}
    facts |= {key: known[key] for key in ("host", "client", "tool") if key in known}
    facts["source"] = _source(listed)
    for key in ("raw-bytes", "tables", "rows"):
        value = known.get(key, "")
        facts[key.replace("-", "_")] = int(value) if value.isdecimal() else None
    return facts


def _chosen(event: BackupChosen) -> dict[str, str | None]:
    """Return which backup was chosen for a time, and its neighbours."""
    return {
        "at": iso(event.at) if event.at else None,
        "name": event.name,
        "before": event.before,
        "after": event.after,
    }


def _source(listed: stored.Listed) -> str | None:
    identity = Identity.of(listed.metadata)
    return identity.label if identity.database else None


def _row(listed: stored.Listed, now: datetime, *, by_source: bool) -> list[str]:
    backup = listed.backup
    return [
        backup.name,
        iso(backup.started),
        span(max(0.0, (now - backup.started).total_seconds())),
        size(backup.size),
        _source(listed) or _ABSENT if by_source else listed.metadata.get("database", _ABSENT),
        listed.metadata.get("server", _ABSENT),
        "yes" if backup.encrypted else "no",
        iso(backup.proven) if backup.proven else _ABSENT,
    ]


def _fitting(table: Sequence[Sequence[str]], width: int | None) -> Sequence[Sequence[str]]:
    """Return a listing without the columns that a line of this width has no room for.

    The first to go are those that the name shows too. Of the time of a proof, the day is kept.
    """
    columns = {cells[0]: cells for cells in zip(*table, strict=True)}
    whose = table[0][_WHOSE]
    for head in ("TIME", "ENCRYPTED", "PROVEN", "SERVER", "AGE", "COPIES", whose):
        if width is None or table_width(list(zip(*columns.values(), strict=True))) <= width:
            break
        if head == "PROVEN":
            columns[head] = tuple(cell.partition("T")[0] for cell in columns[head])
        else:
            columns.pop(head, None)
    return list(zip(*columns.values(), strict=True))


def _about(manifest: manifests.Manifest) -> list[tuple[str, str]]:
    database = manifest.database
    locale = f", {database.locale_provider}: {database.locale}" if database.locale else ""
    rows = sum(each.rows for each in manifest.tables)
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
        ("encryption", _encryption(manifest.encryption)),
        *(("role", log.printable(role)) for role in manifest.roles),
        *([("passwords", "stored with the roles")] if manifest.globals_passwords else []),
        *(("extension", f"{each.name} {each.version}") for each in manifest.extensions),
        ("id", manifest.id),
        ("rows", f"{rows} in {counted(len(manifest.tables), 'table')}"),
    ]


def _encryption(found: manifests.Encryption | None) -> str:
    """Return what openssl needs to know; it has the usual number of rounds by itself."""
    from pgstash.pipeline import encryption

    if found is None:
        return "none"
    more = "" if found.rounds == encryption.ROUNDS else f", {found.rounds} rounds (-iter)"
    return f"{found.cipher}, {found.kdf}{more}"


def _qualified(table: manifests.Table) -> str:
    return f"{table.schema}.{table.name}" if table.schema else table.name
