"""Values with something that is hardly meant: blanks or quotes around them, unresolved references.

``docker run --env-file`` passes on what a shell, and a reader of ``.env`` files, remove
(https://github.com/docker/cli/issues/3630). No value is changed for that: a password may end in a
blank. It is a problem if the value cannot be used so, and a warning otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from pgstash.settings.model import Settings, is_secret, variable_of

_ENDS = {
    " ": "a blank",
    "\t": "a tab",
    "\n": "a line feed (a line ending)",
    "\r": "a carriage return (a Windows line ending)",
}
# What reads these values ignores blanks around them.
_FREE = (
    "verify_sql",
    "backup_schedule",
    "tz",
    "backup_encryption_recipients",
    "backup_decryption_identity",
)
_FREE_GROUPS = ("Hooks", "Contents")
_REFERENCE = re.compile(r"\$\{\{[^{}]*\}\}")
_QUOTED = re.compile(r"'[^']+'|\"[^\"]+\"")
# Names and passwords may begin and end with a quote.
_QUOTABLE = ("PGPASSWORD", "PGUSER", "PGDATABASE", "PGOPTIONS", "PGAPPNAME")


@dataclass(frozen=True, slots=True)
class Edges:
    """What a value begins or ends with; ``inner`` is the rest. ``inner`` may be secret."""

    variable: str
    description: str
    inner: str
    kept: bool
    """Whether it is a part of the value, and not ignored."""
    hopeless: bool
    """Whether the value cannot be meant so, although nothing else may be wrong with it."""
    usual: bool
    """Whether a longer text ends so, for example a block of YAML, and nothing is lost by it."""

    def problem(self, label: str) -> str:
        """Return the problem in a full sentence; ``label`` is how the user set the variable."""
        return f"{label} {self.description}. Remove it."

    @property
    def warning(self) -> str:
        """The same as a warning, without its remedy."""
        return f"{self.variable} {self.description}."


def edges(values: Mapping[str, str]) -> Iterator[Edges]:
    """Yield the values that begin or end with white space."""
    for variable, value in values.items():
        inner = value.strip()
        if inner == value:
            continue
        first = value[: len(value) - len(value.lstrip())]
        last = value[len(value.rstrip()) :]
        ends = re.search(r"[\r\n\t]", first + last) is not None
        if inner:
            parts = (("begins with", first), ("ends in", last))
            description = " and ".join(f"{verb} {_named(each)}" for verb, each in parts if each)
        else:
            description = f"contains nothing but {_named(value)}"
        kept = _is_kept(variable)
        usual = not kept and "\n" in last and "\r" not in last and not first
        yield Edges(variable, description, inner, kept, ends and kept, usual)


def _named(blanks: str) -> str:
    # Of "\r\n", the first one is the cause; a blank matters only if there is nothing else.
    worst = next((each for each in "\r\n\t" if each in blanks), blanks[0])
    return _ENDS.get(worst, "white space")


def _is_kept(variable: str) -> bool:
    """Return whether white space around a value is a part of it, and not ignored."""
    field = variable.lower()
    if field not in Settings.model_fields:
        return True  # a variable of libpq, or the name of a file
    if field in _FREE or variable_of(field).group in _FREE_GROUPS:
        return False
    return is_secret(field) or "str" in repr(Settings.model_fields[field].annotation)


def quoted(values: Mapping[str, str]) -> Iterator[str]:
    """Yield the variables whose value is in quotes, which cannot be meant.

    As part of a passphrase, quotes would make backups that the passphrase without them cannot open.
    """
    for name, value in values.items():
        if _QUOTED.fullmatch(value) and not _may_be_quoted(name):
            yield name


def quoted_problem(label: str) -> str:
    """Return the problem of a value in quotes; ``label`` is how the user set the variable."""
    return (
        f"{label} is wrapped in quotes, which would become part of the value. Remove them "
        "(docker --env-file does not strip quotes)."
    )


def quoted_warnings(values: Mapping[str, str]) -> Iterator[str]:
    """Yield warnings, without their remedy, about quotes that may be meant, but hardly are."""
    for name, value in values.items():
        if not (_QUOTED.fullmatch(value) and _may_be_quoted(name)):
            continue
        # Of one table or schema, "Order" is an identifier; "public.log_*" or 'users' hardly is.
        is_list = name.startswith(("EXCLUDE_", "REQUIRE_"))
        if name in _QUOTABLE or (is_list and (value[0] == "'" or re.search(r"[.*?,]", value))):
            yield f"{name} is wrapped in quotes, which are part of the value."


def contains_reference(value: str) -> bool:
    """Return whether a value contains a reference of a platform, as ``${{Postgres.PGHOST}}``.

    https://docs.railway.com/variables/reference
    """
    return _REFERENCE.search(value) is not None


def reference_warnings(values: Mapping[str, str]) -> Iterator[str]:
    """Yield warnings, without their remedy, about references that the platform did not replace."""
    for name, value in values.items():
        if contains_reference(value) and _is_kept(name):
            yield f"{name} contains ${{{{…}}}}, a reference that was not replaced."


def _may_be_quoted(variable: str) -> bool:
    """Return whether a value may be one quoted word: a command line, a pattern, an identifier."""
    if variable in _QUOTABLE:
        return True
    field = variable.removesuffix("_FILE").lower()
    return field in Settings.model_fields and variable_of(field).group in _FREE_GROUPS


def examined(
    values: Mapping[str, str], unused: Collection[str], libpq: Collection[str]
) -> dict[str, str]:
    """Return the values that a command uses: of settings, of files with them, and of libpq."""
    return {
        name: value
        for name, value in values.items()
        if name in libpq
        or (
            (field := name.removesuffix("_FILE").lower()) in Settings.model_fields
            and field not in unused
        )
    }
