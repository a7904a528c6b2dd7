"""A run in another process decides as the service does."""

from __future__ import annotations

from datetime import timedelta

import pytest

from pgstash import events
from pgstash.errors import DatabaseLoginError, DatabaseUnreachableError, Interrupted
from pgstash.runtime import FollowUp, Runtime
from pgstash.service import blackout
from pgstash.service.attempt import Attempt
from pgstash.service.blackout import Blackout
from pgstash.service.retries import Retries
from pgstash.service.schedule import Interval
from support.clock import START, FakeClock

AWAY = DatabaseUnreachableError("no server")
REFUSED = DatabaseLoginError("no such role")
UNEXPECTED = ValueError("a fault")


@pytest.mark.parametrize("windows", ["", "02:01-02:10", "02:00-03:30"])
@pytest.mark.parametrize(
    "errors",
    [[AWAY] * 8, [REFUSED, AWAY, AWAY], [AWAY, REFUSED, UNEXPECTED], [UNEXPECTED, AWAY, REFUSED]],
    ids=["away", "refused first", "refused later", "unexpected first"],
)
def test_it_decides_as_the_service_does(errors: list[Exception], windows: str) -> None:
    clock = FakeClock()
    never = Blackout(blackout.parse(windows)) if windows else Blackout()
    runtime = Runtime(events.ignore, now=clock.now)
    retries = Retries(Interval(3600, START), runtime, blackout=never)
    for error in errors:
        clock.set(retries.next_run.at)
        retries.begin()
        attempt = Attempt.read(retries.attempt().text())
        clock.pass_by(7)
        assert attempt.follow_up(error, clock.now(), never) == retries.follow_up(error)


def test_nothing_follows_a_signal() -> None:
    attempt = Attempt(START, timedelta(minutes=1))
    assert attempt.follow_up(Interrupted(15), START, Blackout()) == FollowUp()


@pytest.mark.parametrize("text", ["", "[]", '{"scheduled": "x"}', "{"])
def test_what_is_no_attempt(text: str) -> None:
    with pytest.raises(ValueError, match=r"attempt|JSON|Expect"):
        Attempt.read(text)
