"""The next run: without drift, once where several were missed, right when the clocks change."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.service.schedule import Cron, Interval, Schedule, check_zone, stale_at

ANCHOR = datetime(2026, 1, 31, 2, 0, 0, 123456, tzinfo=UTC)
BERLIN = "Europe/Berlin"

moments = st.datetimes(
    datetime(2020, 1, 1),  # noqa: DTZ001 - Hypothesis wants these without a zone
    datetime(2037, 12, 31),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
)
# Half an hour of summer time, changes at midnight, half-hour offsets, none at all.
zones = st.sampled_from(
    [
        "UTC",
        BERLIN,
        "America/New_York",
        "America/Santiago",
        "America/Havana",
        "Africa/Cairo",
        "Asia/Kathmandu",
        "Australia/Lord_Howe",
        "Pacific/Apia",
    ]
)


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    return st.one_of(
        st.just("*"),
        number.map(str),
        st.lists(number, min_size=1, max_size=4).map(lambda found: ",".join(map(str, found))),
        st.tuples(number, number).map(lambda pair: f"{min(pair)}-{max(pair)}"),
        st.integers(1, high).map(lambda step: f"*/{step}"),
    )


expressions = st.tuples(field(0, 59), field(0, 23), field(1, 28), field(1, 12), field(0, 7)).map(
    " ".join
)


def runs(schedule: Schedule, start: datetime, count: int) -> list[datetime]:
    found = [start]
    for _ in range(count):
        found.append(schedule.after(found[-1]))
    return found[1:]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shown(found: list[datetime]) -> list[str]:
    return [f"{moment:%m-%d %H:%M}" for moment in found]


def test_an_interval_does_not_drift_over_ten_thousand_runs_that_all_start_late() -> None:
    schedule, moment = Interval(3600, ANCHOR), ANCHOR
    for number in range(10_000):
        due = schedule.after(moment)
        assert due == ANCHOR + timedelta(hours=number + 1)
        moment = due + timedelta(milliseconds=number % 997)


@pytest.mark.parametrize(
    ("late", "expected"),
    [(0, 60), (59.999, 60), (60, 120), (60.001, 120), (3599, 3600), (86_400 * 365, 31_536_060)],
)
def test_what_was_missed_is_not_made_up_for(late: float, expected: float) -> None:
    found = Interval(60, ANCHOR).after(ANCHOR + timedelta(seconds=late))
    assert found == ANCHOR + timedelta(seconds=expected)


@given(st.integers(60, 10**8), moments, moments)
def test_an_interval_is_on_its_grid_and_the_next_after_any_moment(
    seconds: int, anchor: datetime, moment: datetime
) -> None:
    """Before the anchor too: a clock that was set back."""
    due = Interval(seconds, anchor).after(moment)
    assert moment < due <= moment + timedelta(seconds=seconds)
    assert (due - anchor) % timedelta(seconds=seconds) == timedelta()


@given(expressions, zones, moments)
def test_a_cron_schedule_strictly_increases(expression: str, zone: str, start: datetime) -> None:
    try:
        schedule = Cron(expression, zone)
    except ValueError as error:
        assert "does not exist" in str(error) or "bad day" in str(error)  # noqa: PT017
        return
    found = runs(schedule, start, 5)
    assert all(one < next_ for one, next_ in itertools.pairwise([start, *found]))
    assert all(moment.tzinfo is UTC and moment.second == 0 for moment in found)


@given(expressions, moments, st.integers(0, 10**6))
def test_a_late_start_skips_what_is_past_and_nothing_more(
    expression: str, start: datetime, late: int
) -> None:
    try:
        schedule = Cron(expression)
    except ValueError:
        return
    moment = schedule.after(start) + timedelta(seconds=late)
    due = schedule.after(moment)
    assert moment < due
    # There is none between the two: a look from any moment in between finds the same.
    assert schedule.after(moment + (due - moment) / 2) == due


@pytest.mark.parametrize(
    ("expression", "zone", "start", "expected"),
    [
        pytest.param(
            "30 2 * * *",
            BERLIN,
            "2026-03-28",
            ["03-28 01:30", "03-29 01:00", "03-30 00:30"],
            id="a time in the gap runs when the gap ends",
        ),
        pytest.param(
            "15,45 2 * * *",
            BERLIN,
            "2026-03-29",
            ["03-29 01:00", "03-30 00:15", "03-30 00:45"],
            id="two in the gap are one run",
        ),
        pytest.param(
            "30 2 * * *",
            BERLIN,
            "2026-10-24T12:00",
            ["10-25 00:30", "10-26 01:30"],
            id="a time that comes twice runs once",
        ),
        pytest.param(
            "50 2 * * *",
            BERLIN,
            "2026-10-25T01:10",
            ["10-26 01:50"],
            id="asked in the second of the two hours",
        ),
        pytest.param(
            "*/30 * * * *",
            BERLIN,
            "2026-10-25T00:00",
            ["10-25 00:30", "10-25 01:00", "10-25 01:30", "10-25 02:00"],
            id="every half an hour goes on in the repeated hour",
        ),
        pytest.param(
            "0 * * * *",
            BERLIN,
            "2026-03-29T00:00",
            ["03-29 01:00", "03-29 02:00"],
            id="every hour goes on across the gap",
        ),
        pytest.param(
            "0 3 * * *",
            "America/New_York",
            "2026-07-01T12:00",
            ["07-02 07:00", "07-03 07:00"],
            id="summer time",
        ),
        pytest.param(
            "0 0 * * *",
            "Australia/Lord_Howe",
            "2026-10-03T00:00",
            ["10-03 13:30", "10-04 13:00"],
            id="half an hour of summer time",
        ),
        pytest.param(
            "0 0 29 2 *", "UTC", "2026-01-01", ["02-29 00:00", "02-29 00:00"], id="leap days"
        ),
        pytest.param(
            "0 0 31 * *", "UTC", "2026-01-01", ["01-31 00:00", "03-31 00:00"], id="the 31st"
        ),
        pytest.param(
            "0 0 L * *", "UTC", "2028-01-15", ["01-31 00:00", "02-29 00:00"], id="month ends"
        ),
        pytest.param(
            "0 4 * * 1-5", "UTC", "2026-01-02T05:00", ["01-05 04:00"], id="days of the week"
        ),
        pytest.param(
            "0 4 1 * sun", "UTC", "2026-01-30", ["02-01 04:00", "02-08 04:00"], id="either day"
        ),
    ],
)
def test_calendars_and_clocks(expression: str, zone: str, start: str, expected: list[str]) -> None:
    assert shown(runs(Cron(expression, zone), utc(start), len(expected))) == expected


def test_leap_days_are_four_years_apart() -> None:
    assert [found.year for found in runs(Cron("0 0 29 2 *"), ANCHOR, 3)] == [2028, 2032, 2036]


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("", "five fields"),
        ("0 0 * *", "five fields"),
        ("0 0 0 * * *", "five fields"),  # a field for seconds: no backup is so quick
        ("@daily", "five fields"),
        ("60 * * * *", "bad minute"),
        ("* 24 * * *", "bad hour"),
        ("* * 0 * *", "bad day-of-month"),
        ("* * * 13 *", "bad month"),
        ("* * * * 8", "bad day-of-week"),
        ("*/0 * * * *", "bad minute"),
        ("5-1 * * * *", "bad minute"),
        ("a b c d e", "bad minute"),
        (f"{'9' * 5000} * * * *", "no such number"),
        ("0 0 31 2 *", "bad day"),
    ],
)
def test_an_expression_that_is_none(expression: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Cron(expression)


@given(st.text(st.sampled_from("0123456789*/-,#LW MONJAN²ß"), max_size=30))
def test_any_text_is_an_expression_or_is_refused(text: str) -> None:
    try:
        schedule = Cron(text)
    except ValueError:
        return
    assert schedule.after(ANCHOR) > ANCHOR


@pytest.mark.parametrize("name", ["UTC", BERLIN, "Etc/GMT+5", "EST5EDT"])
def test_time_zones(name: str) -> None:
    check_zone(name)


@pytest.mark.parametrize(
    "name", ["", "Mars/Olympus", "Europe", "../etc/passwd", "/etc/localtime", "a\0b", "x" * 999]
)
def test_a_zone_that_is_none(name: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        Cron("0 0 * * *", name)


@pytest.mark.parametrize(
    ("schedule", "last", "stale"),
    [
        (Interval(60, ANCHOR), ANCHOR, timedelta(minutes=1 + 15)),
        (Interval(3600, ANCHOR), ANCHOR, timedelta(minutes=60 + 30)),
        (Interval(86_400, ANCHOR), ANCHOR, timedelta(hours=24 + 12)),
        (Interval(7 * 86_400, ANCHOR), ANCHOR, timedelta(hours=7 * 24 + 12)),
        (Cron("0 3 * * *"), datetime(2026, 1, 31, 3, tzinfo=UTC), timedelta(hours=24 + 12)),
        # From Friday's last to Monday's first, and half of the hour until the second.
        (
            Cron("0 9-17 * * 1-5"),
            datetime(2026, 1, 30, 17, tzinfo=UTC),
            timedelta(days=2, hours=16, minutes=30),
        ),
    ],
)
def test_a_backup_is_stale_a_while_after_the_next_was_due(
    schedule: Schedule, last: datetime, stale: timedelta
) -> None:
    assert stale_at(schedule, last) == last + stale
