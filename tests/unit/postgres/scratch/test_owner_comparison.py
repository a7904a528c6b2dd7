"""Scripts of owners and privileges are equal if they say the same, whichever pg_dump wrote them."""

from __future__ import annotations

import pytest

from pgstash.postgres.restore.owners_and_privileges import Refused
from pgstash.postgres.scratch.owner_comparison import Comparison, compare

OWNER = (b"ALTER TABLE s.t OWNER TO app;",)
GRANT = (b"GRANT SELECT ON TABLE s.t TO reader;",)
BY_READER = (
    b"SET SESSION AUTHORIZATION reader;",
    b"GRANT SELECT ON TABLE s.t TO app;",
    b"RESET SESSION AUTHORIZATION;",
)
PUBLIC = (b"GRANT ALL ON SCHEMA public TO PUBLIC;",)


def compared(
    of_source: list[tuple[bytes, ...]],
    of_restored: list[tuple[bytes, ...]],
    *refused: Refused,
    whole: bool = True,
    same_major: bool = True,
    more_on: tuple[bytes, ...] = (),
) -> Comparison:
    more = more_on if whole else None
    return compare(of_source, of_restored, refused, more_on=more, same_major=same_major)


@pytest.mark.parametrize(
    ("written", "other"),
    [
        (b"ALTER LARGE OBJECT 42 OWNER TO app;", b'ALTER LARGE OBJECT 42 OWNER TO "app";'),
        (b"ALTER TABLE s.v OWNER TO app;", b"ALTER VIEW s.v OWNER TO app;"),
        (b"ALTER TABLE s.q OWNER TO app;", b'ALTER SEQUENCE "s".q OWNER TO app;'),
        (b"GRANT SELECT ON TABLES  TO a;", b"GRANT SELECT ON TABLES\n  TO a;"),
    ],
)
def test_versions_may_write_differently(written: bytes, other: bytes) -> None:
    assert compared([(written,)], [(other,)]) == Comparison(1, 0, [])


@pytest.mark.parametrize(
    ("written", "other"),
    [
        (b'ALTER TABLE "S".v OWNER TO app;', b"ALTER TABLE s.v OWNER TO app;"),
        (b'ALTER TABLE s."a  b" OWNER TO app;', b'ALTER TABLE s."a b" OWNER TO app;'),
        (b'ALTER TABLE s."a""b" OWNER TO app;', b"ALTER TABLE s.ab OWNER TO app;"),
        (b"ALTER TYPE s.v OWNER TO app;", b"ALTER TABLE s.v OWNER TO app;"),
        (b"GRANT SELECT ON TABLE a TO b;", b"GRANT SELECT ON TABLE a TO b WITH GRANT OPTION;"),
    ],
)
def test_what_is_not_the_same_is_a_difference(written: bytes, other: bytes) -> None:
    assert len(compared([(written,)], [(other,)]).problems) == 2


def test_the_order_does_not_matter() -> None:
    assert compared([OWNER, GRANT, BY_READER], [BY_READER, OWNER, GRANT]) == Comparison(3, 0, [])


def test_who_grants_matters() -> None:
    assert compared([BY_READER], [(BY_READER[1],)]).problems == [
        (
            b"only in the source: SET SESSION AUTHORIZATION reader; "
            b"GRANT SELECT ON TABLE s.t TO app; RESET SESSION AUTHORIZATION"
        ),
        b"only in the restored database: GRANT SELECT ON TABLE s.t TO app",
    ]


def test_another_owner_is_one_problem() -> None:
    other = (b'ALTER TABLE s.t OWNER TO "Other";',)
    more = (b"ALTER TYPE s.e OWNER TO app;",)
    assert compared([OWNER], [more, other]).problems == [
        b'TABLE s.t belongs to app in the source, and to "Other" in the restored database',
        b"only in the restored database: ALTER TYPE s.e OWNER TO app",
    ]


def test_a_partial_backup_may_have_less() -> None:
    assert compared([GRANT], [OWNER, GRANT], whole=False).problems == []
    assert compared([GRANT], [OWNER], whole=False).problems == [
        b"only in the source: GRANT SELECT ON TABLE s.t TO reader"
    ]


def test_what_must_belong_to_a_superuser_is_left_out() -> None:
    trigger = (b"ALTER EVENT TRIGGER e OWNER TO admin;",)
    kept = (b"ALTER EVENT TRIGGER e OWNER TO postgres;",)
    refused = Refused(trigger, "42501", "permission denied to change owner of event trigger")
    assert compared([trigger, GRANT], [kept, GRANT], refused) == Comparison(1, 1, [])
    missing = Refused(trigger, "42704", "role does not exist")
    assert len(compared([trigger], [kept], missing).problems) == 1
    no_grant = Refused(GRANT, "42501", "permission denied")
    assert len(compared([GRANT], [], no_grant).problems) == 1


def test_what_servers_grant_by_themselves_depends_on_their_major() -> None:
    of_catalog = (b"REVOKE ALL ON FUNCTION pg_catalog.f() FROM PUBLIC;",)
    assert len(compared([PUBLIC], [of_catalog]).problems) == 2
    assert compared([PUBLIC, GRANT], [of_catalog, GRANT], same_major=False) == Comparison(1, 0, [])
    mine = (b"GRANT ALL ON SCHEMA publication TO PUBLIC;",)
    assert len(compared([mine], [], same_major=False).problems) == 1


def test_what_an_extension_granted_on_its_schema() -> None:
    more = [
        (b"REVOKE ALL ON SCHEMA topology FROM postgres;",),
        (b'GRANT ALL ON SCHEMA topology TO "a b";',),
    ]
    assert len(compared([GRANT], [GRANT, *more]).problems) == 2
    assert compared([GRANT], [GRANT, *more], more_on=(b'"topology"',)).problems == []
    assert len(compared([GRANT], [GRANT, *more], more_on=(b'"Topology"', b'"t"')).problems) == 2
    # What the source has is expected in any case.
    assert len(compared([GRANT, more[0]], [GRANT], more_on=(b'"topology"',)).problems) == 1
    odd = (b'GRANT USAGE ON SCHEMA "Odd ""s""" TO a;',)
    assert compared([GRANT], [GRANT, odd], more_on=(b'"Odd ""s"""',)).problems == []
