"""`pgstash config check`, `pgstash config show` and the other commands for a configuration file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from pgstash.cli.arguments import Job, Json
from pgstash.cli.output import print_line, print_table
from pgstash.cli.runner import Command, run
from pgstash.errors import ConfigurationError
from pgstash.events import Emit
from pgstash.monitoring import log
from pgstash.signals import Interruption

if TYPE_CHECKING:
    from pgstash.settings import Settings

app = typer.Typer(
    name="config",
    help="Check and show a configuration file: PGSTASH_CONFIG, or --config before the command.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def check() -> None:
    """Check the whole configuration file, and report all problems at once.

    No server and no store is asked; `pgstash check --job` does that. Values are read from the
    variables, files and commands that the file refers to. Exit status 0 means that there is no
    problem, 1 that there is one.
    """
    from pgstash.commands import config

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        print_line(config.summary(values))

    run(work, Command(prints_findings=True, all_jobs=True, whole_file=True))


@app.command()
def schema() -> None:
    """Print the JSON schema of the configuration file, for editors and checks elsewhere."""
    from pgstash.settings.config.schema import schema as made

    print_line(json.dumps(made(), indent=2, ensure_ascii=False))


@app.command("from-env")
def from_env() -> None:
    """Print a configuration file that means the same as the environment and .env.

    Its job keeps the prefix, so that the backups that are stored are its backups. Secrets are not
    printed: the file refers to their variables and files.
    """
    from pgstash.settings.config import from_environment

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        if values.origin.config is not None:
            raise ConfigurationError(["PGSTASH_CONFIG names a file already. Unset it."])
        print_line(from_environment.text().rstrip("\n"))

    run(work, Command(stdout_is_data=True, prints_findings=True, all_jobs=True))


@app.command()
def show(*, job: Job = None, as_json: Json = False) -> None:
    """Show the jobs of the configuration file, each with the settings that apply to it.

    The table has source, store and prefix. JSON has every setting that differs from its default.
    Secrets are hidden. Servers with several databases are asked for them; if one does not answer,
    there is a warning, and only its databases with a section of their own are shown.
    """
    from pgstash.commands import config

    def work(values: Settings, _emit: Emit, _interruption: Interruption) -> None:
        found = config.shown(values)
        for warning in found.warnings:
            log.LOGGER.warning("%s", warning)
        if as_json:
            print_line(json.dumps([asdict(each) for each in found.jobs], indent=2))
            return
        rows = [[each.name, each.source, each.store, each.prefix] for each in found.jobs]
        print_table([["JOB", "SOURCE", "STORE", "PREFIX"], *rows])

    run(work, Command(needs=[], stdout_is_data=True, prints_findings=True, job=job, all_jobs=True))
