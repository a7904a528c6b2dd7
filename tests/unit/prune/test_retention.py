"""What is kept and removed, and the reason for each: a pure function of names and a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.prune.retention import Policy, decide

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
OLD = "older than 7 days"
OLD_TOO = "older than 7 days, and kept by no other rule"


@dataclass(frozen=True)
class Backup:
    started: datetime
    size: int = 100
    proven: datetime | None = None

    @property
    def name(self) -> str:
        return f"{self.started:%Y-%m-%d %H:%M:%S}"


def at(text: str, size: int = 100, proven: str | None = None) -> Backup:
    drilled = datetime.fromisoformat(proven).replace(tzinfo=UTC) if proven else None
    return Backup(datetime.fromisoformat(text).replace(tzinfo=UTC), size, drilled)


def judged(
    backups: Iterable[Backup], policy: Policy, now: datetime = NOW
) -> list[tuple[str, str, str]]:
    return [
        (
            decision.backup.name.removesuffix(":00"),
            "keep" if decision.keep else "remove",
            "; ".join(decision.reasons),
        )
        for decision in decide(backups, policy, now)
    ]


def kept(backups: Iterable[Backup], policy: Policy) -> list[str]:
    return [name for name, verdict, _ in judged(backups, policy) if verdict == "keep"]


def test_by_age() -> None:
    backups = [at("2026-01-31 02:00"), at("2026-01-24 12:00"), at("2026-01-24 11:59")]
    assert judged(backups, Policy(days=7)) == [
        ("2026-01-24 11:59", "remove", OLD),
        ("2026-01-24 12:00", "keep", "within 7 days"),
        ("2026-01-31 02:00", "keep", "the newest; within 7 days"),
    ]


def test_one_day_is_called_so() -> None:
    backups = [at("2026-01-31 02:00"), at("2026-01-29 02:00")]
    assert [why for *_, why in judged(backups, Policy(days=1))] == [
        "older than 1 day",
        "the newest; within 1 day",
    ]


def test_the_newest_is_kept_however_old() -> None:
    assert judged([at("2001-01-01"), at("2001-01-02")], Policy(days=7)) == [
        ("2001-01-01 00:00", "remove", OLD),
        ("2001-01-02 00:00", "keep", "the newest"),
    ]


def test_an_empty_object_is_not_the_last_good_backup() -> None:
    backups = [at("2001-01-01"), at("2001-01-02"), at("2001-01-03", size=0)]
    assert judged(backups, Policy(days=7)) == [
        ("2001-01-01 00:00", "remove", OLD),
        ("2001-01-02 00:00", "keep", "the newest that is not empty"),
        ("2001-01-03 00:00", "keep", "the newest"),
    ]


def test_one_from_the_future_is_kept_and_stands_for_nothing_else() -> None:
    backups = [at("2001-01-01"), at("2001-01-02"), at("2099-01-01")]
    assert judged(backups, Policy(days=7, last=1)) == [
        ("2001-01-01 00:00", "remove", OLD_TOO),
        ("2001-01-02 00:00", "keep", "the newest; one of the last 1"),
        ("2099-01-01 00:00", "keep", "dated in the future"),
    ]
    assert kept([at("2099-01-01")], Policy(days=1)) == ["2099-01-01 00:00"]


def test_the_newest_proven_one_is_kept_until_a_newer_one_is_proven() -> None:
    # Of the two the older one was proven last: what counts is the age of the data.
    backups = [
        at("2001-01-01", proven="2001-01-09"),
        at("2001-01-02", proven="2001-01-03"),
        at("2001-01-03"),
        at("2001-01-04"),
    ]
    assert judged(backups, Policy(days=7)) == [
        ("2001-01-01 00:00", "remove", OLD),
        ("2001-01-02 00:00", "keep", "the newest that is proven to restore"),
        ("2001-01-03 00:00", "remove", OLD),
        ("2001-01-04 00:00", "keep", "the newest"),
    ]
    backups[3] = at("2001-01-04", proven="2001-01-05")
    assert judged(backups, Policy(days=7))[1:] == [
        ("2001-01-02 00:00", "remove", OLD),
        ("2001-01-03 00:00", "remove", OLD),
        ("2001-01-04 00:00", "keep", "the newest; the newest that is proven to restore"),
    ]


@pytest.mark.parametrize(
    "no_proof",
    [
        at("2001-01-02", size=0, proven="2001-01-03"),
        at("2099-01-01", proven="2099-01-02"),
    ],
    ids=["empty", "future"],
)
def test_what_is_empty_or_from_the_future_is_no_proven_backup(no_proof: Backup) -> None:
    backups = [at("2001-01-01", proven="2001-01-03"), no_proof, at("2026-01-30")]
    assert judged(backups, Policy(days=7))[0] == (
        "2001-01-01 00:00",
        "keep",
        "the newest that is proven to restore",
    )


def test_the_clock_of_a_drill_does_not_matter() -> None:
    backups = [at("2001-01-01", proven="2099-01-01"), at("2001-01-02")]
    assert kept(backups, Policy(days=7)) == ["2001-01-01 00:00", "2001-01-02 00:00"]


def test_the_last() -> None:
    backups = [at(f"2001-01-0{day}") for day in range(1, 6)]
    assert judged(backups, Policy(days=7, last=2))[2:] == [
        ("2001-01-03 00:00", "remove", OLD_TOO),
        ("2001-01-04 00:00", "keep", "one of the last 2"),
        ("2001-01-05 00:00", "keep", "the newest; one of the last 2"),
    ]
    assert len(kept(backups, Policy(days=7, last=10**30))) == 5


def test_days_without_a_backup_do_not_count() -> None:
    backups = [
        *(at("2025-03-01 02:00"), at("2025-03-01 23:59")),
        *(at("2025-03-05 00:00"), at("2025-03-05 14:00")),
        at("2025-06-01 02:00"),
    ]
    assert judged(backups, Policy(days=7, daily=2)) == [
        ("2025-03-01 02:00", "remove", OLD_TOO),
        ("2025-03-01 23:59", "remove", OLD_TOO),
        ("2025-03-05 00:00", "remove", OLD_TOO),
        ("2025-03-05 14:00", "keep", "the newest of day 2025-03-05"),
        ("2025-06-01 02:00", "keep", "the newest; the newest of day 2025-06-01"),
    ]


def test_a_week_is_that_of_iso_8601() -> None:
    # 2024-12-30, a Monday, opens week 1 of 2025; the Sunday before it closes week 52.
    backups = [at("2024-12-29"), at("2024-12-30"), at("2025-01-05"), at("2025-01-06")]
    assert judged(backups, Policy(days=7, weekly=3)) == [
        ("2024-12-29 00:00", "keep", "the newest of week 2024-W52"),
        ("2024-12-30 00:00", "remove", OLD_TOO),
        ("2025-01-05 00:00", "keep", "the newest of week 2025-W01"),
        ("2025-01-06 00:00", "keep", "the newest; the newest of week 2025-W02"),
    ]


def test_months_and_years() -> None:
    backups = [at("2023-05-01"), at("2024-05-31"), at("2024-12-31"), at("2025-01-01")]
    assert kept(backups, Policy(days=7, monthly=2)) == ["2024-12-31 00:00", "2025-01-01 00:00"]
    assert judged(backups, Policy(days=7, monthly=1, yearly=3)) == [
        ("2023-05-01 00:00", "keep", "the newest of year 2023"),
        ("2024-05-31 00:00", "remove", OLD_TOO),
        ("2024-12-31 00:00", "keep", "the newest of year 2024"),
        (
            "2025-01-01 00:00",
            "keep",
            "the newest; the newest of month 2025-01; the newest of year 2025",
        ),
    ]


def test_nothing_is_decided_of_nothing() -> None:
    assert decide([], Policy(days=1, last=3), NOW) == []


@pytest.mark.parametrize("days", [10**9, 10**30])
def test_more_days_than_a_calendar_has(days: int) -> None:
    assert kept([at("0001-01-01"), at("2026-01-01")], Policy(days=days)) == [
        "1-01-01 00:00",
        "2026-01-01 00:00",
    ]


COUNT = st.none() | st.integers(1, 6)
POLICY = st.builds(
    Policy,
    days=st.integers(1, 800),
    last=COUNT,
    daily=COUNT,
    weekly=COUNT,
    monthly=COUNT,
    yearly=COUNT,
)
# Ten years up to now and a bit beyond, often close together; some are empty, some proven.
BACKUPS = st.lists(
    st.builds(
        Backup,
        started=st.integers(-3650 * 24, 48).map(lambda hours: NOW + timedelta(hours=hours)),
        size=st.sampled_from([100, 100, 100, 0]),
        proven=st.sampled_from([None, None, NOW]),
    ),
    unique_by=lambda backup: backup.started,
    max_size=60,
)


@given(BACKUPS, POLICY)
def test_every_backup_is_judged_once_with_a_reason(backups: list[Backup], policy: Policy) -> None:
    decisions = decide(backups, policy, NOW)
    assert [each.backup for each in decisions] == sorted(backups, key=lambda each: each.started)
    assert all(decision.reasons for decision in decisions)


@given(BACKUPS, POLICY)
def test_each_rule_by_its_definition(backups: list[Backup], policy: Policy) -> None:
    past = sorted((each.started for each in backups if each.started <= NOW), reverse=True)
    filled = {each.started for each in backups if each.size}
    proven = {each.started for each in backups if each.size and each.proven}
    expected = {each.started for each in backups if each.started > NOW} | set(past[:1])
    expected |= set([each for each in past if each in filled][:1])
    expected |= set([each for each in past if each in proven][:1])
    expected |= {each for each in past if each >= NOW - timedelta(days=policy.days)}
    expected |= set(past[: policy.last or 0])
    periods: list[tuple[int | None, Any]] = [
        (policy.daily, lambda when: when.date()),
        (policy.weekly, lambda when: tuple(when.isocalendar())[:2]),
        (policy.monthly, lambda when: (when.year, when.month)),
        (policy.yearly, lambda when: when.year),
    ]
    for count, period in periods:
        latest = sorted({period(each) for each in past}, reverse=True)[: count or 0]
        expected |= {max(each for each in past if period(each) == one) for one in latest}
    decisions = decide(backups, policy, NOW)
    assert {each.backup.started for each in decisions if each.keep} == expected


@given(BACKUPS, POLICY)
def test_whatever_the_policy_something_proven_is_left(
    backups: list[Backup], policy: Policy
) -> None:
    def proven(some: Iterable[Backup]) -> list[datetime]:
        return [each.started for each in some if each.proven and each.size and each.started <= NOW]

    left = proven(each.backup for each in decide(backups, policy, NOW) if each.keep)
    assert max(left, default=None) == max(proven(backups), default=None)


@given(BACKUPS.filter(bool), POLICY)
def test_the_order_of_the_listing_does_not_matter(backups: list[Backup], policy: Policy) -> None:
    assert decide(backups, policy, NOW) == decide(backups[::-1], policy, NOW)


@given(BACKUPS, POLICY)
def test_pruning_twice_removes_nothing_more(backups: list[Backup], policy: Policy) -> None:
    left = [each.backup for each in decide(backups, policy, NOW) if each.keep]
    assert all(decision.keep for decision in decide(left, policy, NOW))
