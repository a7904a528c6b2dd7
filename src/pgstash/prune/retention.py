"""Which backups to keep and which to remove, with the reason for each: pure values, no store.

A rule can only keep a backup. A backup that no rule keeps is removed. The newest backup that is
proven to restore is kept like the newest itself: a backup proven to restore outranks an unproven
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

from pgstash.events import KEPT_AS_PROVEN

_DAY = timedelta(days=1)


class Dated(Protocol):
    """A backup as the rules see it; ``started`` is in UTC, ``size`` in bytes."""

    @property
    def name(self) -> str:
        """The archive's name without its prefix."""

    @property
    def started(self) -> datetime:
        """The start of the backup, according to its name."""

    @property
    def size(self) -> int:
        """The length of the archive."""

    @property
    def proven(self) -> datetime | None:
        """The time of its last drill that passed; None if none did."""


B = TypeVar("B", bound=Dated)


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to keep backups. A count is at least 1, or None to leave that rule out.

    ``days`` keeps by age. ``last`` keeps the N newest backups. ``daily`` to ``yearly`` keep the
    newest backup of each of the last N days, ISO weeks, months and years (all UTC) that have one.
    """

    days: int
    last: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None


@dataclass(frozen=True, slots=True)
class Decision(Generic[B]):
    """Whether to keep one backup, and why: there is always at least one reason."""

    backup: B
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kept(Generic[B]):
    backup: B
    reason: str


def decide(backups: Iterable[B], policy: Policy, now: datetime) -> list[Decision[B]]:
    """Return the decision for each backup, the oldest first.

    The newest backup is always kept, and so is the newest proven one. A backup dated after ``now``
    comes from a clock that was wrong: it is kept and counts for no other rule, so that it cannot
    take the place of the backup that is really the newest.
    """
    ordered = sorted(backups, key=lambda backup: (backup.started, backup.name))
    past = [backup for backup in reversed(ordered) if backup.started <= now]
    kept = [
        *_newest(past),
        *_newest_proven(past),
        *_future(ordered, now),
        *_young(past, policy.days, now),
        *_last(past, policy.last),
        *_periods(past, policy.daily, "day", lambda at: at.strftime("%Y-%m-%d")),
        *_periods(past, policy.weekly, "week", lambda at: at.strftime("%G-W%V")),
        *_periods(past, policy.monthly, "month", lambda at: at.strftime("%Y-%m")),
        *_periods(past, policy.yearly, "year", lambda at: at.strftime("%Y")),
    ]
    reasons: dict[str, list[str]] = {}
    for each in kept:
        reasons.setdefault(each.backup.name, []).append(each.reason)
    removed = (_why_not(policy),)
    return [
        Decision(backup, backup.name in reasons, tuple(reasons.get(backup.name, removed)))
        for backup in ordered
    ]


def _newest(past: Sequence[B]) -> Iterable[_Kept[B]]:
    """Keep the newest backup; if it is an empty object, also the newest that is not."""
    if past:
        yield _Kept(past[0], "the newest")
    filled = next((backup for backup in past if backup.size), None)
    if filled is not None and filled is not past[0]:
        yield _Kept(filled, "the newest that is not empty")


def _newest_proven(past: Sequence[B]) -> Iterable[_Kept[B]]:
    """Keep the newest proven backup; one that is empty now was not empty when it was proven."""
    proven = next((backup for backup in past if backup.size and backup.proven), None)
    if proven is not None:
        yield _Kept(proven, KEPT_AS_PROVEN)


def _future(ordered: Sequence[B], now: datetime) -> Iterable[_Kept[B]]:
    return (_Kept(backup, "dated in the future") for backup in ordered if backup.started > now)


def _young(past: Sequence[B], days: int, now: datetime) -> Iterable[_Kept[B]]:
    reason = f"within {_days(days)}"
    # A quotient, because a large number of days may not fit into a timedelta.
    return (_Kept(backup, reason) for backup in past if (now - backup.started) / _DAY <= days)


def _last(past: Sequence[B], count: int | None) -> Iterable[_Kept[B]]:
    return (_Kept(backup, f"one of the last {count}") for backup in past[: count or 0])


def _periods(
    past: Sequence[B], count: int | None, period: str, label: Callable[[datetime], str]
) -> Iterable[_Kept[B]]:
    newest: dict[str, B] = {}
    for backup in past:
        newest.setdefault(label(backup.started), backup)
    latest = list(newest.items())[: count or 0]
    return (_Kept(backup, f"the newest of {period} {name}") for name, backup in latest)


def _why_not(policy: Policy) -> str:
    counts = (policy.last, policy.daily, policy.weekly, policy.monthly, policy.yearly)
    older = f"older than {_days(policy.days)}"
    return older if counts == (None,) * len(counts) else f"{older}, and kept by no other rule"


def _days(days: int) -> str:
    return "1 day" if days == 1 else f"{days} days"
