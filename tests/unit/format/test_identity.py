"""The source of a backup: pure values, and what they decide for the retention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.format import identity
from pgstash.format.identity import Claim, Identity, Origin, Relation
from pgstash.format.metadata import encoded
from pgstash.prune.retention import Policy, decide

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
SHOP = Identity("shop", "1", "db1", "5432")


@pytest.mark.parametrize(
    ("other", "relation"),
    [
        (SHOP, "same"),
        (Identity("shop", "1", "db2", "5433"), "same"),  # a failover
        (Identity("shop", "1"), "same"),
        (Identity("shop", "2", "db1", "5432"), "other"),  # another server at the same address
        (Identity("blog", "1", "db1", "5432"), "other"),
        (Identity("blog"), "other"),
        (Identity("shop", None, "DB1"), "unknown"),  # of an earlier pgstash
        (Identity("shop", None, "db2"), "other"),
        (Identity("shop", None, "db1", "5433"), "other"),
        (Identity("shop"), "unknown"),
        (Identity(), "unknown"),
        (Identity(None, "1", "db1"), "unknown"),
        (identity.UNREADABLE, "other"),
    ],
)
def test_how_two_sources_compare(other: Identity, relation: Relation) -> None:
    assert SHOP.relation(other) == other.relation(SHOP) == relation


def test_of_servers_that_do_not_tell_their_identifier_the_address_counts() -> None:
    managed = Identity("shop", None, "db1", "5432")
    assert managed.relation(Identity("shop", None, "db1")) == "same"
    assert managed.relation(Identity("shop", None, "db1", "5433")) == "other"
    assert managed.relation(Identity("shop", None, "db2")) == "other"
    assert managed.relation(Identity("shop")) == "unknown"


def test_metadata_come_back() -> None:
    for source in (SHOP, Identity("café % @x", None, "/var/run"), Identity()):
        assert Identity.of(source.metadata()) == source
    stored = encoded({**identity.continued(SHOP, None, NOW), identity.OTHERS: "a b"})
    origin = Origin.of({**stored, "id": "1"}, NOW)
    assert origin == Origin(SHOP, NOW, NOW, frozenset(["a", "b"]), "1")
    assert Origin.of({identity.SINCE: "never"}, NOW) == Origin(Identity(), NOW)


def test_the_first_backup_that_names_its_server_is_remembered() -> None:
    earlier = NOW - timedelta(days=9)
    for since in (None, NOW, NOW + timedelta(days=1)):
        assert identity.continued(SHOP, since, NOW)[identity.SINCE] == "2026-01-31T12:00:00Z"
    assert identity.continued(SHOP, earlier, NOW)[identity.SINCE] == "2026-01-22T12:00:00Z"


def test_the_sources_under_a_prefix() -> None:
    def found(*of: Identity) -> list[str]:
        days = enumerate(of)
        origins = [Origin(each, NOW + timedelta(days=number)) for number, each in days]
        return [each.label for each in identity.sources(origins)]

    earlier, host = Identity("shop", None, "db1"), Identity("shop", None, "db2")
    assert found() == []
    assert found(Identity(), Identity()) == ["unnamed"]
    assert found(Identity(), earlier, SHOP, Identity("shop", "1", "db2")) == ["shop@1"]
    assert found(SHOP, Identity("shop", "2", "db1"), Identity()) == ["shop@2", "shop@1"]
    assert found(host, SHOP, Identity("blog", "1"), earlier) == ["blog@1", "shop@1", "shop@db2"]


def test_what_a_user_may_call_a_source() -> None:
    known = [SHOP, Identity("blog", "1"), Identity("blog", "2")]
    assert identity.named("shop", known) == identity.named("shop@1", known) == [SHOP]
    assert identity.named("blog@2", known) == known[2:]
    assert len(identity.named("blog", known)) == 2
    assert identity.named("shop@", known) == []


@dataclass(frozen=True)
class Backup:
    """A backup of a real source, and the part of it that its metadata records."""

    source: Identity
    origin: Origin
    size: int = 100
    proven: datetime | None = None

    @property
    def started(self) -> datetime:
        return self.origin.started

    @property
    def name(self) -> str:
        return f"{self.started:%Y-%m-%d %H:%M:%S} {self.source.label}"


SOURCES = [
    Identity(database, system, host, "5432")
    for database in ("shop", "blog")
    for system in ("1", "2")
    for host in ("db1", "db2")
]
UPGRADED = NOW - timedelta(days=30)


def told(source: Identity, started: datetime, *, of_the_upgrade: bool) -> Origin:
    """Return what pgstash of that time stores: earlier ones do not name the server."""
    if started < UPGRADED and of_the_upgrade:
        return Origin(Identity(source.database, None, source.host), started)
    return Origin(source, started, UPGRADED)


def any_backups(*, of_the_upgrade: bool) -> st.SearchStrategy[list[Backup]]:
    return st.lists(
        st.builds(
            lambda source, hours, size, proven: Backup(
                source,
                told(source, NOW - timedelta(hours=hours), of_the_upgrade=of_the_upgrade),
                size,
                proven,
            ),
            st.sampled_from(SOURCES),
            st.integers(0, 90 * 24),
            st.sampled_from([100, 100, 0]),
            st.sampled_from([None, None, NOW]),
        ),
        unique_by=lambda backup: backup.started,
        max_size=40,
    )


COUNT = st.none() | st.integers(1, 4)
POLICY = st.builds(
    Policy,
    days=st.integers(1, 60),
    last=COUNT,
    daily=COUNT,
    weekly=COUNT,
    monthly=COUNT,
    yearly=COUNT,
)


def removed(backups: Sequence[Backup], source: Identity, policy: Policy) -> list[Backup]:
    """Return what a run for a source removes."""
    claim = Claim([source], [each.origin for each in backups])
    own = [each for each in backups if claim.covers(each.origin)]
    return [each.backup for each in decide(own, policy, NOW) if not each.keep]


def is_same(one: Identity, other: Identity) -> bool:
    return (one.database, one.system) == (other.database, other.system)


def newest(backups: Sequence[Backup], source: Identity) -> Backup | None:
    own = [each for each in backups if is_same(each.source, source) and each.size]
    return max(own, key=lambda each: each.started, default=None)


@given(any_backups(of_the_upgrade=False), st.sampled_from(SOURCES), POLICY)
def test_a_run_removes_nothing_of_others_and_never_the_newest_of_its_own(
    backups: list[Backup], source: Identity, policy: Policy
) -> None:
    gone = removed(backups, source, policy)
    assert all(is_same(each.source, source) for each in gone)
    assert newest(backups, source) not in gone
    # And no less than if it had the prefix to itself.
    alone = [each for each in backups if is_same(each.source, source)]
    assert set(gone) == {each.backup for each in decide(alone, policy, NOW) if not each.keep}


@given(any_backups(of_the_upgrade=True), st.sampled_from(SOURCES), POLICY)
def test_earlier_backups_of_other_names_stay_too(
    backups: list[Backup], source: Identity, policy: Policy
) -> None:
    """A backup that names only database and host does not count if it may be of another source."""
    gone = removed(backups, source, policy)
    assert all(each.source.database == source.database for each in gone)
    rivals = [
        each.source
        for each in backups
        if each.origin.identity.system and not is_same(each.source, source)
    ]
    hosts = {source.host} | {
        each.source.host
        for each in backups
        if each.origin.identity.system and is_same(each.source, source)
    }
    for each in gone:
        if each.origin.identity.system is None:
            assert each.source.host in hosts
            assert each.started < UPGRADED
            assert all(rival.relation(each.origin.identity) == "other" for rival in rivals)
        else:
            assert is_same(each.source, source)


def test_what_tells_its_server_is_not_of_one_at_its_address_that_does_not() -> None:
    """Another server took over the address and does not disclose its identifier: unknown."""
    silent = Identity("shop", None, "db1", "5432")
    upgraded = Origin(silent, NOW, UPGRADED)
    old = Origin(SHOP, UPGRADED - timedelta(days=1), UPGRADED - timedelta(days=9))
    before = Origin(Identity("shop", None, "db1"), UPGRADED - timedelta(days=1))
    assert not Claim([silent], [old, upgraded]).covers(old)
    assert Claim([silent], [old, upgraded]).covers(upgraded)
    assert Claim([silent, SHOP], [old, upgraded]).covers(old)
    assert Claim([silent], [before, upgraded]).covers(before)
