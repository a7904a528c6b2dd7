"""Times of the day at which nothing starts, also when the clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pgstash.service import blackout
from pgstash.service.blackout import Blackout, Outside
from pgstash.service.schedule import Interval, stale_at

NIGHT = Blackout(blackout.parse("22:00-06:00"))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("windows", "zone", "moment", "over"),
    [
        ("22:00-06:00", "UTC", "2026-01-31 21:59:59", "2026-01-31 21:59:59"),
        ("22:00-06:00", "UTC", "2026-01-31 22:00:00", "2026-02-01 06:00:00"),
        ("22:00-06:00", "UTC", "2026-01-31 05:59:59", "2026-01-31 06:00:00"),
        ("22:00-06:00", "UTC", "2026-01-31 06:00:00", "2026-01-31 06:00:00"),
        ("22:00-00:00", "UTC", "2026-01-31 23:00:00", "2026-02-01 00:00:00"),
        ("08:00-10:00, 09:30-12:00", "UTC", "2026-01-31 08:00:00", "2026-01-31 12:00:00"),
        ("22:00-06:00", "Europe/Berlin", "2026-01-31 21:00:00", "2026-02-01 05:00:00"),
        # The clocks go forward at 02:00, and back at 03:00.
        ("22:00-02:30", "Europe/Berlin", "2026-03-28 23:00:00", "2026-03-29 01:30:00"),
        ("22:00-02:30", "Europe/Berlin", "2026-10-25 00:00:00", "2026-10-25 01:30:00"),
        ("22:00-02:30", "Europe/Berlin", "2026-10-25 01:10:00", "2026-10-25 01:30:00"),
    ],
)
def test_the_first_time_outside(windows: str, zone: str, moment: str, over: str) -> None:
    assert Blackout(blackout.parse(windows), zone).over(at(moment)) == at(over)


def test_no_window_is_no_blackout() -> None:
    assert Blackout().over(at("2026-01-31 02:00:00")) == at("2026-01-31 02:00:00")


def test_a_schedule_outside_it() -> None:
    hourly = Outside(Interval(3600, at("2026-01-31 00:00:00")), NIGHT)
    due = at("2026-01-31 19:30:00")
    for expected in ("31 20", "31 21", "01 06", "01 07"):
        due = hourly.after(due)
        assert f"{due:%d %H}" == expected


def test_a_backup_is_fresh_through_the_blackout() -> None:
    hourly = Outside(Interval(3600, at("2026-01-31 00:00:00")), NIGHT)
    last = at("2026-01-31 21:00:00")
    assert stale_at(hourly, last) == at("2026-02-01 06:00:00") + timedelta(minutes=30)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("22:00", "has '22:00'"),
        ("22:00-24:00", "has '22:00-24:00'"),
        ("22:00-06:00,", "has ''"),
        ("9:00-10:00", "has '9:00-10:00'"),
        ("22:00-06:00-07:00", "has '22:00-06:00-07:00'"),
        ("06:00-06:00", "leaves no time of the day"),
        ("00:00-12:00,12:00-00:00", "leaves no time of the day"),
    ],
)
def test_a_window_that_is_none(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        blackout.parse(text)
