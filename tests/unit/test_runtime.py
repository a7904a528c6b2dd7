"""The clock of a runtime is the machine's, in UTC."""

from __future__ import annotations

import time
from datetime import timedelta

from pgstash import events
from pgstash.runtime import Runtime


def test_the_machines_clock() -> None:
    runtime = Runtime(events.ignore)
    before = runtime.now()
    time.sleep(0.01)
    assert runtime.now() > before
    assert before.utcoffset() == timedelta()
