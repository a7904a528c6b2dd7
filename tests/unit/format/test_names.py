"""The names of stored objects are recognised, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.format import names

ID = "0011223344556677"

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 1, 1)).map(  # noqa: DTZ001 - made aware
    lambda moment: moment.replace(tzinfo=UTC)
)


@given(MOMENTS, MOMENTS)
def test_names_sort_by_time(one: datetime, other: datetime) -> None:
    if one.replace(microsecond=0) < other.replace(microsecond=0):
        assert names.base_name(one) < names.base_name(other)


def test_names_of_objects() -> None:
    moment = datetime(2026, 1, 31, 3, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    base = names.base_name(moment)
    assert base == "backup_20260131_020005"
    assert names.archive_name(base, encrypted=False) == "backup_20260131_020005.sql.gz"
    assert names.archive_name(base, encrypted=True) == "backup_20260131_020005.sql.gz.enc"
    name = names.manifest_name(base, "ab12", encrypted=False)
    assert name == "backup_20260131_020005.ab12.manifest.json.gz"
    assert names.manifest_name(base, "ab12", encrypted=True) == f"{name}.enc"


@given(MOMENTS, st.booleans())
def test_archive_names_are_recognised_and_manifests_are_not(
    moment: datetime,
    encrypted: bool,  # noqa: FBT001 - Hypothesis passes it by position
) -> None:
    base = names.base_name(moment)
    assert names.ARCHIVE_NAME.fullmatch(names.archive_name(base, encrypted=encrypted))
    other = names.manifest_name(base, ID, encrypted=encrypted)
    assert not names.ARCHIVE_NAME.fullmatch(other)
    archive = names.archive_name(base, encrypted=encrypted)
    named = names.companion_of
    assert named(other) == names.CompanionName(archive, ID, "manifest", None)
    roles = names.globals_name(base, ID, encrypted=encrypted)
    assert named(roles) == names.CompanionName(archive, ID, "globals", None)
    privileges = names.privileges_name(base, ID, encrypted=encrypted)
    assert named(privileges) == names.CompanionName(archive, ID, "privileges", None)
    statistics = names.statistics_name(base, ID, encrypted=encrypted)
    assert named(statistics) == names.CompanionName(archive, ID, "statistics", None)
    # Who sorts the names in .sql.gz of one backup finds the archive last.
    assert max(archive, privileges, statistics) == archive
    proven = moment.replace(microsecond=0)
    proof = names.proof_name(base, ID, moment, encrypted=encrypted)
    assert named(proof) == names.CompanionName(archive, ID, "proof", proven)
    key = names.key_name(base, ID)
    its_archive = names.archive_name(base, encrypted=True)
    assert named(key) == names.CompanionName(its_archive, ID, "key", None)
    kms = names.kms_name(base, ID)
    assert named(kms) == names.CompanionName(its_archive, ID, "kms", None)
    for name in (roles, privileges, statistics, proof, other, key, kms):
        assert not names.ARCHIVE_NAME.fullmatch(name)
        assert not named(f"x{name}")
        assert not named(f"{name}x")


@pytest.mark.parametrize(
    "name",
    [
        "backup_20260131_020005.0123456789abcdef.proof_20260231_020005.json.gz",
        "backup_20260231_020005.0123456789abcdef.manifest.json.gz",
        "backup_20260131_020005.0123456789abcdef.proof.json.gz",
        "backup_20260131_020005.0123456789ABCDEF.globals.gz",
        "backup_20260131_020005.0123456789abcdef.key.age.enc",
        "backup_20260131_020005.0123456789abcdef.key.age.gz",
        "backup_20260131_020005.0123456789abcdef.key",
    ],
)
def test_what_is_no_companion(name: str) -> None:
    assert names.companion_of(name) is None


@given(MOMENTS, st.booleans())
def test_the_record_of_a_failure_is_neither_archive_nor_companion(
    moment: datetime,
    encrypted: bool,  # noqa: FBT001 - Hypothesis passes it by position
) -> None:
    """Version 0.2.0 ignores each name that it does not know: the pattern for companions is its."""
    base, started = names.base_name(moment), moment.replace(microsecond=0)
    record = names.failure_name(base, ID, encrypted=encrypted)
    key = names.failure_key_name(base, ID, names.AGE_ENDING)
    kms = names.failure_key_name(base, ID, names.KMS_ENDING)
    for name, kind in ((record, "record"), (key, "key"), (kms, "kms")):
        assert names.failure_of(name) == names.FailureName(started, ID, kind)  # type: ignore[arg-type] # kinds are text here
        assert names.companion_of(name) is None
        assert not names.ARCHIVE_NAME.fullmatch(name)
        assert names.failure_of(f"x{name}") is names.failure_of(f"{name}x") is None


@pytest.mark.parametrize(
    "name",
    [
        "backup_20260231_020005.0123456789abcdef.failure.json.gz",
        "backup_20260131_020005.0123456789ABCDEF.failure.json.gz",
        "backup_20260131_020005.failure.json.gz",
        "backup_20260131_020005.0123456789abcdef.failure.json",
        "backup_20260131_020005.0123456789abcdef.failure.key.age.enc",
        "backup_20260131_020005.sql.gz",
    ],
)
def test_what_is_no_record_of_a_failure(name: str) -> None:
    assert names.failure_of(name) is None


def test_a_base_name_says_when_the_backup_began() -> None:
    began = datetime(2026, 1, 31, 2, 0, 59, tzinfo=UTC)
    assert names.started_of(names.base_name(began)) == began
    for nonsense in ("backup_20261399_000000", "backup_20260230_000000", "backup_20260101_240000"):
        assert names.started_of(nonsense) is None
