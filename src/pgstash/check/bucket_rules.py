"""The preflight of the bucket's own rules: do they keep backups as long as the retention does.

A rule that may not be read is unknown, and nothing is reported about it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.check.finding import Finding
from pgstash.counting import counted
from pgstash.storage.bucket_rules import HasRules, LifecycleRule, Versioning
from pgstash.storage.interface import Storage

_LONGER_LOCK = (
    "Pruning removes them when the lock has ended. Shorten the default retention of the bucket, or "
    "set S3_OBJECT_LOCK_DAYS, unless this is meant."
)
_NOT_FREED = (
    "Set PRUNE_VERSIONS=true, or add a lifecycle rule with NoncurrentVersionExpiration for all "
    "objects under BACKUP_PREFIX."
)
_REMOVED = "Remove it from the rule: pgstash itself removes old backups, and never the newest."
_ARCHIVED = "No drill can read them. Use GLACIER_IR, or more days, unless this is meant."
_ABORTED = "Give the rule more days than a backup takes."


@dataclass(frozen=True, slots=True)
class Plan:
    """The retention: ``days`` for every backup, and ``longest_days`` for the oldest one.

    ``locks`` is whether new backups have locks of their own, and ``prunes_versions`` whether
    pruning removes all versions of a backup.
    """

    days: int
    longest_days: int
    locks: bool
    prunes_versions: bool = False


def look(plan: Plan, storage: Storage) -> Iterator[Finding]:
    """Yield what the rules of the bucket mean for backups; nothing for a store without rules."""
    if not isinstance(storage, HasRules):
        return
    rules = storage.bucket_rules()
    if rules.versioning:
        yield from (
            _pruned_versions(rules.versioning)
            if plan.prunes_versions
            else _versioning(rules.versioning, rules.lifecycle)
        )
    if rules.lock_days and not plan.locks:
        yield _default_lock(rules.lock_days, plan.days)
    if rules.lifecycle is not None:
        yield _lifecycle(rules.lifecycle, plan.longest_days)


def _pruned_versions(versioning: Versioning) -> Iterator[Finding]:
    if versioning == "off":
        found = "off: PRUNE_VERSIONS has no effect, because deleted backups are gone at once"
        yield Finding("versioning", "warning", found, "Turn it on, or unset PRUNE_VERSIONS.")
    else:
        yield Finding("versioning", "ok", f"{versioning}: pruning removes all versions")


def _versioning(
    versioning: Versioning, lifecycle: Sequence[LifecycleRule] | None
) -> Iterator[Finding]:
    """Yield what becomes of deleted backups, unless they are gone at once."""
    topic = "versioning"
    if versioning != "on":
        return
    freeing = [rule for rule in lifecycle or () if rule.complete and rule.frees is not None]
    if lifecycle is None:
        yield Finding(topic, "ok", "on: deleted backups stay, hidden, as noncurrent versions")
    elif freeing:
        days = min(rule.frees or 0 for rule in freeing)
        found = f"on: deleted backups stay, hidden, for {counted(days, 'day')}"
        yield Finding(topic, "ok", found)
    else:
        yield Finding(
            topic,
            "warning",
            "on, and no lifecycle rule removes all noncurrent versions: deleted backups stay, "
            "hidden, and cost money for ever",
            _NOT_FREED,
        )


def _default_lock(lock_days: int, days: int) -> Finding:
    topic, found = "default retention", f"the bucket locks backups for {counted(lock_days, 'day')}"
    if lock_days <= days:
        return Finding(topic, "ok", found)
    kept = f"backups stay longer than BACKUP_RETENTION_DAYS ({counted(days, 'day')})"
    return Finding(topic, "warning", f"{found}: {kept}", _LONGER_LOCK)


def _lifecycle(rules: Sequence[LifecycleRule], longest_days: int) -> Finding:
    problems: list[tuple[str, str]] = []
    notes: list[str] = []
    for rule in rules:
        name = f'the rule "{rule.name}"' if rule.name else "a rule without a name"
        if rule.removes is not None:
            removes = f"{name} removes backups after {counted(rule.removes, 'day')}"
            if rule.removes < longest_days:
                earlier = f"earlier than the retention ({counted(longest_days, 'day')})"
                problems.append((f"{removes}, {earlier}, and the newest one too", _REMOVED))
            else:
                notes.append(f"{removes}, also the newest one")
        if rule.archives is not None and rule.archives < longest_days:
            moves = f"{name} moves backups to {rule.archive_class}"
            after = f"after {counted(rule.archives, 'day')}"
            thawed = "from then on they have to be thawed before a restore"
            problems.append((f"{moves} {after}: {thawed}", _ARCHIVED))
        if rule.aborts is not None and rule.aborts < 1:
            problems.append((f"{name} aborts the uploads of backups within a day", _ABORTED))
    if problems:
        found = "; ".join(problem for problem, _ in problems)
        remedies = dict.fromkeys(remedy for _, remedy in problems)
        return Finding("lifecycle", "warning", found, "\n".join(remedies))
    found = "; ".join(notes) or "no rule of the bucket removes or archives backups too early"
    return Finding("lifecycle", "ok", found)
