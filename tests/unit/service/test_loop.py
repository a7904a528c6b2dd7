"""The loop: at once, then without drift or overlap, through every failure, until a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest

from pgstash import events, service
from pgstash.errors import ConfigurationError, DatabaseUnreachableError, Interrupted
from pgstash.monitoring import listener, log, wording
from pgstash.monitoring.scrub import Scrubber
from pgstash.schedule import Cron, Interval, Schedule
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

    def __call__(self) -> None:
        self.at.append((self._clock.now() - START).total_seconds())
        self._clock.pass_by(self._takes)
        self.then(len(self.at))


def serve(
    job: Callable[[], object],
    clock: FakeClock,
    schedule: Schedule = HOURLY,
    *,
    until: float,
    hear: Callable[[], None] = lambda: None,
) -> list[events.Event]:
    """Run the service until a SIGTERM so many seconds after the start."""
    heard: list[events.Event] = []
    clock.signal_at(after(until), signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        service.run(job, schedule, clock, heard.append, hear)
    assert caught.value.signum == signal.SIGTERM
    return heard


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
        service.run(runs, HOURLY, clock, heard.append, lambda: None)
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
    assert 86_500 <= runs.at[1] <= 86_500 + service.LONGEST_NAP
    assert runs.at[2:] == [86_400 + 3600, 86_400 + 7200]
    assert max(clock.slept) <= service.LONGEST_NAP


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
        service.run(runs, HOURLY, clock, heard.append, lambda: None)
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
        DatabaseUnreachableError("no server"),
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

    def job() -> None:
        raise ConfigurationError(["S3_ENDPOINT cannot be used"])

    with pytest.raises(ConfigurationError):
        service.run(job, HOURLY, clock, events.ignore, lambda: None)


def test_a_signal_that_was_put_off_is_heard_before_the_next_wait() -> None:
    clock = FakeClock()
    runs = Runs(clock)

    def hear() -> None:
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        service.run(runs, HOURLY, clock, events.ignore, hear)
    assert runs.at == [0]
    assert clock.slept == []


def test_a_signal_that_was_put_off_is_heard_after_a_failure_too() -> None:
    clock = FakeClock()

    def job() -> None:
        raise DatabaseUnreachableError("no server")

    def hear() -> None:
        raise Interrupted(signal.SIGINT)

    with pytest.raises(Interrupted):
        service.run(job, HOURLY, clock, events.ignore, hear)


def test_what_the_log_says(capsys: pytest.CaptureFixture[str]) -> None:
    log.start(Scrubber(), layout="text", debug=False)
    listener.listen(events.IterationStarted(7))
    listener.listen(events.NextRunPlanned(after(3600), 3598.4))
    listener.listen(events.NextRunPlanned(after(3600), 0))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "INFO Iteration 7",
        "INFO Next run at 2026-01-31T03:00:00Z (in 59m 58s)",
        "INFO Next run at 2026-01-31T03:00:00Z (at once: it is overdue)",
    ]


@pytest.mark.parametrize(
    ("duration", "shown"),
    [(0, "0s"), (0.4, "0s"), (59.6, "1m"), (3600, "1h"), (90_061, "1d 1h"), (7265, "2h 1m")],
)
def test_times_to_wait(duration: float, shown: str) -> None:
    assert wording.span(duration) == shown


def test_the_machines_clock() -> None:
    clock = service.SystemClock()
    before = clock.now()
    clock.sleep(0.01)
    assert clock.now() > before
    assert before.utcoffset() == timedelta()
