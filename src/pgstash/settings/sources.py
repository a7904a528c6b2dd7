"""Where settings come from: the environment, a ``.env`` file, and files that hold a secret."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pgstash.errors import ConfigurationError
from pgstash.postgres.server import conninfo, foreign_parameters
from pgstash.settings import aws, env_file, odd_values, roles, spelling, store_url
from pgstash.settings.model import Need, Settings, is_secret, variable_of
from pgstash.settings.validation import Values, checked

_LONGEST_SECRET_FILE = 64 * 1024

# Variables that libpq reads itself. One of these is enough to locate a source.
_LOCATING = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")

# The groups that a command which only reads uses. For the others, a machine used for a restore may
# have nothing: no programs of hooks, no files of other secrets.
_READ = ("Storage", "Azure Blob Storage", "Google Cloud Storage", "Backup", "Restore", "Log")

_OF_THE_SOURCE = (*_LOCATING, "PGPORT", "PGUSER", "PGPASSWORD", "PGOPTIONS", "PGTARGETSESSIONATTRS")

_KEYS_OF_NEW_BACKUPS = ("BACKUP_ENCRYPTION_KEY", "BACKUP_ENCRYPTION_RECIPIENTS")

_OPTIONS = {"RESTORE_URL": "--to"}  # what the command line calls a variable that it sets


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
    values = of_file | {k: v for k, v in environ.items() if v}
    configured = _configured_target(values) if "RESTORE_URL" in given else ""
    for variable in given:
        values.pop(f"{variable}_FILE", None)
    values |= given
    sources = Values(
        values=values,
        everything={**environ, **values},
        needs=needs,
        unused={
            name
            for name in Settings.model_fields
            if only_reads and variable_of(name).group not in _READ
        },
        labels={variable: _OPTIONS.get(variable, variable) for variable in given}
        | aws.label_of_region(values),
        problems=problems,
    )
    edges, warnings = _judge_odd_values(sources, {**environ, **given})
    if "RESTORE_URL" in given:
        values["RESTORE_URL"] = conninfo.completed(values["RESTORE_URL"], configured)
    unreadable = _read_secret_files(sources, edges)
    _settle_libpq(environ, values, needs)
    notes = roles.settle(values)
    problems += roles.problems(values)
    if {"storage", "bucket"} & {*needs}:
        problems += store_url.settle(values)
        aws.settle(environ, values, of_file)
    located = any(name in values for name in ("DATABASE_URL", *_LOCATING))
    problems += _missing(sources, unreadable, located=located)
    problems += _wrong_ssl_mode(sources)
    settings, ignored = checked(sources, edges, unreadable)
    if settings is None or problems:
        raise ConfigurationError(problems)
    settings._misspelt = spelling.misspelt(values, of_file)  # noqa: SLF001 - only loading knows all names
    settings._odd_values = [*warnings, *(each.warning for each in edges if not each.usual)]  # noqa: SLF001 - as above
    settings._notes = ignored + notes  # noqa: SLF001 - as above
    settings._source_variables = {  # noqa: SLF001 - for a target they leave the environment
        name: values[name] for name in (*_LOCATING, "PGPORT", "PGUSER") if name in values
    }
    settings._has_source = located  # noqa: SLF001 - and what libpq reads itself
    settings._identity_secrets = [*aws.secrets(values), *store_url.identity_secrets(values)]  # noqa: SLF001 - and what the stores' libraries read themselves
    return settings


def _configured_target(values: Mapping[str, str]) -> str:
    """Return RESTORE_URL as it is set or in its file; empty if it is not, or cannot be read."""
    found = dict(values)
    _read_secret_file("RESTORE_URL", found, [])
    return found.get("RESTORE_URL", "")


def log_format(
    environ: Mapping[str, str] = os.environ, dotenv: Path = Path(".env")
) -> Literal["text", "json"]:
    """Return the format of the log before the settings are checked: problems are logged in it."""
    value = environ.get("LOG_FORMAT") or env_file.read(dotenv, []).get("LOG_FORMAT", "")
    return "json" if value.strip().strip("'\"") == "json" else "text"


def _judge_odd_values(
    sources: Values, outside: Mapping[str, str]
) -> tuple[list[odd_values.Edges], list[str]]:
    """Return the values with white space around them that may be right, and other warnings.

    Others are problems; what is around them is removed, so that the rest of the value is checked
    too. Only values from ``outside`` a ``.env`` file are judged: there, quotes mean what they hold.
    """
    values = sources.values
    judged = odd_values.examined(
        {name: value for name, value in outside.items() if value and values.get(name) == value},
        sources.unused,
        _libpq_variables(sources.needs),
    )
    quoted = set(odd_values.quoted({name: value.strip() for name, value in judged.items()}))
    left = []
    for edge in odd_values.edges(judged):
        name = edge.variable
        # A variable of libpq, and the name of a file, has no other check.
        unchecked = name.lower() not in Settings.model_fields
        no_file = name.endswith("_FILE") and not Path(judged[name]).exists()
        if name in quoted or (unchecked and (edge.hopeless or no_file)):
            sources.problems.append(edge.problem(sources.label(name)))
            values[name] = edge.inner
        else:
            left.append(edge)
    for name in sorted(quoted):
        sources.problems.append(odd_values.quoted_problem(sources.label(name)))
        values[name] = values[name][1:-1]
    warnings = [*odd_values.quoted_warnings(judged), *odd_values.reference_warnings(judged)]
    return left, warnings


def _libpq_variables(needs: Collection[Need]) -> frozenset[str]:
    """Return the variables of libpq that a command with these needs uses."""
    if "target" in needs:
        return conninfo.VARIABLES - {*_OF_THE_SOURCE}
    return conninfo.VARIABLES | {"PGPASSWORD_FILE"} if "source" in needs else frozenset()


def _read_secret_files(sources: Values, edges: list[odd_values.Edges]) -> set[str]:
    """Read the secrets that are in files; return those that cannot be read.

    What begins or ends with white space is added to ``edges``.
    """
    secret_names = [name.upper() for name in Settings.model_fields if is_secret(name)]
    unreadable = set()
    for variable in (*secret_names, "PGPASSWORD"):
        ignored = variable.lower() in sources.unused or (
            variable == "PGPASSWORD" and bool(sources.unused)
        )
        in_file = variable not in sources.values
        if not _read_secret_file(variable, sources.values, [] if ignored else sources.problems):
            unreadable.add(variable)
        elif in_file and variable in sources.values and not ignored:
            edges += odd_values.edges({variable: sources.values[variable]})
    return unreadable


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
        for variable in _OF_THE_SOURCE:
            environ.pop(variable, None)


def _read_secret_file(variable: str, values: dict[str, str], problems: list[str]) -> bool:
    """Read a secret from the file that ``…_FILE`` names; return whether that succeeded."""
    pointer = f"{variable}_FILE"
    if pointer not in values:
        return True
    if variable in values:
        problems.append(f"{variable} and {pointer} are both set. Set only one of them.")
        return True
    path = Path(values[pointer])
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_SECRET_FILE + 1)
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        problems.append(f"{pointer} names {path}, which is not UTF-8 text")
    except OSError as error:
        problems.append(f"{pointer} names {path}, which cannot be read: {error.strerror}")
    else:
        if secret and len(content) <= _LONGEST_SECRET_FILE:
            values[variable] = secret
            return True
        reason = "too large for a secret" if secret else "empty"
        problems.append(f"{pointer} names {path}, which is {reason}")
    return False


def secret_variables() -> set[str]:
    """Return the names of variables that contain a secret of pgstash, or name a file that does."""
    names = [name.upper() for name in Settings.model_fields if is_secret(name)]
    return {*names, *(f"{name}_FILE" for name in names)}


def environment() -> dict[str, str]:
    """Return the environment of the process, from which child processes get theirs."""
    return dict(os.environ)
