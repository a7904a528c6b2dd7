"""Times are written as ISO 8601 in UTC, and read back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pgstash.format.iso_time import iso, moment_of

MOMENT = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)


def test_a_time_is_written_in_utc() -> None:
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert iso(MOMENT) == iso(elsewhere) == "2026-01-31T02:00:00Z"


def test_what_was_written_is_read() -> None:
    assert moment_of(iso(MOMENT)) == MOMENT


@pytest.mark.parametrize("text", ["", "2026-01-31", "2026-01-31T02:00:00", "2026-01-31 02:00:00Z"])
def test_another_text_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="does not match"):
        moment_of(text)
