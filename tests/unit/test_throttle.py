"""Progress is reported now and then."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pgstash.throttle import Throttle

if TYPE_CHECKING:
    import pytest


def test_progress_is_reported_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [100.0, 100.1, 100.2, 100.25, 100.3, 100.49, 100.5, 107.0, 107.1]
    clock = iter(times)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    throttle = Throttle()
    due = [throttle.is_due() for _ in times[1:]]
    assert due == [False, False, True, False, False, True, True, False]
