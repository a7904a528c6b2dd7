"""`pgstash keys list`, `pgstash keys add` and `pgstash keys remove`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli.arguments import Job, Json
from pgstash.cli.output import print_line, print_table
from pgstash.cli.runner import Command, run
from pgstash.counting import counted
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.runtime import Runtime
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.commands.keys import KeyOf
    from pgstash.settings import Settings

_SHOWN = 20
_LABEL = re.compile(r"age1[a-z0-9]{16}|ssh-[a-z0-9]+:SHA256:[A-Za-z0-9+/]{20}", re.ASCII)

app = typer.Typer(
    name="keys",
    help="Show with which keys backups are read, and change the recipients of stored backups.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Recipient = Annotated[
    str,
    typer.Argument(
        metavar="RECIPIENT",
        help="A public key: age1…, or ssh-ed25519 … or ssh-rsa … in quotes. Or the ARN of a key of "
        "AWS KMS.",
    ),
]
_Backup = Annotated[
    str | None,
    typer.Option(
        "--backup",
        help="Change this backup only: latest, the name of a backup, or the end of it.",
        metavar="BACKUP",
    ),
]
_Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="Change the backups of this source (DATABASE@ID or DATABASE), if several sources have "
        "backups under BACKUP_PREFIX. `pgstash list` shows them.",
        metavar="SOURCE",
    ),
]


@app.command("list")
def list_(
    *,
    everything: Annotated[
        bool, typer.Option("--all", help=f"List all backups, not only the newest {_SHOWN}.")
    ] = False,
    job: Job = None,
    as_json: Json = False,
) -> None:
    """List with which key each backup is read, newest first. Needs no identity.

    A backup for recipients shows the beginnings of their public keys, and the ARNs of keys of AWS
    KMS. A backup with a passphrase shows the setting that holds it. The metadata of the objects are
    read, nothing is decrypted.
    """
    from pgstash.commands import keys

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        found = keys.list_keys(values, newest=None if everything else _SHOWN)
        if as_json:
            print_line(json.dumps([asdict(each) for each in found], indent=2))
            return
        print_table([["NAME", "KEY"], *([each.name, shown(each)] for each in found)])

    run(work, Command(needs=["storage"], only_reads=True, stdout_is_data=True, job=job))


def shown(found: KeyOf) -> str:
    """Return the key of a backup, or its recipients, for a person."""
    if not found.recipient_count:
        return found.key
    more = found.recipient_count - len(found.recipients)
    return ", ".join([*found.recipients, *([f"and {more} more"] if more > 0 else [])])


@app.command()
def add(
    recipient: _Recipient, *, backup: _Backup = None, source: _Source = None, job: Job = None
) -> None:
    """Let one more recipient read stored backups: all of a source, or one.

    Needs BACKUP_DECRYPTION_IDENTITY, or the permission to decrypt by AWS KMS. Only the wrapped
    passphrases are replaced; archives are neither read nor written. If it is interrupted, run it
    again.
    """
    _change(recipient, removes=False, backup=backup, source=source, job=job)


@app.command()
def remove(
    recipient: _Recipient, *, backup: _Backup = None, source: _Source = None, job: Job = None
) -> None:
    """Take a recipient off stored backups: all of a source, or one.

    RECIPIENT may be what `pgstash keys list` shows. Whoever held its secret key may have read the
    backups before, and copies of the objects stay readable. Needs BACKUP_DECRYPTION_IDENTITY, or
    the permission to decrypt by AWS KMS. If it is interrupted, run it again.
    """
    _change(recipient, removes=True, backup=backup, source=source, job=job)


def _change(
    recipient: str, *, removes: bool, backup: str | None, source: str | None, job: str | None
) -> None:
    from pgstash.commands import keys
    from pgstash.repository.rewrap import Change

    if backup is not None and source is not None:
        raise typer.BadParameter("cannot be combined with --backup", param_hint="--source")
    change = Change(parsed(recipient, removes=removes), removes)

    def work(values: Settings, emit: Emit, interruption: Interruption) -> None:
        runtime = Runtime(emit, interruption)
        done = keys.change_recipients(values, change, runtime, backup=backup, source=source)
        same = "did not have it" if removes else "had it already"
        log.LOGGER.log(
            log.SUCCESS,
            "Changed the recipients of %s; %d %s, %d without recipients",
            counted(done.number("changed"), "backup"),
            done.number("unchanged"),
            same,
            done.number("not wrapped"),
        )

    run(work, Command(needs=["storage"], only_reads=True, job=job))


def parsed(text: str, *, removes: bool) -> str:
    """Return the recipient that is named, by its label if it is removed. Raises BadParameter."""
    from pgstash.pipeline import recipients

    if removes and _LABEL.fullmatch(text):
        return text
    try:
        found = recipients.parse(text)
    except recipients.UnusableError as error:
        raise typer.BadParameter(str(error), param_hint="RECIPIENT") from None
    if len(found) > 1:
        raise typer.BadParameter("give one recipient at a time", param_hint="RECIPIENT")
    return found[0]
