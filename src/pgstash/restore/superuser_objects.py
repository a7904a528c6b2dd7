"""The objects of a backup that the restoring role may not create, and what depends on them.

The statements are those of the backup's own table of contents.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from pgstash.postgres.restore.rights import Rights
from pgstash.postgres.server.quoting import qualified
from pgstash.postgres.tools import toc
from pgstash.postgres.tools.toc import Contents, Entry
from pgstash.restore import superuser_kinds

_EXTENSION = b"EXTENSION"
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

# A definition that contains no command of psql: a backslash is in quotes, and is doubled in those
# of an E'…', and no quote is in a comment. pg_dump writes no comments into definitions, and quotes
# names that contain a $.
_PLAIN = re.compile(
    rb"""(?:'(?:[^']|'')*+'|"(?:[^"]|"")*+"|[A-Za-z0-9_\x80-\xff]++(?!\$|(?<=[Ee])')"""
    rb"""|(?<![A-Za-z0-9_\x80-\xff])[Ee]'(?:[^'\\]|''|\\\\)*+'"""
    rb"""|\$((?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?)\$.*?\$\1\$|\$[0-9]++(?![\w$\x80-\xff])"""
    rb"""|-(?!-)|/(?!\*)|[^A-Za-z0-9_\x80-\xff'"$\\/-])*+""",
    re.DOTALL,
)
_BREAKS = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(slots=True)
class Verdict:
    """What a role may not create: entries of the table of contents, in its order.

    ``reasons`` has a line for each. ``left_out`` are these, what depends on them and can be left
    out too, and comments that are there already: these are ``needless``. ``in_the_way`` names what
    depends on them and cannot be left out. ``closed`` are tables of extensions, quoted, that have
    rows in the backup, and that the role may not load any into.
    """

    left_out: list[Entry] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    in_the_way: list[str] = field(default_factory=list)
    needless: set[int] = field(default_factory=set)
    closed: list[str] = field(default_factory=list)


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


def judge(
    contents: Contents,
    entries: Iterable[Entry],
    rights: Rights,
    filled: Collection[tuple[bytes, bytes]],
) -> Verdict:
    """Find what the role may not create, of some entries of a table of contents.

    ``filled`` are schema and name of the tables that have rows in the backup.
    """
    verdict = Verdict()
    extensions = {
        each.number: each.tag for each in contents.entries if each.description == _EXTENSION
    }
    known = {each.number for each in contents.entries}
    types = {each.number for each in contents.entries if each.description in superuser_kinds.TYPES}
    without: set[int] = set()
    servers: set[bytes] = set()
    for entry in entries:
        definition = toc.definition(contents, entry)
        of = [extensions[each] for each in entry.depends_on if each in extensions]
        reason = superuser_kinds.reason(entry, definition, rights, types)
        if reason:
            pass
        elif entry.depends_on & without or superuser_kinds.server_of(definition) in servers:
            if entry.description in _UNSEEN:
                verdict.left_out.append(entry)
                continue
            if entry.description not in _FOLLOWS:
                verdict.in_the_way.append(label(entry))
                continue
            reason = _DEPENDS
        elif entry.description == b"TABLE DATA" and not entry.depends_on <= known:
            # The table is in no dump, because it belongs to an extension: pg_dump records no more.
            is_left_out = bool(without & extensions.keys())
            _judge_rows(verdict, entry, rights, filled, is_left_out=is_left_out)
        elif of and definition.startswith(b"COMMENT ON EXTENSION "):
            reason = _of_comment(verdict, entry, definition, of, rights)
        if reason:
            without.add(entry.number)
            servers.update({entry.tag} if entry.description == b"SERVER" else ())
            verdict.left_out.append(entry)
            verdict.reasons.append(f"{label(entry)}: {reason}")
    return verdict


def _judge_rows(
    verdict: Verdict,
    entry: Entry,
    rights: Rights,
    filled: Collection[tuple[bytes, bytes]],
    *,
    is_left_out: bool,
) -> None:
    """Judge rows of a table of an extension; ``is_left_out`` if any extension is left out."""
    table = (entry.schema, entry.tag)
    if is_left_out and not rights.table_of_extension(entry.tag):
        verdict.in_the_way.append(label(entry))
    if table in filled and not rights.may_fill(*table):
        verdict.closed.append(superuser_kinds.shown(qualified(*table)))


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
