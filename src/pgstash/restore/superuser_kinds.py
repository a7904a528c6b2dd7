"""Why the restoring role may not create an object, by the kind of the object.

Which kinds need a superuser is in the pages of the CREATE commands of PostgreSQL's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet

from pgstash.postgres.restore.rights import Rights
from pgstash.postgres.tools.toc import Entry

_SUPERUSER = "only a superuser may create it"
_CASTS = b"CAST"
TYPES = frozenset([b"DOMAIN", b"FOREIGN TABLE", b"TABLE", b"TYPE", b"VIEW"])
_OF_SUPERUSERS = frozenset(
    [
        b"ACCESS METHOD",
        b"OPERATOR CLASS",
        b"OPERATOR FAMILY",
        b"PROCEDURAL LANGUAGE",
        b"SHELL TYPE",
        b"TEXT SEARCH PARSER",
        b"TEXT SEARCH TEMPLATE",
    ]
)

# Quoted text in a statement: a function's body, defaults, options. A quote in a name begins none.
_QUOTED = re.compile(
    rb"""("(?:[^"]|"")*+")|'(?:[^']|'')*+'|\$([A-Za-z_\x80-\xff]*)\$.*?\$\2\$""", re.DOTALL
)
_NAME = rb'("(?:[^"]|"")++"|[^\s;"]++)'
_LANGUAGE = re.compile(rb"\n    (?:TRANSFORM .*\n    )?LANGUAGE " + _NAME + rb"([^\n]*)")
_WRAPPER_OF_SERVER = re.compile(rb" FOREIGN DATA WRAPPER " + _NAME)
_USER_MAPPING = re.compile(rb"CREATE USER MAPPING FOR (?:" + _NAME + rb") SERVER " + _NAME)
_CAST = re.compile(rb"CREATE CAST \((.+) AS (.+)\) WITH", re.DOTALL)
_BREAKS = re.compile(r"[\x00-\x1f\x7f]+")


def reason(entry: Entry, definition: bytes, rights: Rights, types: AbstractSet[int]) -> str:
    """Return why the role may not create an object; empty if it may.

    ``types`` are the numbers of the entries that create types.
    """
    if entry.description in _OF_SUPERUSERS:
        return _SUPERUSER
    judge_one = _JUDGES.get(entry.description)
    if judge_one is None and entry.description != _CASTS:
        return ""
    bare = _QUOTED.sub(lambda found: found[1] or b"''", definition)
    if judge_one is None:
        return _of_cast(bare, rights, of_own=bool(entry.depends_on & types))
    return judge_one(entry, bare, rights)


def _of_extension(entry: Entry, _bare: bytes, rights: Rights) -> str:
    return rights.extension(entry.tag)


def _of_event_trigger(_entry: Entry, _bare: bytes, rights: Rights) -> str:
    return "" if rights.event_triggers() else _SUPERUSER


def _of_publication(entry: Entry, bare: bytes, rights: Rights) -> str:
    of_all = b" FOR ALL " in bare or entry.description != b"PUBLICATION"
    return "" if not of_all or rights.publications_of_all() else _SUPERUSER


def _of_subscription(_entry: Entry, _bare: bytes, rights: Rights) -> str:
    return "" if rights.subscriptions() else "the role may not create subscriptions"


def _of_wrapper(_entry: Entry, _bare: bytes, rights: Rights) -> str:
    return "" if rights.wrappers() else _SUPERUSER


def _of_server(_entry: Entry, bare: bytes, rights: Rights) -> str:
    found = _WRAPPER_OF_SERVER.search(bare)
    if found and not rights.wrapper(_plain(found[1])):
        return f"the role lacks USAGE on its foreign data wrapper {shown(found[1])}"
    return ""


def _of_type(_entry: Entry, bare: bytes, _rights: Rights) -> str:
    is_base = bare.partition(b"(")[2].lstrip().startswith((b"INTERNALLENGTH", b"INPUT"))
    return _SUPERUSER if is_base else ""


def _of_function(_entry: Entry, bare: bytes, rights: Rights) -> str:
    found = _LANGUAGE.search(bare)
    if found is None:
        return ""
    if not rights.language(_plain(found[1])):
        return f"the role may not use its language {shown(found[1])}"
    if b"LEAKPROOF" in found[2].split():
        return "only a superuser may create a function that is LEAKPROOF"
    return ""


def _of_cast(bare: bytes, rights: Rights, *, of_own: bool) -> str:
    """Return why the role may not create a cast; ``of_own`` types of the backup it may."""
    if b") WITHOUT FUNCTION" in bare:
        return "only a superuser may create a cast without a function"
    found = _CAST.match(bare)
    if found and not (of_own or rights.type(found[1]) or rights.type(found[2])):
        return "both of its types belong to other roles"
    return ""


_JUDGES: Mapping[bytes, Callable[[Entry, bytes, Rights], str]] = {
    b"EXTENSION": _of_extension,
    b"EVENT TRIGGER": _of_event_trigger,
    b"PUBLICATION": _of_publication,
    b"PUBLICATION TABLES IN SCHEMA": _of_publication,
    b"SUBSCRIPTION": _of_subscription,
    b"FOREIGN DATA WRAPPER": _of_wrapper,
    b"SERVER": _of_server,
    b"FUNCTION": _of_function,
    b"PROCEDURE": _of_function,
    b"TYPE": _of_type,
}


def server_of(definition: bytes) -> bytes | None:
    """Return the server of a user mapping, which pg_dump does not list as a dependency."""
    found = _USER_MAPPING.match(definition)
    return _plain(found[2]) if found else None


def _plain(name: bytes) -> bytes:
    """Return a name without its quotes."""
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name


def shown(name: bytes) -> str:
    """Return a name for people, on one line."""
    return _BREAKS.sub(" ", name.decode("utf-8", "backslashreplace"))
