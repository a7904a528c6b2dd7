"""What check reports about the rules of a bucket."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgstash.check.bucket_rules import Plan, look
from pgstash.check.finding import Finding
from pgstash.storage.bucket_rules import BucketRules, LifecycleRule, Versioning
from pgstash.storage.memory import MemoryStorage

PLAN = Plan(days=7, longest_days=31, locks=False)
FREES = LifecycleRule("old", frees=30)


class Bucket(MemoryStorage):
    """A store with these rules."""

    def __init__(self, rules: BucketRules) -> None:
        super().__init__()
        self.rules = rules

    def bucket_rules(self) -> BucketRules:
        return self.rules


def found(rules: BucketRules, plan: Plan = PLAN) -> dict[str, Finding]:
    return {each.topic: each for each in look(plan, Bucket(rules))}


def test_nothing_is_reported_of_what_is_unknown() -> None:
    assert found(BucketRules()) == {}
    assert list(look(PLAN, MemoryStorage())) == []


def test_a_bucket_without_rules() -> None:
    findings = found(BucketRules(versioning="off", lifecycle=[]))
    assert {topic: each.state for topic, each in findings.items()} == {"lifecycle": "ok"}
    assert found(BucketRules(versioning="suspended")) == {}


@pytest.mark.parametrize(
    ("lifecycle", "state", "words"),
    [
        ([], "warning", "cost money for ever"),
        ([replace(FREES, complete=False)], "warning", "cost money for ever"),
        ([LifecycleRule("other", aborts=7)], "warning", "cost money for ever"),
        ([FREES, replace(FREES, frees=9)], "ok", "stay, hidden, for 9 days"),
        (None, "ok", "stay, hidden, as noncurrent versions"),
    ],
)
def test_what_becomes_of_deleted_backups(
    lifecycle: list[LifecycleRule] | None, state: str, words: str
) -> None:
    finding = found(BucketRules("on", lifecycle=lifecycle))["versioning"]
    assert finding.state == state
    assert words in finding.found
    assert ("NoncurrentVersionExpiration" in finding.remedy) == (state == "warning")


@pytest.mark.parametrize(
    ("versioning", "state"), [("on", "ok"), ("suspended", "ok"), ("off", "warning")]
)
def test_versions_that_pruning_removes(versioning: Versioning, state: str) -> None:
    plan = replace(PLAN, prunes_versions=True)
    finding = found(BucketRules(versioning, lifecycle=[]), plan)["versioning"]
    assert finding.state == state
    assert finding.found.startswith(versioning)
    assert ("PRUNE_VERSIONS" in finding.remedy) == (state == "warning")
    assert found(BucketRules(), plan) == {}


@pytest.mark.parametrize(("days", "state"), [(7, "ok"), (8, "warning")])
def test_a_default_retention_that_is_longer_than_the_retention(days: int, state: str) -> None:
    finding = found(BucketRules(lock_days=days))["default retention"]
    assert finding.state == state
    assert f"locks backups for {days} days" in finding.found
    assert ("BACKUP_RETENTION_DAYS (7 days)" in finding.found) == (state == "warning")
    assert found(BucketRules(lock_days=days), replace(PLAN, locks=True)) == {}


@pytest.mark.parametrize(
    ("rule", "state", "words"),
    [
        (LifecycleRule("a", removes=30), "warning", 'the rule "a" removes backups after 30 days'),
        (LifecycleRule("a", removes=31), "ok", 'the rule "a" removes backups after 31 days, also'),
        (LifecycleRule("", removes=1), "warning", "a rule without a name removes backups"),
        (LifecycleRule("a", archives=30, archive_class="GLACIER"), "warning", "to GLACIER after"),
        (LifecycleRule("a", archives=31, archive_class="GLACIER"), "ok", "no rule of the bucket"),
        (LifecycleRule("a", aborts=0), "warning", "aborts the uploads of backups within a day"),
        (LifecycleRule("a", aborts=1), "ok", "no rule of the bucket"),
        (FREES, "ok", "no rule of the bucket"),
    ],
)
def test_what_the_lifecycle_does_to_backups(rule: LifecycleRule, state: str, words: str) -> None:
    finding = found(BucketRules(lifecycle=[rule]))["lifecycle"]
    assert finding.state == state
    assert words in finding.found
    assert bool(finding.remedy) == (state == "warning")


def test_several_problems_are_reported_together() -> None:
    rules = [LifecycleRule("a", removes=1), LifecycleRule("b", removes=2, aborts=0)]
    finding = found(BucketRules(lifecycle=rules))["lifecycle"]
    assert finding.found.count(";") == 2
    assert len(finding.remedy.splitlines()) == 2
