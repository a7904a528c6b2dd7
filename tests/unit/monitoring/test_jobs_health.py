"""`/readyz` of a service for many databases."""

from __future__ import annotations

from datetime import datetime, timedelta

from pgstash.monitoring.jobs_health import Failure, JobsHealth
from support.clock import START, FakeClock

HOUR = timedelta(hours=1)


def stale_at(last: datetime) -> datetime:
    return last + 1.5 * HOUR


def test_it_is_ready_while_every_job_is_fresh() -> None:
    clock = FakeClock()
    known = JobsHealth(clock.now)
    well, facts = known.facts()
    assert (well, facts["status"]) == (False, "no jobs yet")
    known.added("shop", stale_at, backup=START, appeared=None)
    known.added("crm", stale_at, backup=None, appeared=None)
    well, facts = known.facts()
    assert (well, facts["status"], facts["not_ready"]) == (False, "not ready", 1)
    clock.set(START + HOUR)
    known.ended("crm", drill=False, started=START + HOUR, failure=None)
    well, facts = known.facts()
    assert (well, facts["status"], facts["not_ready"]) == (True, "ready", 0)
    clock.set(START + 2 * HOUR)
    failure = Failure(10, "no server" * 100, clock.now())
    known.ended("shop", drill=False, started=clock.now(), failure=failure)
    well, facts = known.facts()
    assert not well
    assert facts["jobs"] == {
        "crm": {
            "status": "ready",
            "last_backup": "2026-01-31T03:00:00Z",
            "stale_since": None,
            "last_failure": None,
            "last_failed_drill": None,
        },
        "shop": {
            "status": "stale",
            "last_backup": "2026-01-31T02:00:00Z",
            "stale_since": "2026-01-31T03:30:00Z",
            "last_failure": {
                "status": 10,
                "at": "2026-01-31T04:00:00Z",
                "message": ("no server" * 100)[:500],
            },
            "last_failed_drill": None,
        },
    }
    known.removed("shop")
    assert known.facts()[0]


def test_a_new_database_has_time_for_its_first_backup() -> None:
    clock = FakeClock()
    known = JobsHealth(clock.now)
    known.added("new", stale_at, backup=None, appeared=START)
    assert known.facts()[0]
    clock.set(START + 2 * HOUR)
    well, facts = known.facts()
    assert not well
    assert "no backup yet" in str(facts)


def test_a_failed_drill_makes_it_unready_until_one_passes() -> None:
    known = JobsHealth(FakeClock().now)
    known.added("a", stale_at, backup=START, appeared=None)
    known.ended("a", drill=True, started=START, failure=Failure(42, "rows", START))
    known.ended("a", drill=False, started=START, failure=None)
    well, facts = known.facts()
    assert not well
    assert "drill failed" in str(facts)
    known.ended("a", drill=True, started=START, failure=None)
    assert known.facts()[0]
    known.ended("gone", drill=True, started=START, failure=None)


def test_what_cannot_be_backed_up_makes_it_unready() -> None:
    known = JobsHealth(FakeClock().now)
    known.added("a", stale_at, backup=START, appeared=None)
    known.unavailable({"all databases of eu": Failure(10, "no server", START)})
    well, facts = known.facts()
    assert (well, facts["not_ready"]) == (False, 1)
    jobs = facts["jobs"]
    assert isinstance(jobs, dict)
    assert jobs["all databases of eu"]["status"] == "unavailable"
    assert jobs["all databases of eu"]["last_failure"]["message"] == "no server"
    known.unavailable({})
    assert known.facts()[0]


def test_a_backup_from_the_future_becomes_stale_after_the_clock_was_set_back() -> None:
    clock = FakeClock()
    known = JobsHealth(clock.now)
    known.added("a", stale_at, backup=START + 1000 * HOUR, appeared=None)
    known.added("new", stale_at, backup=None, appeared=START + 1000 * HOUR)
    known.set_back(START)
    assert known.facts()[0]
    clock.set(START + 2 * HOUR)
    _, facts = known.facts()
    assert facts["not_ready"] == 2
