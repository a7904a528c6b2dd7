"""Times as people write them for --at: a date and a time, `yesterday 18:00`, `3 hours ago`.

Only the documented forms are read, and by this module: libraries that read any date guess the
order of day and month, and shift a local time that does not exist.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from pgstash.format.iso_time import iso
from pgstash.service.schedule import check_zone

_FORMS = '"2026-01-31 23:00", "2026-01-31 23:00 +01:00", "yesterday 18:00" or "3 hours ago"'

_CLOCK = r"(?P<hour>\d{1,2}):(?P<minute>\d{1,2})(:(?P<second>\d{1,2})([.,]\d+)?)?"
_ZONE = r"( ?(?P<zone>Z|UTC|[+-]\d{2}(:?\d{2})?))?"
_DATED = rf"(?P<year>\d{{4}})-(?P<month>\d{{1,2}})-(?P<day>\d{{1,2}})([ T]{_CLOCK}{_ZONE})?"
_NAMED = rf"(?P<named>today|yesterday) {_CLOCK}{_ZONE}"
_AGO = r"(?P<number>\d{1,6}) (?P<unit>minute|hour|day|week)s? ago"
# The offsets of places on earth: https://en.wikipedia.org/wiki/List_of_UTC_offsets
_WEST, _EAST = timedelta(hours=-12), timedelta(hours=14)

# What people often write, and what to write instead. The first that is found counts.
_REMEDIES = {
    r"\d ?[ap]\.?m\b": "Give the hour from 0 to 23: 11 pm is 23:00.",
    r"^(today|yesterday)$": 'Give the time of day too, for example "yesterday 18:00".',
    r"^\d{1,2}:\d{1,2}": 'Give the day too, for example "today 18:00".',
    r"\b(month|year)s? ago$": "Months and years differ in length: give a number of days, or a "
    "date.",
    r"^(backup_)?\d{8}_\d{6}": "That is the name of a backup: give it without --at.",
    r":\d{1,2} ?[a-z]{2,}": "Give the time zone as an offset from UTC, for example +01:00. Names "
    "of zones are not read: CST, for example, has several meanings.",
}


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment in UTC, and a warning about it, if there is one."""

    at: datetime
    warning: str = ""


@dataclass(frozen=True, slots=True)
class _Local:
    """A date and a time of day: the date itself, or the number of days before today.

    ``zone`` is None if none was given. ``is_old`` are the forms that earlier versions read in UTC.
    """

    day: date | int
    clock: time
    zone: tzinfo | None
    is_old: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A time as it was written; its meaning depends on the clock and the local zone."""

    text: str
    _form: _Local | timedelta

    def moment(self, now: datetime, zone: str) -> Moment:
        """Return the moment; ``now`` is the time in UTC, ``zone`` the name of the local zone.

        Raises ValueError if there is no such moment, if there are two, or if it is in the future.
        """
        try:
            if isinstance(self._form, timedelta):
                return Moment(now - self._form)
            found = self._moment(self._form, now, zone)
        except OverflowError:
            raise ValueError(f'"{self.text}" is too long ago, or too far ahead.') from None
        if found.at > now:
            raise ValueError(
                f'"{self.text}" is in the future: it means {iso(found.at)}, and now is {iso(now)}. '
                "For the latest backup, leave out --at. If you meant the time of another zone, add "
                "its offset from UTC, for example +01:00."
            )
        return found

    def _moment(self, form: _Local, now: datetime, zone: str) -> Moment:
        within = UTC if form.is_old else form.zone or _zone(zone)
        day = form.day
        if isinstance(day, int):
            day = now.astimezone(within).date() - timedelta(days=day)
        found = self._only_one(datetime.combine(day, form.clock), within)
        return Moment(found, self._difference(found, zone) if form.is_old else "")

    def _only_one(self, local: datetime, zone: tzinfo) -> datetime:
        """Return the moment of a local time, if there is exactly one.

        https://peps.python.org/pep-0495/
        """
        both = [local.replace(tzinfo=zone, fold=fold) for fold in (0, 1)]
        moments = [each.astimezone(UTC) for each in both]
        if moments[0] == moments[1]:
            return moments[0]
        shown = f"{local:%Y-%m-%d %H:%M}"
        if moments[0].astimezone(zone).replace(tzinfo=None) != local:
            raise ValueError(
                f'"{self.text}" does not exist in {zone}: the clocks were moved forward, past '
                f"{shown}. Give another time."
            )
        first, second = (f'"{shown} {_offset(each)}"' for each in both)
        raise ValueError(
            f'"{self.text}" happened twice in {zone}, because the clocks were moved back. Add the '
            f"offset: {first} was the first time, {second} the second."
        )

    def _difference(self, found: datetime, zone: str) -> str:
        """Return the warning about a time that was not read in the local zone."""
        try:
            there = found.replace(tzinfo=_zone(zone))
        except ValueError:  # TZ names no zone
            return ""
        if not there.utcoffset():
            return ""
        return (
            f'"{self.text}" was read in UTC, as in earlier versions: so are all dates alone, and '
            f"all times with seconds and without an offset. The time in {zone} is "
            f'"{there:%Y-%m-%d %H:%M:%S} {_offset(there)}"'
        )


def read(text: str) -> Written:
    """Read a time. Raises ValueError, which explains what to write, for a text of another form."""
    squeezed = " ".join(text.split())
    if found := _match(_AGO, squeezed):
        return Written(text, timedelta(**{f"{found['unit'].lower()}s": int(found["number"])}))
    if found := _match(_NAMED, squeezed):
        days = 1 if found["named"].lower() == "yesterday" else 0
        return Written(text, _Local(days, _clock(text, found), _fixed(text, found), is_old=False))
    if found := _match(_DATED, squeezed):
        is_old = "zone" not in found and ("hour" not in found or "second" in found)
        day = _date(text, found["year"], found["month"], found["day"])
        return Written(text, _Local(day, _clock(text, found), _fixed(text, found), is_old))
    refused = f'"{text}" is not a time in a form that is read.'
    if slashed := re.match(r"(\d{1,2})[/.](\d{1,2})[/.](\d{4})", squeezed, re.ASCII):
        raise ValueError(f"{refused} {_orders(*slashed.groups())}")
    for pattern, remedy in _REMEDIES.items():
        if re.search(pattern, squeezed, re.ASCII | re.IGNORECASE):
            raise ValueError(f"{refused} {remedy}")
    raise ValueError(f"{refused} Write {_FORMS}.")


def _match(form: str, text: str) -> dict[str, str] | None:
    found = re.fullmatch(form, text, re.ASCII | re.IGNORECASE)
    return {name: part for name, part in found.groupdict().items() if part} if found else None


def _date(text: str, year: str, month: str, day: str) -> date:
    try:
        return date(int(year), int(month), int(day))
    except ValueError:
        raise ValueError(f'"{text}" is not a day of the calendar.') from None


def _clock(text: str, found: dict[str, str]) -> time:
    try:
        hour, minute, second = (int(found.get(name, 0)) for name in ("hour", "minute", "second"))
        return time(hour, minute, second)
    except ValueError:
        raise ValueError(
            f'"{text}" is not a time of day: hours go from 0 to 23, minutes and seconds to 59.'
        ) from None


def _fixed(text: str, found: dict[str, str]) -> tzinfo | None:
    """Return the zone that was given, if one was."""
    given = found.get("zone")
    if given is None:
        return None
    parts = re.fullmatch(r"([+-])(\d{2}):?(\d{2})?", given)
    if parts is None:
        return UTC
    minutes = int(parts[3] or 0)
    offset = timedelta(hours=int(parts[2]), minutes=minutes) * (1 if parts[1] == "+" else -1)
    if not _WEST <= offset <= _EAST or minutes > 59:  # noqa: PLR2004 - of an hour
        raise ValueError(f'"{text}" has no offset of a time zone: these go from -12:00 to +14:00.')
    return timezone(offset)


def _zone(name: str) -> tzinfo:
    try:
        check_zone(name)
    except ValueError as error:
        raise ValueError(
            f'TZ {error}: "{name}". Set it to one such as Europe/Berlin, or add an offset from UTC '
            "to the time, for example +01:00."
        ) from None
    return ZoneInfo(name)


def _offset(moment: datetime) -> str:
    """Return the offset of a moment from UTC, as it is written for --at: ``+01:00``."""
    digits = f"{moment:%z}"
    return f"{digits[:3]}:{digits[3:5]}"


def _orders(one: str, other: str, year: str) -> str:
    """Return what a date with slashes may mean."""
    found: dict[str, None] = {}
    for day, month in ((one, other), (other, one)):
        with contextlib.suppress(ValueError):  # there is no month 13
            found[date(int(year), int(month), int(day)).isoformat()] = None
    return f"Write {' or '.join(found) or 'year-month-day'}."
