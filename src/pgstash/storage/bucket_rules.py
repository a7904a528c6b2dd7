"""What a bucket does with backups by itself: versions, default locks and lifecycle rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

Versioning = Literal["on", "suspended", "off"]


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """An enabled rule for objects of pgstash; each number of days is None if it does not do that.

    ``complete`` is whether it applies to all of them, whatever their names, sizes and tags. It
    removes current objects after ``removes`` days, or moves them to ``archive_class``, from which
    they have to be thawed, after ``archives`` days. It removes all noncurrent versions after
    ``frees`` days, and aborts unfinished uploads after ``aborts`` days.
    """

    name: str
    complete: bool = True
    removes: int | None = None
    archives: int | None = None
    archive_class: str = ""
    frees: int | None = None
    aborts: int | None = None


@dataclass(frozen=True, slots=True)
class BucketRules:
    """The rules of a bucket; None if they may not be read, or if the store has no such rules.

    New objects are locked for ``lock_days``, unless the request that stores them names a time.
    """

    versioning: Versioning | None = None
    lock_days: int | None = None
    lifecycle: Sequence[LifecycleRule] | None = None


@runtime_checkable
class HasRules(Protocol):
    """A store whose buckets may have rules."""

    def bucket_rules(self) -> BucketRules:
        """Return the rules that apply to backups, as far as they may be read; raises nothing."""
