"""Which backups to keep and which to remove, and the reason for each: pure values, no store.

Every rule may keep a backup, none may remove one: what no rule keeps is removed. The newest that
is proven to restore is kept like the newest itself: a promise is worth less than a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

PROVEN = "the newest that is proven to restore"
"""The reason of the one backup that goes only when a newer one is proven."""

_DAY = timedelta(days=1)


class Dated(Protocol):
    """What a rule sees of a backup: ``started`` is UTC, by the name; ``size`` in bytes."""

    @property
    def name(self) -> str:
        """The archive's name without its prefix."""

    @property
    def started(self) -> datetime:
        """When the backup began."""

    @property
    def size(self) -> int:
        """The length of the archive."""

    @property
    def proven(self) -> datetime | None:
        """When a drill of it last passed; None where none did."""


B = TypeVar("B", bound=Dated)


@dataclass(frozen=True, slots=True)
class Policy:
    """How long to keep backups. A count of None leaves that rule out; none is below 1.

    ``days`` keeps by age. ``last`` keeps the newest so many; ``daily`` to ``yearly`` keep the
    newest of each of the so many latest days, ISO weeks, months and years (all UTC) that
    have a backup at all.
    """

    days: int
    last: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None


@dataclass(frozen=True, slots=True)
class Decision(Generic[B]):
    """What becomes of one backup, and why: there is always at least one reason."""

    backup: B
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Kept(Generic[B]):
    backup: B
    reason: str


def decide(backups: Iterable[B], policy: Policy, now: datetime) -> list[Decision[B]]:
    """Return what becomes of each backup, the oldest first.

    The newest backup is always kept, and so is the newest that is proven. One that is dated
    after ``now`` comes from a clock that was wrong: it is kept, and counts for no other rule,
    so that it never stands in for a backup that is really the newest.
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
    """Keep the last good backup: an empty object of its name is none, so the one before, too."""
    if past:
        yield _Kept(past[0], "the newest")
    filled = next((backup for backup in past if backup.size), None)
    if filled is not None and filled is not past[0]:
        yield _Kept(filled, "the newest that is not empty")


def _newest_proven(past: Sequence[B]) -> Iterable[_Kept[B]]:
    """Keep the last backup that is known to restore; what is empty now was not when it did."""
    proven = next((backup for backup in past if backup.size and backup.proven), None)
    if proven is not None:
        yield _Kept(proven, PROVEN)


def _future(ordered: Sequence[B], now: datetime) -> Iterable[_Kept[B]]:
    return (_Kept(backup, "dated in the future") for backup in ordered if backup.started > now)


def _young(past: Sequence[B], days: int, now: datetime) -> Iterable[_Kept[B]]:
    reason = f"within {_days(days)}"
    # A quotient, because a timedelta of that many days may be beyond what one can hold.
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
