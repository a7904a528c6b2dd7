"""Where settings come from: the environment, a ``.env`` file, and files that hold a secret."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Mapping, MutableMapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dotenv.parser import parse_stream
from pydantic import ValidationError

from pgstash.errors import ConfigurationError
from pgstash.settings.table import Need, Settings, is_secret, variable_of

_LONGEST_SECRET_FILE = 64 * 1024

# libpq reads these itself; enough of them are there when one of the first group is set.
_LOCATING = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")

# Of what a command that only reads does not use a machine that rescues data may lack everything:
# the hooks' programs, the files of other secrets.
_READ = ("Storage", "Backup", "Restore", "Log")

# Names that nobody gives to anything else, but for Kubernetes, which names services in variables;
# and those that others give too, but hardly in our own .env file.
_OUR_NAMES = re.compile(r"(BACKUP|RETENTION)_")
_OUR_NAMES_IN_FILE = re.compile(r"(BACKUP|HOOK|RESTORE|RETENTION|S3|VERIFY|WEBHOOK)_")
_OF_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d+_\w+)?$")

_OF_THE_SOURCE = (*_LOCATING, "PGPORT", "PGUSER", "PGPASSWORD", "PGOPTIONS", "PGTARGETSESSIONATTRS")


def load(
    environ: MutableMapping[str, str] = os.environ,
    dotenv: Path = Path(".env"),
    *,
    needs: Collection[Need] = ("source", "storage"),
    given: Mapping[str, str] = MappingProxyType({}),
    only_reads: bool = False,
) -> Settings:
    """Read the settings from the environment and a ``.env`` file.

    ``needs`` is what must be there, ``given`` wins over both. Where a command ``only_reads`` what
    is stored, nothing is wrong with settings that others use. libpq's own variables of the
    ``.env`` file are put into ``environ``, where libpq looks for them; where a target is
    needed, those that say where the source is and who logs in are taken away instead, so that
    the target is not completed by them. Raises ConfigurationError that lists every problem, and no
    value of a secret.
    """
    problems: list[str] = []
    of_file = _read_dotenv(dotenv, problems)
    values = of_file | {k: v for k, v in environ.items() if v}
    for variable in given:
        values.pop(f"{variable}_FILE", None)
    values |= given
    unheard = {
        name
        for name in Settings.model_fields
        if only_reads and variable_of(name).group not in _READ
    }
    for variable in _quoted({n: v for n, v in environ.items() if values.get(n) == v}, unheard):
        values[variable] = values[variable][1:-1]
        problems.append(
            f"{variable} begins and ends with a quote, which is taken for a part of it: leave them "
            "out (what docker's --env-file reads is not read as by a shell)"
        )
    secret_names = [name.upper() for name in Settings.model_fields if is_secret(name)]
    unreadable = set()
    for variable in (*secret_names, "PGPASSWORD"):
        ignored = variable.lower() in unheard or (only_reads and variable == "PGPASSWORD")
        if not _read_secret_file(variable, values, [] if ignored else problems):
            unreadable.add(variable)
    _settle_libpq(environ, values, needs)
    located = any(name in values for name in ("DATABASE_URL", *_LOCATING))
    if "source" in needs and not located and "DATABASE_URL" not in unreadable:
        problems.append(
            f"DATABASE_URL is missing: {variable_of('database_url').expected} (or set PGHOST, "
            "PGPORT, PGUSER, PGPASSWORD and PGDATABASE instead)"
        )
    if "target" in needs and "RESTORE_URL" not in values and "RESTORE_URL" not in unreadable:
        problems.append(
            f"--to is missing: {variable_of('restore_url').expected} (or set RESTORE_URL)"
        )
    undecided = "BACKUP_ENCRYPTION_KEY" in values and "BACKUP_ENCRYPTION" not in values
    if "source" in needs and undecided:
        problems.append(
            "BACKUP_ENCRYPTION is missing, and BACKUP_ENCRYPTION_KEY is set: set "
            "BACKUP_ENCRYPTION=true to encrypt, or BACKUP_ENCRYPTION=false to store plain backups"
        )
    try:
        settings = _validated(
            {
                name: values[name.upper()]
                for name in Settings.model_fields
                if name.upper() in values
            },
            frozenset(needs),
            unheard,
        )
    except ValidationError as error:
        problems += [
            _problem(detail)
            for detail in error.errors(include_input=False)
            if str(detail["loc"][0]).upper() not in unreadable
        ]
        raise ConfigurationError(problems) from None  # its text quotes the values
    if problems:
        raise ConfigurationError(problems)
    settings._misspelt = misspelt(values, of_file)  # noqa: SLF001 - only loading knows all names
    settings._source_variables = {  # noqa: SLF001 - for a target they leave the environment
        name: values[name] for name in (*_LOCATING, "PGPORT", "PGUSER") if name in values
    }
    settings._has_source = located  # noqa: SLF001 - and what libpq reads itself
    return settings


def _validated(
    values: Mapping[str, str], needs: Collection[Need], unheard: Collection[str]
) -> Settings:
    """Check all values, and take those of ``unheard`` settings that are wrong for not given."""
    try:
        return Settings.model_validate(values, context=needs)
    except ValidationError as error:
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_input=False)}
        left = {
            name: value
            for name, value in values.items()
            if name not in wrong or name not in unheard
        }
        if len(left) == len(values):
            raise
    return _validated(left, needs, unheard)


def _quoted(environ: Mapping[str, str], unheard: Collection[str]) -> list[str]:
    """Return the variables whose value is in quotes: those of a ``.env`` file are gone by now.

    As part of a passphrase they would encrypt what nobody can read who has it without them.
    """
    return [
        name
        for name, value in environ.items()
        if (field := name.removesuffix("_FILE").lower()) in Settings.model_fields
        and field not in unheard
        and not _may_be_quoted(field)
        and re.fullmatch(r"'[^']+'|\"[^\"]+\"", value)
    ]


def _may_be_quoted(field: str) -> bool:
    """Tell whether a value may be one word in quotes: a command line, a pattern, an identifier."""
    return variable_of(field).group in ("Hooks", "Contents")


def _settle_libpq(
    environ: MutableMapping[str, str], values: Mapping[str, str], needs: Collection[Need]
) -> None:
    """Let libpq find its variables in the environment, without the source's where it must not."""
    for variable, value in values.items():
        if variable.startswith("PG") and variable != "PGPASSWORD_FILE":
            environ[variable] = value
    if "target" in needs:
        for variable in _OF_THE_SOURCE:
            environ.pop(variable, None)


def misspelt(names: Collection[str], of_file: Collection[str] = ()) -> list[str]:
    """Return warnings for variables that look like settings, and are none.

    Of those that stand in a ``.env`` file, which is ours alone, more do.
    """
    known = [name.upper() for name in Settings.model_fields]
    known += [f"{name.upper()}_FILE" for name in Settings.model_fields if is_secret(name)]
    found = []
    for name in names:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.92)
        if name in known or (close and close[0] in names):
            continue
        if not close and _is_like_ours(name, known, in_file=name in of_file):
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if not close:
                found.append(f"{name} is not a setting, and nothing hears it")
        if close:
            found.append(f"{name} is not a setting: did you mean {close[0]}?")
    return found


def _is_like_ours(name: str, known: Collection[str], *, in_file: bool) -> bool:
    """Tell whether a name begins as one of ours, or ends as one from its second word on."""
    if in_file:
        ends_so = "_" in name and any(each.endswith(f"_{name}") for each in known)
        return ends_so or bool(_OUR_NAMES_IN_FILE.match(name))
    return bool(_OUR_NAMES.match(name)) and not _OF_KUBERNETES.search(name)


def _read_dotenv(path: Path, problems: list[str]) -> dict[str, str]:
    try:
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8-sig") as file:
            # The parser does not interpolate: a "$" in a password is a "$".
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        problems.append(f"{path} cannot be read: {reason}")
        return {}
    values = {}
    for binding in bindings:
        text = binding.original.string
        blank = text[: len(text) - len(text.lstrip())]
        where = f"{path}, line {binding.original.line + blank.count(chr(10))},"
        if binding.error or (binding.key and binding.value is None):
            # Skipped, it might be the line that turns encryption on.
            problems.append(f"{where} is not NAME=value, or lacks a quote")
        elif binding.key and _is_ours(binding.key) and "\n" in text.strip():
            # A quote that is missing here may end at one of a later line, and hide what is between.
            problems.append(f"{where} begins a value of several lines, or lacks a quote")
        elif binding.key:
            values[binding.key] = binding.value or ""
    return {name: value for name, value in values.items() if value}


def _is_ours(variable: str) -> bool:
    name = variable.removesuffix("_FILE").lower()
    return name in Settings.model_fields or variable.startswith("PG")


def _read_secret_file(variable: str, values: dict[str, str], problems: list[str]) -> bool:
    """Take a secret from the file that ``…_FILE`` names; tell whether nothing went wrong."""
    pointer = f"{variable}_FILE"
    if pointer not in values:
        return True
    if variable in values:
        problems.append(f"{variable} and {pointer} are both set: set one of them")
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


def _problem(detail: Any) -> str:  # noqa: ANN401 - pydantic's error details
    name = str(detail["loc"][0])
    expected = variable_of(name).expected
    if detail["type"] == "value_error":
        return f"{name.upper()} {detail['ctx']['error']} (expected: {expected})"
    return f"{name.upper()} must be {expected}"


def secret_variables() -> set[str]:
    """Return the names of variables that hold a secret of pgstash's, or name a file that does."""
    names = [name.upper() for name in Settings.model_fields if is_secret(name)]
    return {*names, *(f"{name}_FILE" for name in names)}


def environment() -> dict[str, str]:
    """Return the process's environment, for child processes to choose from."""
    return dict(os.environ)
