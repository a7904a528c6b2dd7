"""What check reports about locks of backups."""

from __future__ import annotations

import pytest

from pgstash.check.object_lock import Lock, look


@pytest.mark.parametrize(("days", "state"), [(7, "ok"), (8, "warning")])
def test_a_lock_that_is_longer_than_the_retention(days: int, state: str) -> None:
    finding = look(Lock(days, "compliance", 7))
    assert finding.state == state
    assert f"for {days} days, in compliance mode" in finding.found
    assert ("S3_OBJECT_LOCK_DAYS" in finding.remedy) == (state == "warning")
