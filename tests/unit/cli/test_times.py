"""Times for --at: every documented form has one meaning, and anything else is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgstash.cli import times

NOW = datetime(2026, 11, 30, 0, 30, tzinfo=UTC)
BERLIN = "Europe/Berlin"
# The forms that --at had before it read others.
OLD_FORMS = ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]
ZONES = [
    "UTC",
    BERLIN,
    "America/New_York",
    "America/Havana",
    "Africa/Cairo",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
]

moments = st.datetimes(
    datetime(2000, 1, 1),  # noqa: DTZ001 - Hypothesis wants these without a zone
    datetime(2026, 11, 29),  # noqa: DTZ001 - as above
    timezones=st.just(UTC),
).map(lambda moment: moment.replace(microsecond=0))
zones = st.sampled_from(ZONES)


def moment(text: str, zone: str = "UTC", now: datetime = NOW) -> datetime:
    return times.read(text).moment(now, zone).at


def refusal(text: str, zone: str = "UTC", now: datetime = NOW) -> str:
    with pytest.raises(ValueError, match=r"\.$") as refused:
        moment(text, zone, now)
    assert text in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("text", "in_utc"),
    [
        ("2026-11-29 23:00", "2026-11-29 22:00:00"),
        ("2026-11-29T23:00", "2026-11-29 22:00:00"),
        ("  2026-11-29   23:00 ", "2026-11-29 22:00:00"),
        ("2026-07-01 23:00", "2026-07-01 21:00:00"),
        ("2026-11-29 23:00 +03:00", "2026-11-29 20:00:00"),
        ("2026-11-29 23:00+0300", "2026-11-29 20:00:00"),
        ("2026-11-29 18:30-05", "2026-11-29 23:30:00"),
        ("2026-11-29 23:00:59 -01:30", "2026-11-30 00:30:00"),
        ("2026-11-29 23:00:07.123+01", "2026-11-29 22:00:07"),
        ("2026-11-29 23:00Z", "2026-11-29 23:00:00"),
        ("2026-11-29 23:00:01 utc", "2026-11-29 23:00:01"),
        # In Berlin it is the 30th already.
        ("yesterday 18:00", "2026-11-29 17:00:00"),
        ("Yesterday 18:00:30", "2026-11-29 17:00:30"),
        ("yesterday 18:00 Z", "2026-11-29 18:00:00"),
        ("yesterday 18:00 -05:00", "2026-11-28 23:00:00"),
        ("today 01:15", "2026-11-30 00:15:00"),
        ("3 hours ago", "2026-11-29 21:30:00"),
        ("1 hour ago", "2026-11-29 23:30:00"),
        ("90 minutes ago", "2026-11-29 23:00:00"),
        ("2 days ago", "2026-11-28 00:30:00"),
        ("1 week ago", "2026-11-23 00:30:00"),
        ("0 minutes ago", "2026-11-30 00:30:00"),
    ],
)
def test_the_documented_forms(text: str, in_utc: str) -> None:
    # One minute later, because one form has the seconds of it.
    now = NOW.replace(minute=31) if "00:59 " in text else NOW
    found = times.read(text).moment(now, BERLIN)
    assert f"{found.at:%Y-%m-%d %H:%M:%S}" == (in_utc if now == NOW else "2026-11-30 00:30:59")
    assert found.at.tzinfo is UTC
    assert found.warning == ""


@given(moments, st.sampled_from(OLD_FORMS), zones)
def test_old_forms_keep_their_meaning(wanted: datetime, form: str, zone: str) -> None:
    text = wanted.strftime(form)
    meant = datetime.strptime(text, form).replace(tzinfo=UTC)
    found = times.read(text).moment(NOW, zone)
    assert found.at == meant
    differs = meant.astimezone(ZoneInfo(zone)).utcoffset() != timedelta(0)
    assert bool(found.warning) <= (differs and not form.endswith("Z"))


def test_an_old_form_that_is_not_read_in_the_local_zone_is_reported() -> None:
    found = times.read("2026-07-01 12:00:00").moment(NOW, BERLIN)
    assert found.at == datetime(2026, 7, 1, 12, tzinfo=UTC)
    [_, advice] = found.warning.split("The time in Europe/Berlin is ")
    assert moment(advice.strip('"')) == datetime(2026, 7, 1, 10, tzinfo=UTC)
    assert times.read("2026-07-01").moment(NOW, BERLIN).warning
    for text, zone in (
        ("2026-07-01 12:00:00", "UTC"),
        ("2026-07-01 12:00:00", ":/etc/localtime"),
        ("2026-07-01T12:00:00Z", BERLIN),
        ("2026-07-01 12:00", BERLIN),
    ):
        assert times.read(text).moment(NOW, zone).warning == ""


@given(moments, st.integers(-12 * 4, 14 * 4))
def test_an_offset_means_the_same_moment_in_any_zone(wanted: datetime, quarters: int) -> None:
    there = wanted.astimezone(timezone(timedelta(minutes=15 * quarters)))
    text = f"{there:%Y-%m-%d %H:%M:%S %z}"
    assert {moment(text, zone) for zone in ZONES} == {wanted}


@given(moments, zones)
@example(datetime(2026, 10, 25, 0, 30, tzinfo=UTC), BERLIN)
@example(datetime(2026, 10, 25, 1, 30, tzinfo=UTC), BERLIN)
def test_a_local_time_is_read_as_the_one_moment_that_shows_it(wanted: datetime, zone: str) -> None:
    there = wanted.replace(second=0).astimezone(ZoneInfo(zone))
    text = f"{there:%Y-%m-%d %H:%M}"
    if there.replace(fold=0).utcoffset() == there.replace(fold=1).utcoffset():
        assert moment(text, zone) == there
        return
    refused = refusal(text, zone)
    # Of the two that are offered, one is what was wanted.
    assert "twice" in refused
    assert wanted.replace(second=0) in [moment(each) for each in refused.split('"')[3::2]]


def test_a_local_time_that_does_not_exist() -> None:
    assert "does not exist in Europe/Berlin" in refusal("2026-03-29 02:30", BERLIN)
    assert moment("2026-03-29 02:30 +01:00", BERLIN) == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
    now = datetime(2026, 3, 30, 12, tzinfo=UTC)
    assert "does not exist" in refusal("yesterday 02:59", BERLIN, now)
    assert "twice" in refusal("today 02:00", BERLIN, datetime(2026, 10, 25, 12, tzinfo=UTC))
    # This day did not exist there.
    assert "does not exist" in refusal("2011-12-30 12:00", "Pacific/Apia")


def test_a_time_in_the_future() -> None:
    for text in ("2026-11-30 00:31", "today 18:00", "2099-01-01", "2026-11-29 23:00 -12:00"):
        refused = refusal(text)
        assert "is in the future" in refused
        assert "now is 2026-11-30T00:30:00Z" in refused
    assert moment("2026-11-30 00:30") == NOW


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("11/12/2026", "Write 2026-12-11 or 2026-11-12."),
        ("11.12.2026 18:00", "Write 2026-12-11 or 2026-11-12."),
        ("25/12/2026", "Write 2026-12-25."),
        ("11/11/2026", "Write 2026-11-11."),
        ("40/40/2026", "Write year-month-day."),
        ("2026-11-29 11pm", "11 pm is 23:00"),
        ("2026-11-29 11:00 PM", "11 pm is 23:00"),
        ("yesterday 6 a.m.", "11 pm is 23:00"),
        ("yesterday", '"yesterday 18:00"'),
        ("today", '"yesterday 18:00"'),
        ("18:00", '"today 18:00"'),
        ("2 months ago", "give a number of days"),
        ("1 year ago", "give a number of days"),
        ("2026-11-29 23:00 CST", "+01:00"),
        ("2026-11-29 23:00:00 CET", "+01:00"),
        ("2026-11-29 23:00 Europe/Berlin", "+01:00"),
        ("backup_20261129_220003.sql.gz", "without --at"),
        ("20261129_220003", "without --at"),
        ("2026-02-29", "not a day of the calendar"),
        ("0000-01-01 00:00", "not a day of the calendar"),
        ("2026-11-29 24:00", "hours go from 0 to 23"),
        ("yesterday 18:60", "minutes and seconds to 59"),
        ("2026-11-29 23:00 +15:00", "from -12:00 to +14:00"),
        ("2026-11-29 23:00 +01:60", "from -12:00 to +14:00"),
        ("999999 weeks ago", "too long ago"),
        ("0001-01-01 00:00 +14:00", "too long ago"),
        ("9999-12-31 23:59 -12:00", "too far ahead"),
        ("half past nine", '"2026-01-31 23:00"'),
        ("-3 hours ago", '"2026-01-31 23:00"'),
        ("3 hours", '"2026-01-31 23:00"'),
        ("last monday", '"3 hours ago"'),
        ("\N{FULLWIDTH DIGIT TWO}026-11-29", '"2026-01-31 23:00"'),
        ("", '"2026-01-31 23:00"'),
    ],
)
def test_what_is_refused_and_what_to_write_instead(text: str, remedy: str) -> None:
    assert remedy in refusal(text)


def test_only_a_local_time_needs_a_zone() -> None:
    for zone in ("", ":/etc/localtime", "CET-1CEST", "../etc/passwd"):
        with pytest.raises(ValueError, match=r"^TZ is not the name of a time zone: "):
            moment("2026-11-29 23:00", zone)
        for text in ("2026-11-29", "2026-11-29 23:00 Z", "3 hours ago"):
            moment(text, zone)


words = st.sampled_from(
    [*"T:+Z/.3", "today", "yesterday", "ago", "hours", "weeks", "2026-11-29", "02:30", "-01:00"]
)


@given(
    st.one_of(st.text(), st.lists(words).map(" ".join), st.lists(words).map("".join)),
    zones,
)
def test_any_text_is_read_or_refused(text: str, zone: str) -> None:
    try:
        assert moment(text, zone) <= NOW
    except ValueError as refused:
        assert text in str(refused)  # noqa: PT017 - either outcome is right
