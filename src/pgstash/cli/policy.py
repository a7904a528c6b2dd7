"""`pgstash policy`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pgstash.cli.arguments import Job
from pgstash.cli.output import print_line
from pgstash.cli.runner import Command, run
from pgstash.events import Emit
from pgstash.signals import Interruption
from pgstash.storage.host_roles import Role

if TYPE_CHECKING:
    from pgstash.settings import Settings


def policy(
    role: Annotated[
        Role,
        typer.Argument(
            help="The `writer` makes backups, the `pruner` deletes them, the `reader` restores and "
            "drills."
        ),
    ],
    *,
    job: Job = None,
) -> None:
    """Print the permissions that a key or an identity needs, in JSON.

    For S3 that is an IAM policy for the configured bucket and prefix, for Azure and Google Cloud
    Storage a custom role. Each role has the least permissions. Nothing is requested
    from the store, and no access key is needed. With STORAGE_ROLE=writer, the permissions of the
    writer are enough for backups. With DATABASES, they are for the backups of all databases, or of
    that of --job.
    """
    from pgstash.commands.policy import policy_of

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        print_line(json.dumps(policy_of(role, values), indent=2))

    run(
        work,
        Command(needs=["bucket"], only_reads=True, stdout_is_data=True, job=job, all_jobs=True),
    )
