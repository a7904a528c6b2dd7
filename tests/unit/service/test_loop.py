"""The loop: at once, then without drift or overlap, through every failure, until a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from pgstash import events
from pgstash.errors import (
    ConfigurationError,
    DatabaseLoginError,
    DatabaseUnreachableError,
    Interrupted,
    StorageUnreachableError,
)
from pgstash.monitoring import event_log, log, messages
from pgstash.monitoring.redaction import Scrubber
from pgstash.runtime import FollowUp, Runtime
from pgstash.service import loop
from pgstash.service.retries import AFTER_FAILURE, NextRun, Retries
from pgstash.service.schedule import Cron, Interval, Schedule
from pgstash.signals import Interruption
from support.clock import START, FakeClock

HOURLY = Interval(3600, START)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


class Runs:
    """A job that remembers when it ran, takes its time, and does what the test says."""

    def __init__(self, clock: FakeClock, *, takes: float = 0.0) -> None:
        self._clock = clock
        self._takes = takes
        self.at: list[float] = []
        self.then: Callable[[int], None] = lambda _number: None

    def __call__(self, _runtime: Runtime) -> None:
        self.at.append((self._clock.now() - START).total_seconds())
        self._clock.pass_by(self._takes)
        self.then(len(self.at))


def run(
    job: Callable[[Runtime], object],
    schedule: Schedule,
    runtime: Runtime,
    clock: FakeClock,
    first: NextRun | None = None,
    *,
    exit_on_first_failure: bool = False,
) -> None:
    plan = Retries(schedule, runtime, first, exit_on_first_failure=exit_on_first_failure)
    loop.run(job, plan, runtime, clock.sleep)


def serve(
    job: Callable[[Runtime], object],
    clock: FakeClock,
    schedule: Schedule = HOURLY,
    *,
    until: float,
    first: NextRun | None = None,
    exit_on_first_failure: bool = False,
) -> list[events.Event]:
    """Run the service until a SIGTERM so many seconds after the start."""
    heard: list[events.Event] = []
    clock.signal_at(after(until), signal.SIGTERM)
    runtime = Runtime(heard.append, now=clock.now, random=bytes)
    with pytest.raises(Interrupted) as caught:
        run(job, schedule, runtime, clock, first, exit_on_first_failure=exit_on_first_failure)
    assert caught.value.signum == signal.SIGTERM
    return heard


class Failing(Runs):
    """A job that fails as the test says, run by run, and reports each failure as a backup does."""

    def __init__(self, clock: FakeClock, *errors: Exception | None, takes: float = 0.0) -> None:
        super().__init__(clock, takes=takes)
        self._errors = errors
        self.reported: list[FollowUp] = []

    def __call__(self, runtime: Runtime) -> None:
        super().__call__(runtime)
        number = len(self.at) - 1
        if number < len(self._errors) and (error := self._errors[number]):
            self.reported.append(runtime.follow_up(error))
            raise error


AWAY = DatabaseUnreachableError("no server")
NO_STORE = StorageUnreachableError("no store")
REFUSED = DatabaseLoginError("no such role")
FOREVER = [AWAY] * 1000


def minutes(runs: Runs) -> list[float]:
    return [at / 60 for at in runs.at]


def test_a_failure_is_tried_again_after_a_minute_and_then_twice_as_long() -> None:
    clock = FakeClock()
    runs = Failing(clock, *FOREVER)
    serve(runs, clock, Interval(86_400, START), until=86_400 - 1)
    assert minutes(runs) == [2**number - 1 for number in range(11)]


def test_the_delay_counts_from_the_end_of_the_failed_run() -> None:
    clock = FakeClock()
    runs = Failing(clock, *FOREVER, takes=100)
    serve(runs, clock, until=1000)
    assert runs.at == [0, 160, 380, 720]


def test_a_success_ends_it_and_the_grid_goes_on() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY, AWAY, None, None, AWAY)
    serve(runs, clock, until=2 * 3600 + 61)
    assert minutes(runs) == [0, 1, 3, 60, 120, 121]


def test_a_long_outage_ends_with_one_try_at_each_scheduled_time() -> None:
    clock = FakeClock()
    runs = Failing(clock, *FOREVER)
    serve(runs, clock, until=4 * 3600 + 1)
    assert minutes(runs) == [0, 1, 3, 7, 15, 31, 60, 120, 180, 240]


def test_a_scheduled_time_is_kept_between_two_tries() -> None:
    clock = FakeClock(START - timedelta(minutes=5))
    runs = Failing(clock, *FOREVER)
    serve(runs, clock, Cron("0 2 * * *"), until=10 * 60)
    assert minutes(runs) == [-5, -4, -2, 0, 8]


def test_an_interval_of_a_minute_leaves_no_room() -> None:
    clock = FakeClock()
    runs = Failing(clock, *FOREVER)
    heard = serve(runs, clock, Interval(60, START), until=181)
    assert runs.at == [0, 60, 120, 180]
    assert not any(isinstance(each, events.NextRunPlanned) and each.reason for each in heard)


@pytest.mark.parametrize(
    "error", [REFUSED, RuntimeError("unforeseen"), DatabaseUnreachableError("", retryable=False)]
)
def test_what_another_try_would_not_fix_waits_for_the_schedule(error: Exception) -> None:
    clock = FakeClock()
    runs = Failing(clock, error)
    serve(runs, clock, until=3601)
    assert runs.at == [0, 3600]
    assert runs.reported == [FollowUp(after(3600))]


def test_services_that_wait_for_the_same_server_spread() -> None:
    clock = FakeClock()
    runs = Failing(clock, *FOREVER)
    clock.signal_at(after(1000), signal.SIGTERM)
    latest = Runtime(events.ignore, now=clock.now, random=lambda count: b"\xff" * count)
    with pytest.raises(Interrupted):
        run(runs, HOURLY, latest, clock)
    assert [round(at) for at in runs.at] == [0, 75, 225, 525]


def test_the_planned_time_is_the_reported_one() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY, REFUSED)
    heard = serve(runs, clock, until=3601)
    planned = [each for each in heard if isinstance(each, events.NextRunPlanned)]
    assert planned[:2] == [
        events.NextRunPlanned(after(60), 60, AFTER_FAILURE),
        events.NextRunPlanned(after(3600), 3540),
    ]
    assert [each.at for each in runs.reported] == [after(60), after(3600)]
    assert [each.early for each in runs.reported] == [True, False]


def test_a_failure_for_the_same_reason_is_new_only_at_its_scheduled_time() -> None:
    clock = FakeClock()
    runs = Failing(clock, *[AWAY, NO_STORE, AWAY, AWAY, NO_STORE, REFUSED, AWAY, AWAY])
    serve(runs, clock, until=2 * 3600 + 1)
    assert minutes(runs) == [0, 1, 3, 7, 15, 31, 60, 120]
    repeated = [each.repeated for each in runs.reported]
    assert repeated == [False, False, True, True, True, False, False, False]


def test_a_scheduled_run_reports_each_reason_anew() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY, NO_STORE, AWAY, None, AWAY, NO_STORE, AWAY)
    serve(runs, clock, until=3600 + 181)
    assert minutes(runs) == [0, 1, 3, 7, 60, 61, 63]
    repeated = [each.repeated for each in runs.reported]
    assert repeated == [False, False, True, False, False, True]


def test_after_a_suspend_a_try_is_due_at_once() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY)
    clock.plan(after(10), lambda: clock.pass_by(1000))
    serve(runs, clock, until=2000)
    assert runs.at[0] == 0
    assert 1000 < runs.at[1] <= 1010 + loop.LONGEST_NAP


def test_a_clock_that_is_set_back_does_not_put_a_try_off() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY)
    a_day_ago = -86_400
    clock.plan(after(10), lambda: clock.set(after(a_day_ago)))
    heard = serve(runs, clock, until=a_day_ago + 600)
    assert runs.at == [0, a_day_ago + 60]
    assert sum(isinstance(event, events.Warned) for event in heard) == 1


def test_a_signal_ends_the_wait_for_a_try() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY)
    serve(runs, clock, until=59)
    assert runs.at == [0]


def test_at_once_and_then_every_interval() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    heard = serve(runs, clock, until=3 * 3600 + 1)
    assert runs.at == [0, 3600, 7200, 10800]
    assert heard[:3] == [
        events.IterationStarted(1),
        events.NextRunPlanned(after(3600), 3600),
        events.IterationStarted(2),
    ]


def test_a_thousand_late_runs_do_not_drift() -> None:
    clock = FakeClock(late=0.4)
    runs = Runs(clock, takes=7.3)
    serve(runs, clock, until=1000 * 3600 + 30)
    assert len(runs.at) == 1001
    assert all(0 <= at - 3600 * number < 1 for number, at in enumerate(runs.at))


def test_at_once_and_then_as_cron_says() -> None:
    clock = FakeClock(after(1234))
    runs = Runs(clock)
    serve(runs, clock, Cron("30 4 * * *", "Europe/Berlin"), until=3 * 86_400)
    half_past_three_utc = 90 * 60
    assert runs.at == [1234, *(half_past_three_utc + day * 86_400 for day in range(3))]


@pytest.mark.parametrize(
    ("takes", "expected"),
    [
        (3599, [0, 3600, 7200, 10800]),
        (3600, [0, 3600, 7200, 10800]),
        (3601, [0, 3601, 7202, 10803]),
        (9000, [0, 9000]),
    ],
)
def test_a_run_that_takes_longer_than_the_interval_is_followed_at_once_by_one(
    takes: float, expected: list[float]
) -> None:
    clock = FakeClock()
    runs = Runs(clock, takes=takes)

    def end(number: int) -> None:
        if number == len(expected):
            raise Interrupted(signal.SIGTERM)

    runs.then = end
    heard: list[events.Event] = []
    with pytest.raises(Interrupted):
        run(runs, HOURLY, Runtime(heard.append, now=clock.now), clock)
    assert runs.at == expected


def test_many_missed_runs_are_one_and_then_the_grid_goes_on() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    runs.then = lambda number: clock.pass_by(10_000 if number == 1 else 1)
    heard = serve(runs, clock, until=5 * 3600)
    assert runs.at == [0, 10_000, 10_800, 14_400]
    assert events.NextRunPlanned(after(3600), 0.0) in heard


def test_a_machine_that_slept_runs_once_soon_after() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    clock.plan(after(100), lambda: clock.pass_by(86_400))
    serve(runs, clock, until=86_400 + 7200 + 1)
    assert runs.at[0] == 0
    assert 86_500 <= runs.at[1] <= 86_500 + loop.LONGEST_NAP
    assert runs.at[2:] == [86_400 + 3600, 86_400 + 7200]
    assert max(clock.slept) <= loop.LONGEST_NAP


def test_a_clock_that_is_set_back_does_not_stop_the_backups() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    a_year_ago = -365 * 86_400

    def end(number: int) -> None:
        if number == 3:
            raise Interrupted(signal.SIGTERM)

    runs.then = end
    clock.plan(after(100), lambda: clock.set(after(a_year_ago)))
    heard: list[events.Event] = []
    with pytest.raises(Interrupted):
        run(runs, HOURLY, Runtime(heard.append, now=clock.now), clock)
    assert runs.at == [0, a_year_ago + 3600, a_year_ago + 7200]
    assert sum(isinstance(event, events.Warned) for event in heard) == 1


def test_a_clock_that_is_corrected_does_not_repeat_a_run() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    runs.then = lambda _number: clock.pass_by(-0.7)
    heard = serve(runs, clock, until=2 * 3600 + 1)
    assert [round(at) for at in runs.at] == [0, 3600, 7200]
    assert not any(isinstance(event, events.Warned) for event in heard)


def test_every_kind_of_failure_is_survived(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(Scrubber(["PlantedSecret1"]), layout="text", debug=False)
    clock = FakeClock()
    runs = Runs(clock)
    failures = [
        DatabaseLoginError("no such role"),
        RuntimeError("unforeseen PlantedSecret1"),
        MemoryError(),
        OSError(28, "No space left on device"),
        RecursionError(),
    ]

    def fail(number: int) -> None:
        if number <= len(failures):
            raise failures[number - 1]

    runs.then = fail
    serve(runs, clock, until=7 * 3600 + 1)
    assert len(runs.at) == 8
    out, err = capsys.readouterr()
    assert err.count("Traceback") == 4
    assert "RuntimeError: unforeseen ***" in err
    assert "PlantedSecret1" not in out + err


def test_what_no_further_run_would_mend_ends_it() -> None:
    clock = FakeClock()

    def job(_runtime: Runtime) -> None:
        raise ConfigurationError(["S3_ENDPOINT cannot be used"])

    with pytest.raises(ConfigurationError):
        run(job, HOURLY, Runtime(events.ignore, now=clock.now), clock)


class DeferredSignal(Interruption):
    """One that a job deferred."""

    def raise_if_interrupted(self) -> None:
        raise Interrupted(signal.SIGINT)


def interrupted_during_a_job(clock: FakeClock) -> Runtime:
    return Runtime(events.ignore, DeferredSignal(), now=clock.now)


def test_a_deferred_signal_ends_the_loop_before_the_next_wait() -> None:
    clock = FakeClock()
    runs = Runs(clock)

    with pytest.raises(Interrupted):
        run(runs, HOURLY, interrupted_during_a_job(clock), clock)
    assert runs.at == [0]
    assert clock.slept == []


def test_a_deferred_signal_ends_the_loop_after_a_failure_too() -> None:
    clock = FakeClock()

    def job(_runtime: Runtime) -> None:
        raise DatabaseUnreachableError("no server")

    with pytest.raises(Interrupted):
        run(job, HOURLY, interrupted_during_a_job(clock), clock)


def test_what_the_log_says(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(Scrubber(), layout="text", debug=False)
    event_log.listen(events.IterationStarted(7))
    event_log.listen(events.NextRunPlanned(after(3600), 3598.4))
    event_log.listen(events.NextRunPlanned(after(3600), 0))
    event_log.listen(events.NextRunPlanned(after(60), 60, AFTER_FAILURE))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "INFO Iteration 7",
        "INFO Next run at 2026-01-31T03:00:00Z (in 59m 58s)",
        "INFO Next run at 2026-01-31T03:00:00Z (now: it is overdue)",
        f"INFO Next run at 2026-01-31T02:01:00Z (in 1m): {AFTER_FAILURE}",
    ]


@pytest.mark.parametrize(
    ("duration", "shown"),
    [(0, "0s"), (0.4, "0s"), (59.6, "1m"), (3600, "1h"), (90_061, "1d 1h"), (7265, "2h 1m")],
)
def test_times_to_wait(duration: float, shown: str) -> None:
    assert messages.span(duration) == shown


def test_the_first_run_may_be_due_later() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    first = NextRun(after(600), reason="the newest backup, backup_1, is 50m old")
    heard = serve(runs, clock, Interval(3600, first.at), until=2 * 3600, first=first)
    assert runs.at == [600, 4200]
    assert heard[0] == events.NextRunPlanned(after(600), 600, first.reason)


def test_the_first_run_may_be_overdue() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    first = NextRun(START, reason="there is no recent backup")
    heard = serve(runs, clock, until=60, first=first)
    assert runs.at == [0]
    assert heard[0] == events.NextRunPlanned(START, 0, first.reason)


def test_a_signal_ends_the_wait_for_the_first_run() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    serve(runs, clock, until=599, first=NextRun(after(600), reason="it is not old enough"))
    assert runs.at == []


def test_a_clock_that_is_set_back_does_not_put_off_the_first_run() -> None:
    clock = FakeClock()
    runs = Runs(clock)
    clock.plan(after(10), lambda: clock.set(after(-86_400)))
    first = NextRun(after(600), reason="it is not old enough")
    serve(runs, clock, Interval(3600, first.at), until=-86_400 + 3600, first=first)
    assert runs.at == [600 - 86_400]


def test_the_service_ends_by_a_failure_before_the_first_success_if_asked_to() -> None:
    clock = FakeClock()
    runs = Failing(clock, AWAY, REFUSED)
    runtime = Runtime(events.ignore, now=clock.now, random=bytes)
    clock.signal_at(after(7200), signal.SIGTERM)
    with pytest.raises(DatabaseLoginError):
        run(runs, HOURLY, runtime, clock, exit_on_first_failure=True)
    assert runs.at == [0, 60]
    assert [each.at for each in runs.reported] == [after(60), None]


@pytest.mark.parametrize("first", [AWAY, RuntimeError("unforeseen"), None])
def test_another_failure_ends_nothing(first: Exception | None) -> None:
    clock = FakeClock()
    runs = Failing(clock, first, None, REFUSED)
    serve(runs, clock, until=2 * 3600 + 1, exit_on_first_failure=True)
    assert len(runs.at) == 3 + (first is AWAY)
