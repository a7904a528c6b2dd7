"""The source of a backup: the name of its database and the identity of its server.

PostgreSQL gives a cluster a system identifier when initdb creates it. Standbys have the identifier
of their primary, so a failover does not change it; a new cluster has a new one. If a server does
not disclose it, host and port take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Literal, Self

from pgstash.format.iso_time import iso, moment_of

Relation = Literal["same", "other", "unknown"]

SINCE = "source-since"
"""Metadata key: the time of the source's first backup with this key."""

OTHERS = "other-sources"
"""Metadata key: digests of the other sources that were reported up to this backup."""

_DIGITS = 8
_MOST_OTHERS = 28  # as many as fit into one metadata header
_NONE = "none"  # not every store keeps empty values


@dataclass(frozen=True, slots=True)
class Identity:
    """A source. None is unknown: earlier backups recorded less, or nothing."""

    database: str | None = None
    system: str | None = None
    host: str | None = None
    port: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """Read it from the decoded metadata of an object."""
        return cls(
            database=metadata.get("database") or None,
            system=metadata.get("system") or None,
            host=metadata.get("host") or None,
            port=metadata.get("port") or None,
        )

    def metadata(self) -> dict[str, str]:
        """Return the metadata that :meth:`of` reads, not encoded."""
        values = {
            "database": self.database,
            "system": self.system,
            "host": self.host,
            "port": self.port,
        }
        return {key: value for key, value in values.items() if value}

    @property
    def label(self) -> str:
        """The source in messages and in the option ``--source``: ``shop@7301234567890123456``."""
        if self.database is None:
            return "unnamed"
        if self == UNREADABLE:
            return "unreadable"
        address = ":".join(part for part in (self.host, self.port) if part)
        return f"{self.database}@{self.system or address or '?'}"

    @property
    def digest(self) -> str:
        """A short name, the same for the same source."""
        return sha256(self.label.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]

    def relation(self, other: Identity) -> Relation:
        """Return whether another identity is the same source, as far as both are known."""
        if self.database is None or other.database is None:
            return "unknown"
        if self.database != other.database:
            return "other"
        if self.system and other.system:
            return "same" if self.system == other.system else "other"
        if _differ(self.host, other.host) or _differ(self.port, other.port):
            return "other"
        # If neither server discloses its identifier, only the address remains.
        neither = not self.system and not other.system
        return "same" if neither and self.host and other.host else "unknown"


def _differ(one: str | None, other: str | None) -> bool:
    return bool(one and other and one.casefold() != other.casefold())


UNREADABLE = Identity("\0")
"""The source of a backup whose metadata cannot be read: no database has such a name."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The source of a backup as its metadata records it.

    ``started`` is the start of the backup, in UTC. ``id`` is that of the backup and its companions;
    None in a copy that lost it. ``since`` is the time of the source's first backup that names its
    server. ``reported`` are the digests of the other sources that were reported by then. Both are
    None in earlier backups.
    """

    identity: Identity
    started: datetime
    since: datetime | None = None
    reported: frozenset[str] | None = None
    id: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str], started: datetime) -> Self:
        """Read it from the decoded metadata of an archive."""
        reported = metadata.get(OTHERS)
        return cls(
            identity=Identity.of(metadata),
            started=started,
            since=_moment(metadata.get(SINCE, "")),
            reported=None if reported is None else frozenset(reported.split()) - {_NONE},
            id=metadata.get("id") or None,
        )


def _moment(text: str) -> datetime | None:
    try:
        return moment_of(text)
    except ValueError:
        return None


class Claim:
    """Decides which backups under a prefix belong to the given sources, by all their metadata.

    A backup that does not name its server belongs to them only if it is older than their first one
    that does, and if it cannot belong to another source under the prefix. A backup with a system
    identifier never belongs to a source without one.
    """

    def __init__(self, sources: Sequence[Identity], origins: Sequence[Origin]) -> None:
        """Compare the ``sources``, at all their addresses, with all stored backups.

        A source without a database name claims only backups with exactly the same identity.
        """
        self._named = frozenset(sources)
        self._sources = {
            each for source in sources if source.database for each in addresses(source, origins)
        }
        self.since = min(
            (
                each.since
                for each in origins
                if each.since and self._relation(each.identity) == "same"
            ),
            default=None,
        )
        self._foreign = {each.identity for each in origins if self._is_foreign(each)}

    def covers(self, origin: Origin) -> bool:
        """Return whether a backup belongs to these sources."""
        if self._is_foreign(origin):
            return False
        return self._relation(origin.identity) == "same" or all(
            foreign.relation(origin.identity) == "other" for foreign in self._foreign
        )

    def covers_failure(self, identity: Identity) -> bool:
        """Return whether the record of a failed run belongs to these sources.

        It often cannot name its server, which may not have answered. Then it is theirs if it cannot
        belong to another source that has backups under the prefix.
        """
        relation = self._relation(identity)
        return relation == "same" or (
            relation == "unknown"
            and all(foreign.relation(identity) == "other" for foreign in self._foreign)
        )

    def doubts(self, origin: Origin) -> bool:
        """Return whether a backup does not count as theirs but may be theirs."""
        return self._relation(origin.identity) == "unknown" and not self.covers(origin)

    @property
    def is_alone(self) -> bool:
        """Whether no backup under the prefix certainly belongs to another source."""
        return not self._foreign

    def _relation(self, identity: Identity) -> Relation:
        if identity in self._named:
            return "same"
        found = {source.relation(identity) for source in self._sources}
        if "same" in found:
            return "same"
        return "unknown" if "unknown" in found else "other"

    def _is_foreign(self, origin: Origin) -> bool:
        relation = self._relation(origin.identity)
        late = self.since is not None and origin.started >= self.since
        # The backup has an identifier and our source has none: that server may have had our
        # address before.
        identified = origin.identity.system is not None
        return relation == "other" or (relation == "unknown" and (late or identified))


def addresses(source: Identity, origins: Iterable[Origin]) -> set[Identity]:
    """Return a source as given and as its backups record it: its address may have changed."""
    same = {each.identity for each in origins if source.relation(each.identity) == "same"}
    return {source, *same}


def sources(origins: Sequence[Origin]) -> list[Identity]:
    """Return the sources under a prefix, those with the newest backups first.

    An identity that may be one of the listed sources is not listed separately.
    """
    newest_first = sorted(origins, key=lambda each: each.started, reverse=True)
    every = list(dict.fromkeys(each.identity for each in newest_first))
    found: list[Identity] = []
    known: list[Identity] = []
    # The most complete identities come first: the others are compared with them.
    for complete in (lambda each: each.system, lambda each: each.database, lambda _each: True):
        for each in filter(complete, every):
            relations = {one.relation(each) for one in known}
            if relations <= {"other"}:
                found.append(each)
            if relations <= {"other"} or "same" in relations:
                known.append(each)
    return found


def left_over(known: Sequence[Identity], origins: Sequence[Origin]) -> list[Identity]:
    """Return the identities of the backups that belong to none of the ``known`` sources."""
    claims = [Claim([each], origins) for each in known]
    left = (each for each in origins if not any(claim.covers(each) for claim in claims))
    return list(dict.fromkeys(each.identity for each in left))


def named(name: str, known: Sequence[Identity], left: Sequence[Identity] = ()) -> list[Identity]:
    """Return the sources that a user may mean: the one of this label, or those of this database.

    Identities that are ``left`` over can only be selected by their label.
    """
    return [each for each in (*known, *left) if each.label == name] or [
        each for each in known if each.database == name
    ]


def reported_after(before: Iterable[str], seen: Iterable[Identity]) -> str:
    """Return the metadata value of the next backup: earlier reported sources and new ones."""
    digests = list(dict.fromkeys([*(each.digest for each in seen), *sorted(before)]))
    return " ".join(digests[:_MOST_OTHERS]) or _NONE


def continued(identity: Identity, since: datetime | None, started: datetime) -> dict[str, str]:
    """Return the metadata that names a source in its next backup, not encoded.

    ``since`` is that of its earlier backups; None if this is the first one.
    """
    first = min(since or started, started)
    return {**identity.metadata(), SINCE: iso(first)}
