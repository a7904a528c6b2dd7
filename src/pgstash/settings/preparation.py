"""What is done to values before they are checked: odd ones are judged, files of secrets read."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from pathlib import Path

from pgstash.postgres.server import conninfo
from pgstash.settings import odd_values
from pgstash.settings.model import Need, Settings, is_secret
from pgstash.settings.validation import Values

LOCATING = ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE")
"""Variables that libpq reads itself. One of these is enough to locate a source."""

OF_THE_SOURCE = (*LOCATING, "PGPORT", "PGUSER", "PGPASSWORD", "PGOPTIONS", "PGTARGETSESSIONATTRS")
"""Those with the address and the login of the source."""

_LONGEST_SECRET_FILE = 64 * 1024


def judge_odd_values(
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
        return conninfo.VARIABLES - {*OF_THE_SOURCE}
    return conninfo.VARIABLES | {"PGPASSWORD_FILE"} if "source" in needs else frozenset()


def read_secret_files(sources: Values, edges: list[odd_values.Edges]) -> set[str]:
    """Read the secrets that are in files; return those that cannot be read.

    What begins or ends with white space is added to ``edges``.
    """
    unreadable = set()
    for variable in (*_secret_variables(), "PGPASSWORD"):
        ignored = variable.lower() in sources.unused or (
            variable == "PGPASSWORD" and bool(sources.unused)
        )
        in_file = variable not in sources.values
        if not read_secret_file(variable, sources.values, [] if ignored else sources.problems):
            unreadable.add(variable)
        elif in_file and variable in sources.values and not ignored:
            edges += odd_values.edges({variable: sources.values[variable]})
    return unreadable


@functools.cache  # it is used for each section of a configuration file
def _secret_variables() -> list[str]:
    return [name.upper() for name in Settings.model_fields if is_secret(name)]


def read_secret_file(variable: str, values: dict[str, str], problems: list[str]) -> bool:
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
