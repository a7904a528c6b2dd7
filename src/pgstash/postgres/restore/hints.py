"""What to do about a statement that a target refused, by SQLSTATE and statement.

https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

import re

QUERY_CANCELED = "57014"
"""The SQLSTATE of a statement that took too long, or was canceled by a user."""

_UNDEFINED = r"42P01|42883|42704|42703"
_IN_QUERY = re.compile(r"^QUERY:  ", re.MULTILINE)
_CONTEXT = re.compile(
    r"^CONTEXT:  (.*(?:\n(?!STATEMENT:|LOCATION:|[A-Z ]+ NAME:).*)*)", re.MULTILINE
)

_SEARCH_PATH = (
    "A function depends on the search_path of its caller, which is empty in a restore. Fix the "
    "function in the source: ALTER FUNCTION … SET search_path = …; then back up again."
)
_BROKEN_CHECK = (
    "Rows of the source violate a CHECK constraint. PostgreSQL does not check them again when a "
    "function in the constraint, or a table that the function reads, changes. Fix it in the "
    "source: replace the constraint by a trigger, or correct the rows; then back up again."
)
BROKEN_CONSTRAINT = (
    "Rows of the source violate a constraint. That can happen if triggers were disabled, or if an "
    "index is damaged (REINDEX). Correct the rows in the source; then back up again."
)
"""The hint for an error that a constraint of the target raised."""

_LIBRARY = (
    "The target's server does not have the library {}, or has another version of it. Install the "
    "package with the library on the target's server, and restore again."
)
_TABLESPACE = (
    "Create the tablespace {0} on the target's server first (CREATE TABLESPACE {0} LOCATION '…'), "
    "and restore again. Or back up without tablespaces: PG_DUMP_EXTRA_ARGS=--no-tablespaces."
)

_NAME = r'("(?:[^"]|"")+"|[^\s;]+)'

# SQLSTATEs, a pattern for the statement, and the hint; {} is what the pattern found.
_HINTS = (
    (
        "0A000|58P01|42704",
        rf"EXTENSION (?:IF NOT EXISTS )?{_NAME}",
        "Install the package of the extension {} on the target's server, and restore again.",
    ),
    (
        "58P01|42883",
        r"LANGUAGE c\b.*?\sAS '((?:[^']|'')+)'",
        _LIBRARY,
    ),
    (
        "42704|22023",
        rf"(?:default_tablespace = |TABLESPACE ){_NAME}",
        _TABLESPACE,
    ),
    (
        "42704|22023",
        r"\bROLE\b|CREATE USER MAPPING|CREATE POLICY|OWNER TO|\bSET role\b",
        "Create the role first (CREATE ROLE …), and restore again.",
    ),
    ("42501", "", "Restore as the owner of the database, or as a superuser."),
    (
        "42P06|42P07|42710|42723|2BP01|42P16",
        "",
        "An object of the target is in the way. Restore into an empty database, or with --create.",
    ),
    ("23514", "", _BROKEN_CHECK),
    ("23502|23503|23505|23P01", "", BROKEN_CONSTRAINT),
    (
        "25001",
        "SUBSCRIPTION",
        "Drop the subscription in the target first, or restore with --create NAME.",
    ),
    ("53100", "", "The target's disk is full."),
    ("42704", r"\ASET ", "The script was written for a newer server than the target's."),
    (QUERY_CANCELED, "", "The statement was canceled. Restore again."),
)
_MONEY = "The amounts were written in another lc_monetary, which the target's server must have."


def hint(state: str, text: str, statement: str) -> str:
    """Return the hint for a refused statement; empty if there is none.

    ``state`` is the SQLSTATE, ``text`` the message with libpq's labels.
    """
    if re.fullmatch(_UNDEFINED, state) and _in_function(text, statement):
        return _SEARCH_PATH
    if state == "22P02" and re.search(r"\bmoney\b", text):  # the name of a type
        return _MONEY
    for states, pattern, what_to_do in _HINTS:
        found = re.search(pattern, statement, re.DOTALL)
        if re.fullmatch(states, state) and found:
            return what_to_do.format(*found.groups()) if found.groups() else what_to_do
    return ""


def _in_function(text: str, statement: str) -> bool:
    """Return whether the server was executing a function.

    Then its message quotes a query of the function, or lists what called what. The message for a
    COPY has one line of such context anyway.
    """
    if _IN_QUERY.search(text):
        return True
    context = _CONTEXT.search(text)
    own = 1 if statement.startswith("COPY ") else 0
    return context is not None and len(context[1].splitlines()) > own
