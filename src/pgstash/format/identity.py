"""Whose a backup is: the name of its database and the identity of its server, as pure values.

PostgreSQL gives a cluster a system identifier when initdb makes it. Standbys have the identifier
of their primary, so a failover does not change it; a new cluster has a new one. If a server does
not tell it, host and port take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal, Self

Relation = Literal["same", "other", "unknown"]

SINCE = "source-since"
"""Key of the metadata: when the source made its first backup with this key."""

OTHERS = "other-sources"
"""Key of the metadata: digests of the other sources that were reported up to this backup."""

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_DIGITS = 8
_MOST_OTHERS = 28  # what fits into one header of metadata
_NONE = "none"  # not every store keeps an empty value


@dataclass(frozen=True, slots=True)
class Identity:
    """A source. None stands for what is not known: earlier backups name less, or nothing."""

    database: str | None = None
    system: str | None = None
    host: str | None = None
    port: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Self:
        """Read it from the metadata of an object, decoded."""
        return cls(
            database=metadata.get("database") or None,
            system=metadata.get("system") or None,
            host=metadata.get("host") or None,
            port=metadata.get("port") or None,
        )

    def metadata(self) -> dict[str, str]:
        """Return what :meth:`of` reads, not encoded."""
        values = {
            "database": self.database,
            "system": self.system,
            "host": self.host,
            "port": self.port,
        }
        return {key: value for key, value in values.items() if value}

    @property
    def label(self) -> str:
        """The source for people, and for the option ``--source``: ``shop@7301234567890123456``."""
        if self.database is None:
            return "unnamed"
        if self == UNREADABLE:
            return "unreadable"
        address = ":".join(part for part in (self.host, self.port) if part)
        return f"{self.database}@{self.system or address or '?'}"

    @property
    def digest(self) -> str:
        """A short name that is the same for the same source."""
        return sha256(self.label.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]

    def relation(self, other: Identity) -> Relation:
        """Tell whether another identity is of the same source, as far as both tell."""
        if self.database is None or other.database is None:
            return "unknown"
        if self.database != other.database:
            return "other"
        if self.system and other.system:
            return "same" if self.system == other.system else "other"
        if _differ(self.host, other.host) or _differ(self.port, other.port):
            return "other"
        # Of two servers that do not tell their identifier, the address is all there is.
        neither = not self.system and not other.system
        return "same" if neither and self.host and other.host else "unknown"


def _differ(one: str | None, other: str | None) -> bool:
    return bool(one and other and one.casefold() != other.casefold())


UNREADABLE = Identity("\0")
"""Of a backup whose metadata cannot be read: no database has such a name."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What the metadata of a backup tell of its source; ``started`` is when it began, in UTC.

    ``id`` is that of the backup and of what lies beside it; None in a copy that lost it.

    ``since`` is when the source made its first backup that names its server, ``reported`` are the
    digests of the other sources that were reported by then; None in earlier backups.
    """

    identity: Identity
    started: datetime
    since: datetime | None = None
    reported: frozenset[str] | None = None
    id: str | None = None

    @classmethod
    def of(cls, metadata: Mapping[str, str], started: datetime) -> Self:
        """Read it from the metadata of an archive, decoded."""
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
        return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        return None


class Claim:
    """Which backups under a prefix are of the given sources, as far as all of their metadata tell.

    A backup that does not name its server counts as theirs only if it is from before their first
    one that does, and if it cannot be of another source under the prefix. One that tells a system
    identifier is never of a source that does not.
    """

    def __init__(self, sources: Sequence[Identity], origins: Sequence[Origin]) -> None:
        """Compare the ``sources``, at all their addresses, with everything that is stored.

        One that names no database stands for those backups alone that tell the same.
        """
        self._named = frozenset(sources)
        self._sources = {
            each for source in sources if source.database for each in addresses(source, origins)
        }
        self.since = min(
            (each.since for each in origins if each.since and self._relation(each) == "same"),
            default=None,
        )
        self._foreign = {each.identity for each in origins if self._is_foreign(each)}

    def covers(self, origin: Origin) -> bool:
        """Tell whether a backup is of these sources."""
        if self._is_foreign(origin):
            return False
        return self._relation(origin) == "same" or all(
            foreign.relation(origin.identity) == "other" for foreign in self._foreign
        )

    def doubts(self, origin: Origin) -> bool:
        """Tell whether a backup does not count as theirs, and may be theirs nevertheless."""
        return self._relation(origin) == "unknown" and not self.covers(origin)

    @property
    def is_alone(self) -> bool:
        """Whether nothing under the prefix is certainly of another source."""
        return not self._foreign

    def _relation(self, origin: Origin) -> Relation:
        if origin.identity in self._named:
            return "same"
        found = {source.relation(origin.identity) for source in self._sources}
        if "same" in found:
            return "same"
        return "unknown" if "unknown" in found else "other"

    def _is_foreign(self, origin: Origin) -> bool:
        relation = self._relation(origin)
        late = self.since is not None and origin.started >= self.since
        # Of a server that tells its identifier, while ours does not: it may have had the address.
        tells = origin.identity.system is not None
        return relation == "other" or (relation == "unknown" and (late or tells))


def addresses(source: Identity, origins: Iterable[Origin]) -> set[Identity]:
    """Return a source as it is given, and as its backups tell: it may have had other addresses."""
    same = {each.identity for each in origins if source.relation(each.identity) == "same"}
    return {source, *same}


def sources(origins: Sequence[Origin]) -> list[Identity]:
    """Return the sources under a prefix, those with the newest backups first.

    What may be of one of them is not listed by itself.
    """
    newest_first = sorted(origins, key=lambda each: each.started, reverse=True)
    every = list(dict.fromkeys(each.identity for each in newest_first))
    found: list[Identity] = []
    known: list[Identity] = []
    # What tells most goes first: the others are compared with it.
    for tells in (lambda each: each.system, lambda each: each.database, lambda _each: "anything"):
        for each in filter(tells, every):
            relations = {one.relation(each) for one in known}
            if relations <= {"other"}:
                found.append(each)
            if relations <= {"other"} or "same" in relations:
                known.append(each)
    return found


def left_over(known: Sequence[Identity], origins: Sequence[Origin]) -> list[Identity]:
    """Return what backups tell of their source that count as those of none of the ``known``."""
    claims = [Claim([each], origins) for each in known]
    left = (each for each in origins if not any(claim.covers(each) for claim in claims))
    return list(dict.fromkeys(each.identity for each in left))


def named(name: str, known: Sequence[Identity], left: Sequence[Identity] = ()) -> list[Identity]:
    """Return the sources that a user may mean: the one of this label, or those of this database.

    What is ``left`` of no known source is meant only by its label.
    """
    return [each for each in (*known, *left) if each.label == name] or [
        each for each in known if each.database == name
    ]


def reported_after(before: Iterable[str], seen: Iterable[Identity]) -> str:
    """Return the metadata of the next backup: what was reported before, and what is now."""
    digests = list(dict.fromkeys([*(each.digest for each in seen), *sorted(before)]))
    return " ".join(digests[:_MOST_OTHERS]) or _NONE


def continued(identity: Identity, since: datetime | None, started: datetime) -> dict[str, str]:
    """Return the metadata that name a source in its next backup, not encoded.

    ``since`` is that of its earlier backups, None if this is the first one.
    """
    first = min(since or started, started)
    return {**identity.metadata(), SINCE: first.astimezone(UTC).strftime(_TIME)}
