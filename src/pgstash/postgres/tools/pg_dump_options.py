"""Options that a user gives to pg_dump: patterns of what to exclude, and other allowed options.

https://www.postgresql.org/docs/current/app-pgdump.html, for the majors 14 to 18. An option is
refused unless the dump stays complete and plain with it, as pgstash needs it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_ROLE = "--role="
_NOT_OF_ROWS_ALONE = ("--disable-triggers", "--superuser=", "--verbose", "-v")

_ITEM = re.compile(r'(?:[^",]|"[^"]*")+')

_FORMAT = "an archive is plain SQL on one stream"
_CONNECTION = "DATABASE_URL sets where and how to connect"
_PARTIAL = "half of a database is no backup"
_COPY = "rows are counted in COPY blocks"
_JOBS = "one stream has no parallel jobs"

# With these a dump still contains every object and every row.
_COMPLETE = frozenset(
    {
        "blobs",
        "clean",
        "disable-dollar-quoting",
        "disable-triggers",
        "if-exists",
        "large-objects",
        "load-via-partition-root",
        "no-acl",
        "no-owner",
        "no-privileges",
        "no-statistics",
        "no-sync",
        "no-table-access-method",
        "no-tablespaces",
        "no-toast-compression",
        "quote-all-identifiers",
        "sequence-data",
        "serializable-deferrable",
        "statistics",
        "strict-names",
        "use-set-session-authorization",
        "verbose",
    }
)

_ALLOWED = _COMPLETE | {
    "no-blobs",
    "no-comments",
    "no-large-objects",
    "no-policies",
    "no-publications",
    "no-security-labels",
    "no-subscriptions",
    "no-unlogged-table-data",
}

_COMPLETE_WITH_VALUE = frozenset({"role", "superuser"})

_ALLOWED_WITH_VALUE = _COMPLETE_WITH_VALUE | {
    "exclude-extension",
    "exclude-schema",
    "exclude-table",
    "exclude-table-and-children",
    "exclude-table-data",
    "exclude-table-data-and-children",
    "extension",
    "schema",
    "table",
    "table-and-children",
}

_REFUSED = {
    "binary-upgrade": "it is only for pg_upgrade",
    "create": "a backup restores into a database of any name",
    "encoding": "a dump is in the database's own encoding",
    "enable-row-security": "rows would be left out silently",
    "extra-float-digits": "numbers could lose digits",
    "filter": "write its patterns here, where the manifest records them",
    "help": "it makes no dump",
    "include-foreign-data": "a restore, and each drill, would write those rows to the other server",
    "lock-wait-timeout": "LOCK_TIMEOUT sets it",
    "restrict-key": "a known key does not protect",
    "snapshot": "a dump takes its own",
    "sync-method": "nothing is written to disk",
    "version": "it makes no dump",
    **dict.fromkeys(("compress", "file", "format"), _FORMAT),
    **dict.fromkeys(("jobs", "no-synchronized-snapshots"), _JOBS),
    **dict.fromkeys(("dbname", "host", "no-password", "password", "port", "username"), _CONNECTION),
    **dict.fromkeys(
        ("column-inserts", "inserts", "on-conflict-do-nothing", "rows-per-insert"), _COPY
    ),
    **dict.fromkeys(
        ("data-only", "no-data", "no-schema", "schema-only", "section", "statistics-only"), _PARTIAL
    ),
}

_SHORT = {
    "a": "data-only",
    "b": "large-objects",
    "B": "no-large-objects",
    "c": "clean",
    "C": "create",
    "d": "dbname",
    "e": "extension",
    "E": "encoding",
    "f": "file",
    "F": "format",
    "h": "host",
    "j": "jobs",
    "n": "schema",
    "N": "exclude-schema",
    "O": "no-owner",
    "p": "port",
    "s": "schema-only",
    "S": "superuser",
    "t": "table",
    "T": "exclude-table",
    "U": "username",
    "v": "verbose",
    "V": "version",
    "w": "no-password",
    "W": "password",
    "x": "no-privileges",
    "Z": "compress",
    "?": "help",
}
_REFUSED_WITH_VALUE = frozenset("dEfFhjpUZ") | {
    "compress",
    "dbname",
    "encoding",
    "extra-float-digits",
    "file",
    "filter",
    "format",
    "host",
    "include-foreign-data",
    "jobs",
    "lock-wait-timeout",
    "port",
    "restrict-key",
    "rows-per-insert",
    "section",
    "snapshot",
    "sync-method",
    "username",
}


def split_list(text: str) -> list[str]:
    """Split at commas, except within double quotes. Raises ValueError."""
    if text.count('"') % 2:
        raise ValueError("lacks a closing double quote")
    items = [item.strip() for item in _ITEM.findall(text)]
    items = [item for item in items if item]
    if not items:
        raise ValueError("names nothing")
    return items


def excluding(tables: str = "", table_data: str = "", schemas: str = "") -> list[str]:
    """Return the options that exclude what these lists of patterns match."""
    lists = {"exclude-table": tables, "exclude-table-data": table_data, "exclude-schema": schemas}
    return [
        f"--{option}={pattern}"
        for option, text in lists.items()
        if text
        for pattern in split_list(text)
    ]


def allowed(text: str) -> list[str]:
    """Split options as a POSIX shell does, and return each as one word with its value.

    Raises ValueError, which names every option that is not allowed, and the reason.
    """
    try:
        words = shlex.split(text)
    except ValueError:
        raise ValueError("lacks a closing quote, or ends with a backslash") from None
    reader = _Reader(iter(words))
    options = list(reader.read())
    if reader.problems:
        raise ValueError("cannot be used: " + "; ".join(dict.fromkeys(reader.problems)))
    return options


def role(options: Sequence[str]) -> str | None:
    """Return the role that pg_dump sets with these options: the last that they name."""
    named = [each.removeprefix(_ROLE) for each in options if each.startswith(_ROLE)]
    return named[-1] if named else None


def of_rows_alone(options: Sequence[str]) -> list[str]:
    """Return the options for a pg_dump that writes only the rows of a whole dump.

    They lack options that pg_dump ignores in a whole dump, but obeys in a dump of the rows alone.
    """
    return [each for each in options if not each.startswith(_NOT_OF_ROWS_ALONE)]


def leaving_out(options: Iterable[str]) -> list[str]:
    """Return the options with which a dump may lack objects or rows."""
    return [each for each in options if _name(each) not in _COMPLETE | _COMPLETE_WITH_VALUE]


def _name(option: str) -> str:
    if option.startswith("--"):
        return option[2:].partition("=")[0]
    return _SHORT.get(option[1:], option)


@dataclass
class _Reader:
    """Reads options as getopt_long(3) does, but refuses abbreviated names."""

    words: Iterator[str]

    def __post_init__(self) -> None:
        self.problems: list[str] = []

    def read(self) -> Iterator[str]:
        for word in self.words:
            if word.startswith("--") and word != "--":
                yield from self._long(word)
            elif word.startswith("-") and word not in ("-", "--"):
                yield from self._cluster(word)
            else:
                self.problems.append(f"{word or 'an empty word'} (not an option)")

    def _long(self, word: str) -> Iterator[str]:
        name, has_value, value = word[2:].partition("=")
        if self._is_refused(f"--{name}", name):
            if name in _REFUSED_WITH_VALUE and not has_value:
                next(self.words, None)
        elif name in _ALLOWED_WITH_VALUE:
            given = value if has_value else next(self.words, "")
            if given:
                yield f"--{name}={given}"
            else:
                self.problems.append(f"--{name} (it needs a value)")
        elif has_value:
            self.problems.append(f"--{name} (it takes no value)")
        else:
            yield f"--{name}"

    def _cluster(self, word: str) -> Iterator[str]:
        """Read one-letter options in one word; the first that takes a value ends it."""
        for position, letter in enumerate(word[1:], 2):
            rest = word[position:]
            name = _SHORT.get(letter, "")
            if self._is_refused(f"-{letter}", name):
                if letter in _REFUSED_WITH_VALUE:
                    if not rest:
                        next(self.words, None)
                    return
            elif name in _ALLOWED_WITH_VALUE:
                given = rest or next(self.words, "")
                if given:
                    yield f"--{name}={given}"
                else:
                    self.problems.append(f"-{letter} (it needs a value)")
                return
            else:
                yield f"-{letter}"

    def _is_refused(self, shown: str, name: str) -> bool:
        if name in _ALLOWED or name in _ALLOWED_WITH_VALUE:
            return False
        reason = _REFUSED.get(
            name, "not an option that pgstash knows; abbreviations are not allowed"
        )
        self.problems.append(f"{shown} ({reason})")
        return True
