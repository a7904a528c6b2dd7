"""Where settings come from: the environment, a ``.env`` file, and files that hold a secret."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pgstash.errors import ConfigurationError
from pgstash.postgres.server import conninfo, foreign_parameters
from pgstash.settings import aws, copies, copy_to, env_file, preparation, roles, spelling, store_url
from pgstash.settings.model import Need, Settings, is_secret, variable_of
from pgstash.settings.preparation import LOCATING, OF_THE_SOURCE
from pgstash.settings.validation import Values, checked

# The groups that a command which only reads uses. For the others, a machine used for a restore may
# have nothing: no programs of hooks, no files of other secrets.
_READ = (
    "Storage",
    "Azure Blob Storage",
    "Google Cloud Storage",
    "Copies",
    "Backup",
    "Restore",
    "Log",
)

_KEYS_OF_NEW_BACKUPS = ("BACKUP_ENCRYPTION_KEY", "BACKUP_ENCRYPTION_RECIPIENTS")

CONFIG_VARIABLE = "PGSTASH_CONFIG"

SNAPSHOT_VARIABLE = "PGSTASH_CONFIG_SNAPSHOT"
"""The descriptor with the content of that file, as the service that started this process read it:
the file may be in the middle of a change."""

_OPTIONS = {
    "RESTORE_URL": "--to",
    "STORAGE_URL": "--from",
}  # what the command line calls a variable that it sets


@dataclass(frozen=True, slots=True)
class Request:
    """What a command needs; see :func:`load`."""

    needs: Collection[Need] = ("source", "storage")
    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    only_reads: bool = False

    @property
    def unused(self) -> set[str]:
        """The settings whose invalid values are ignored."""
        return {
            name
            for name in Settings.model_fields
            if self.only_reads and variable_of(name).group not in _READ
        }


def load(
    environ: MutableMapping[str, str] = os.environ,
    dotenv: Path = Path(".env"),
    *,
    needs: Collection[Need] = ("source", "storage"),
    given: Mapping[str, str] = MappingProxyType({}),
    only_reads: bool = False,
) -> Settings:
    """Read the settings from the environment and a ``.env`` file.

    ``needs`` must be configured; ``given`` takes precedence over both. With ``only_reads``, invalid
    values of settings this command does not use are ignored. Variables of libpq in the ``.env``
    file are put into ``environ``, where libpq reads them. If a target is needed, the variables with
    the address and the login of the source are removed from ``environ`` instead, so that libpq does
    not use them for the target. A given RESTORE_URL with the same login as the configured one is
    completed from it: its password, too. Raises ConfigurationError, which lists every problem and
    shows no secret.
    """
    problems: list[str] = []
    of_file = env_file.read(dotenv, problems)
    return checked_values(environ, of_file, Request(needs, given, only_reads), problems)


def checked_values(
    environ: MutableMapping[str, str],
    of_file: Mapping[str, str],
    request: Request,
    problems: list[str],
) -> Settings:
    """Return the settings as :func:`load` does; ``of_file`` is what a file contains.

    ``problems`` are those that were found before.
    """
    needs, given, only_reads = request.needs, request.given, request.only_reads
    values = {**of_file} | {k: v for k, v in environ.items() if v}
    configured = _configured_target(values) if "RESTORE_URL" in given else ""
    for variable in given:
        values.pop(f"{variable}_FILE", None)
    if "STORAGE_URL" in given:
        store_url.replace(values, given["STORAGE_URL"])
    values |= given
    sources = Values(
        values=values,
        everything={**environ, **values},
        needs=needs,
        unused=request.unused,
        labels={variable: _OPTIONS.get(variable, variable) for variable in given}
        | aws.label_of_region(values),
        problems=problems,
    )
    edges, warnings = preparation.judge_odd_values(sources, {**environ, **given})
    if "RESTORE_URL" in given:
        values["RESTORE_URL"] = conninfo.completed(values["RESTORE_URL"], configured)
    unreadable = preparation.read_secret_files(sources, edges)
    _settle_libpq(environ, values, needs)
    notes = roles.settle(values)
    problems += roles.problems(values)
    if {"storage", "bucket", "copies"} & {*needs}:
        problems += store_url.settle(values)
        aws.settle(environ, values, of_file)
    located = any(name in values for name in ("DATABASE_URL", *LOCATING))
    problems += _missing(sources, unreadable, located=located)
    problems += _wrong_ssl_mode(sources)
    settings, ignored = checked(Settings, sources, edges, unreadable)
    # Another store, given for one command, has no copies: it may be one itself.
    outside = copies.Outside(environ, {**environ, **given}, of_file)
    found = [] if "STORAGE_URL" in given else copies.read(sources, outside)
    strict = not only_reads or "copies" in needs
    if strict:
        problems += [problem for copy in found for problem in copy.problems]
    if settings is None or problems:
        raise ConfigurationError(problems)
    settings._copies = {copy.name: copy.store for copy in found if copy.store}  # noqa: SLF001 - only loading knows them
    settings._left_out = _leave_out_copies(settings, found, strict=strict)  # noqa: SLF001 - as above
    names = copies.names(values)
    others = {name for name in values if not copies.is_handled(name, names)}
    settings._misspelt = [  # noqa: SLF001 - only loading knows all names
        *spelling.misspelt(others, of_file),
        *copies.unnamed(values, names),
        *(warning for copy in found for warning in copy.misspelt),
    ]
    settings._odd_values = [  # noqa: SLF001 - as above
        *warnings,
        *(each.warning for each in edges if not each.usual),
        *(warning for copy in found for warning in copy.odd_values),
    ]
    settings._notes = ignored + notes  # noqa: SLF001 - as above
    settings._source_variables = {  # noqa: SLF001 - for a target they leave the environment
        name: values[name] for name in (*LOCATING, "PGPORT", "PGUSER") if name in values
    }
    settings._has_source = located  # noqa: SLF001 - and what libpq reads itself
    settings._identity_secrets = [  # noqa: SLF001 - and what the stores' libraries read themselves
        *aws.secrets(values),
        *store_url.identity_secrets(values),
        *(secret for copy in found for secret in copy.secrets),
    ]
    return settings


def _leave_out_copies(
    settings: Settings, found: Sequence[copies.Copy], *, strict: bool
) -> list[str]:
    """Leave out the copies that cannot be used; return a warning about each.

    If a copy is in a wrong place, and the settings must be right (``strict``), raise
    ConfigurationError.
    """
    problems = [(copy.name, problem) for copy in found for problem in copy.problems]
    misplaced = list(copies.in_one_place(settings))
    if strict and misplaced:
        raise ConfigurationError([problem for _, problem in misplaced])
    problems += misplaced
    wrong = {name for name, _ in problems}
    kept = {name: store for name, store in settings._copies.items() if name not in wrong}  # noqa: SLF001 - only loading changes it
    settings._copies = kept  # noqa: SLF001 - as above
    return [f"Ignoring the copy {name}. {problem}" for name, problem in problems]


def _configured_target(values: Mapping[str, str]) -> str:
    """Return RESTORE_URL as it is set or in its file; empty if it is not, or cannot be read."""
    found = dict(values)
    preparation.read_secret_file("RESTORE_URL", found, [])
    return found.get("RESTORE_URL", "")


def log_format(
    environ: Mapping[str, str] = os.environ, dotenv: Path = Path(".env")
) -> Literal["text", "json"]:
    """Return the format of the log before the settings are checked: problems are logged in it."""
    value = environ.get("LOG_FORMAT") or env_file.read(dotenv, []).get("LOG_FORMAT", "")
    return "json" if value.strip().strip("'\"") == "json" else "text"


def _missing(sources: Values, unreadable: Collection[str], *, located: bool) -> Iterator[str]:
    """Yield what is missing and is not a setting that alone would do."""
    values, needs = sources.values, sources.needs
    if "source" in needs and not located and "DATABASE_URL" not in unreadable:
        yield (
            f"DATABASE_URL is missing. Expected: {variable_of('database_url').expected}. Or set "
            "PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE instead."
            f"{sources.near_misses('DATABASE_URL')}"
        )
    if "target" in needs and "RESTORE_URL" not in values and "RESTORE_URL" not in unreadable:
        yield (
            f"--to is missing. Expected: {variable_of('restore_url').expected}. Or set RESTORE_URL."
            f"{sources.near_misses('RESTORE_URL')}"
        )
    keys = [key for key in _KEYS_OF_NEW_BACKUPS if key in values]
    if "source" in needs and keys and "BACKUP_ENCRYPTION" not in values:
        yield (
            f"BACKUP_ENCRYPTION is missing, but {keys[0]} is set. Set "
            "BACKUP_ENCRYPTION=true to encrypt, or BACKUP_ENCRYPTION=false to store unencrypted "
            "backups."
        )


def _wrong_ssl_mode(sources: Values) -> Iterator[str]:
    """Yield the problem of a TLS mode that libpq would refuse at the login, if it is used."""
    urls = {"source": "DATABASE_URL", "target": "RESTORE_URL"}
    used = [sources.values.get(url, "") for need, url in urls.items() if need in sources.needs]
    instead = foreign_parameters.ssl_mode_instead(sources.values.get("PGSSLMODE", "prefer"))
    if instead and any("sslmode=" not in url for url in used):
        write = instead.replace("sslmode=", "PGSSLMODE=")
        yield f"PGSSLMODE has a value that libpq does not know. Write {write}."


def _settle_libpq(
    environ: MutableMapping[str, str], values: Mapping[str, str], needs: Collection[Need]
) -> None:
    """Set libpq's variables in the environment; if there is a target, remove the source's."""
    for variable, value in values.items():
        if variable.startswith("PG") and variable != "PGPASSWORD_FILE":
            environ[variable] = value
    if "target" in needs:
        for variable in OF_THE_SOURCE:
            environ.pop(variable, None)


def secret_variables(settings: Settings | None = None) -> set[str]:
    """Return the names of variables that contain a secret of pgstash, or name a file that does.

    Those of ``settings`` include the variables that a configuration file takes values from.
    """
    names = [name.upper() for name in Settings.model_fields if is_secret(name)]
    of_copies = filter(copy_to.is_secret, os.environ)
    others = settings.origin.referenced if settings else ()
    return {*names, *(f"{name}_FILE" for name in names), *of_copies, *others}


def name_config(path: Path) -> None:
    """Let this process, and its children, read a configuration file."""
    os.environ[CONFIG_VARIABLE] = str(path.absolute())


def environment_of_jobs(dotenv: Path = Path(".env")) -> dict[str, str]:
    """Return the environment for a child that reads all settings itself, as this process did.

    The password that this process read from a file for libpq is left out: the child reads it too.
    """
    environ = environment()
    if "PGPASSWORD_FILE" in {**env_file.read(dotenv, []), **environ}:
        environ.pop("PGPASSWORD", None)
    return environ


def environment() -> dict[str, str]:
    """Return the environment of the process, from which child processes get theirs."""
    return dict(os.environ)
