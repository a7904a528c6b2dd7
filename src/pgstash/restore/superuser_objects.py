"""The objects of a backup that the restoring role may not create, and what depends on them.

The statements are those of the backup's own table of contents. Which kinds of objects need a
superuser is in the pages of the CREATE commands of PostgreSQL's documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pgstash.postgres.restore.rights import Rights
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.toc import Contents, Entry

_EXTENSION = b"EXTENSION"
_SUPERUSER = "only a superuser may create it"
_DEPENDS = "it depends on another one of these"
_OF_OTHER_ROLE = "the extension belongs to another role"

# Without rows and without other users: they can be left out if what they depend on is.
_FOLLOWS = frozenset(
    [
        b"EVENT TRIGGER",
        _EXTENSION,
        b"FOREIGN TABLE",
        b"PUBLICATION TABLE",
        b"PUBLICATION TABLES IN SCHEMA",
        b"SERVER",
        b"SUBSCRIPTION TABLE",
        b"USER MAPPING",
    ]
)
# What nobody would miss by itself. A restore gives privileges apart from the objects.
PRIVILEGES = frozenset([b"ACL", b"DEFAULT ACL"])
_UNSEEN = PRIVILEGES | {b"COMMENT", b"SECURITY LABEL"}

_CASTS = b"CAST"
_TYPES = frozenset([b"DOMAIN", b"FOREIGN TABLE", b"TABLE", b"TYPE", b"VIEW"])
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

# Quoted text in a statement: a function's body, defaults, options.
_TEXT = re.compile(rb"'(?:[^']|'')*+'|\$([A-Za-z_\x80-\xff]*)\$.*?\$\1\$", re.DOTALL)
# A definition that contains no command of psql: a backslash is in quotes, and no quote is in a
# comment. pg_dump writes no comments into definitions, and quotes names that contain a $.
_PLAIN = re.compile(
    rb"""(?:'(?:[^']|'')*+'|"(?:[^"]|"")*+"|[A-Za-z0-9_\x80-\xff]++(?!\$)"""
    rb"""|\$((?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?)\$.*?\$\1\$|\$[0-9]++(?![\w$\x80-\xff])"""
    rb"""|-(?!-)|/(?!\*)|[^A-Za-z0-9_\x80-\xff'"$\\/-])*+""",
    re.DOTALL,
)
_NAME = rb'("(?:[^"]|"")++"|[^\s;"]++)'
_LANGUAGE = re.compile(rb"\n    (?:TRANSFORM .*\n    )?LANGUAGE " + _NAME + rb"([^\n]*)")
_WRAPPER_OF_SERVER = re.compile(rb" FOREIGN DATA WRAPPER " + _NAME)
_USER_MAPPING = re.compile(rb"CREATE USER MAPPING FOR (?:" + _NAME + rb") SERVER " + _NAME)
_CAST = re.compile(rb"CREATE CAST \((.+) AS (.+)\) WITH", re.DOTALL)
_BREAKS = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(slots=True)
class Verdict:
    """What a role may not create: entries of the table of contents, in its order.

    ``reasons`` has a line for each. ``left_out`` are these, what depends on them and can be left
    out too, and comments that are there already: these are ``needless``. ``in_the_way`` names what
    depends on them and cannot be left out.
    """

    left_out: list[Entry] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    in_the_way: list[str] = field(default_factory=list)
    needless: set[int] = field(default_factory=set)


def restored(contents: Contents, after: Collection[int] | None) -> Iterator[Entry]:
    """Yield the entries that a restore creates, in their order.

    ``after`` are the numbers of those that it creates after the rows, None if it creates all.
    """
    section = toc.Section.NONE
    for entry in contents.entries:
        # pg_restore puts comments and the like into the section of the entry before them.
        if entry.section != toc.Section.NONE:
            section = toc.Section(entry.section)
        if after is None or section != toc.Section.POST_DATA or entry.number in after:
            yield entry


def judge(contents: Contents, entries: Iterable[Entry], rights: Rights) -> Verdict:
    """Find what the role may not create, of some entries of a table of contents."""
    verdict = Verdict()
    extensions = {
        each.number: each.tag for each in contents.entries if each.description == _EXTENSION
    }
    known = {each.number for each in contents.entries}
    types = {each.number for each in contents.entries if each.description in _TYPES}
    without: set[int] = set()
    servers: set[bytes] = set()
    for entry in entries:
        definition = toc.definition(contents, entry)
        of = [extensions[each] for each in entry.depends_on if each in extensions]
        reason = _reason(entry, definition, rights, types)
        if reason:
            pass
        elif entry.depends_on & without or _server_of(definition) in servers:
            if entry.description in _UNSEEN:
                verdict.left_out.append(entry)
                continue
            if entry.description not in _FOLLOWS:
                verdict.in_the_way.append(label(entry))
                continue
            reason = _DEPENDS
        elif entry.description == b"TABLE DATA" and not entry.depends_on <= known:
            # The table is in no dump, because it belongs to an extension: pg_dump records no more.
            if without & extensions.keys() and not rights.table_of_extension(entry.tag):
                verdict.in_the_way.append(label(entry))
        elif of and definition.startswith(b"COMMENT ON EXTENSION "):
            reason = _of_comment(verdict, entry, definition, of, rights)
        if reason:
            without.add(entry.number)
            servers.update({entry.tag} if entry.description == b"SERVER" else ())
            verdict.left_out.append(entry)
            verdict.reasons.append(f"{label(entry)}: {reason}")
    return verdict


def label(entry: Entry) -> str:
    """Name an entry for people, on one line."""
    tag = entry.tag if not entry.schema else entry.schema + b"." + entry.tag
    kind = entry.description.decode("ascii", "replace").lower()
    if entry.description == b"COMMENT":
        kind = "comment on"
    if entry.description == b"TABLE DATA":
        kind = "rows of"
    tag = tag.removeprefix(entry.description + b" ")
    return _BREAKS.sub(" ", f"{kind} {tag.decode('utf-8', 'backslashreplace')}")


def headings(entries: Iterable[Entry]) -> frozenset[bytes]:
    """Return the beginnings of the comments that pg_restore writes before these entries."""
    return frozenset(
        b"-- Name: %b; Type: %b; Schema: %b;"
        % (
            re.sub(rb"[\n\r]", b" ", each.tag),
            each.description,
            re.sub(rb"[\n\r]", b" ", each.schema) or b"-",
        )
        for each in entries
    )


def session(contents: Contents) -> Sequence[bytes]:
    """Return the statements that set up a session for those of the entries."""
    found = [
        toc.definition(contents, each).strip()
        for each in contents.entries
        if each.description in {b"ENCODING", b"STDSTRINGS", b"SEARCHPATH"}
    ]
    return [*found, b"SET check_function_bodies = false;"]


def _server_of(definition: bytes) -> bytes | None:
    """Return the server of a user mapping, which pg_dump does not list as a dependency."""
    found = _USER_MAPPING.match(definition)
    return _plain(found[2]) if found else None


def is_plain(definition: bytes) -> bool:
    """Return whether psql runs the statements of a definition, and nothing else."""
    return _PLAIN.fullmatch(definition) is not None


def _of_comment(
    verdict: Verdict, entry: Entry, definition: bytes, of: Sequence[bytes], rights: Rights
) -> str:
    """Return why the role may not set a comment of an extension that it would have to set."""
    if all(rights.may_comment_on(name) for name in of):
        return ""
    if any(rights.has_comment(name, definition) for name in of):
        verdict.left_out.append(entry)
        verdict.needless.add(entry.number)
        return ""
    return _OF_OTHER_ROLE


def _reason(entry: Entry, definition: bytes, rights: Rights, types: AbstractSet[int]) -> str:
    """Return why the role may not create an object; empty if it may.

    ``types`` are the numbers of the entries that create types.
    """
    if entry.description in _OF_SUPERUSERS:
        return _SUPERUSER
    judge_one = _JUDGES.get(entry.description)
    if judge_one is None and entry.description != _CASTS:
        return ""
    bare = _TEXT.sub(b"''", definition)
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
        return f"the role lacks USAGE on its foreign data wrapper {_text(found[1])}"
    return ""


def _of_type(_entry: Entry, bare: bytes, _rights: Rights) -> str:
    is_base = bare.partition(b"(")[2].lstrip().startswith((b"INTERNALLENGTH", b"INPUT"))
    return _SUPERUSER if is_base else ""


def _of_function(_entry: Entry, bare: bytes, rights: Rights) -> str:
    found = _LANGUAGE.search(bare)
    if found is None:
        return ""
    if not rights.language(_plain(found[1])):
        return f"the role may not use its language {_text(found[1])}"
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


def _plain(name: bytes) -> bytes:
    """Return a name without its quotes."""
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name


def _text(name: bytes) -> str:
    return _BREAKS.sub(" ", name.decode("utf-8", "backslashreplace"))
