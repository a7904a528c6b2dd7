"""`pgstash show` and `pgstash cat`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    needs_of,
    refuse_needless,
)
from pgstash.cli.output import (
    print_line,
    print_table,
    writing,
)
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.events import BackupChosen, Emit, Event
from pgstash.format import authenticated_json
from pgstash.format import manifest as manifests
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.monitoring.messages import size
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings


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


def _chosen(event: BackupChosen) -> dict[str, str | None]:
    """Return which backup was chosen for a time, and its neighbours."""
    return {
        "at": iso(event.at) if event.at else None,
        "name": event.name,
        "before": event.before,
        "after": event.after,
    }


def _about(manifest: manifests.Manifest) -> list[tuple[str, str]]:
    database = manifest.database
    locale = f", {database.locale_provider}: {database.locale}" if database.locale else ""
    rows = sum(each.rows for each in manifest.tables)
    return [
        ("name", manifest.archive),
        ("started", manifest.started),
        ("finished", manifest.finished),
        *([("snapshot", _snapshot(manifest.snapshot))] if manifest.snapshot else []),
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


def _snapshot(found: manifests.Snapshot) -> str:
    return f"{found.time}, WAL position {found.wal}" if found.wal else found.time


def _encryption(found: manifests.Encryption | None) -> str:
    """Return what openssl needs to know; it has the usual number of rounds by itself."""
    from pgstash.pipeline import encryption

    if found is None:
        return "none"
    more = "" if found.rounds == encryption.ROUNDS else f", {found.rounds} rounds (-iter)"
    return f"{found.cipher}, {found.kdf}{more}"


def _qualified(table: manifests.Table) -> str:
    return f"{table.schema}.{table.name}" if table.schema else table.name
