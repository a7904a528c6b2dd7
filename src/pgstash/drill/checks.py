"""The checks of a drill: digests, the restored database, and what the user requires of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash.counting import counted
from pgstash.errors import DrillFailedError
from pgstash.format.manifest import Manifest
from pgstash.format.proof import Check
from pgstash.postgres.scratch import inspection

_MOST_PROBLEMS = 20
_NOT_VALID = b" NOT VALID;\n"


@dataclass(frozen=True, slots=True)
class Expected:
    """What the user requires of a restored database.

    ``min_tables`` is the smallest allowed number of tables, ``statements`` are the user's own
    checks.
    """

    min_tables: int | None
    statements: str | None


class UnvalidatedConstraints:
    """Counts the constraints of a script that are not to be validated, or more.

    A row of a table may have the same text and be counted too. Then the check may overlook a
    constraint that was not validated.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self._tail = b""

    def watch(self, chunk: bytes) -> None:
        """Take the next chunk of the script."""
        seen = self._tail + chunk if len(chunk) < len(_NOT_VALID) else chunk
        border = self._tail + chunk[: len(_NOT_VALID) - 1]
        self.count += chunk.count(_NOT_VALID) + border.count(_NOT_VALID)
        self._tail = seen[-len(_NOT_VALID) + 1 :]


def digests(manifest: Manifest, sessions: int) -> Check:
    """Return what a restore has verified when it ends: otherwise it does not commit."""
    found = f"SHA-256 of {counted(len(manifest.members), 'member')}"
    if sessions == 1:
        found += ", and of the archive, read as one script"
    else:
        found += f", read by {sessions} sessions"
    return Check("digests", passed=True, found=found)


def of_database(
    inspected: inspection.Inspection, expected: Expected, manifest: Manifest, unvalidated: int
) -> Iterator[Check]:
    """Check the restored database; ``unvalidated`` constraints may not be validated.

    Raises ScratchError if the database is lost.
    """
    yield Check("restore", passed=True, found="ran without an error")
    total = sum(table.rows for table in manifest.tables)
    yield _check("rows", inspected.rows(manifest.tables), f"tables, with {total} rows")
    yield _check("indexes", inspected.indexes(), "indexes are valid")
    yield _check("constraints", inspected.constraints(unvalidated), "constraints")
    yield _check("sequences", inspected.sequences(), "sequences, whose next values are free")
    if expected.min_tables is not None:
        count = inspected.table_count()
        found = f"{counted(count, 'table')}, and MIN_TABLE_COUNT is {expected.min_tables}"
        yield Check("MIN_TABLE_COUNT", count >= expected.min_tables, found)
    if expected.statements:
        for number, answer in enumerate(inspected.answers(expected.statements), start=1):
            yield Check(f"VERIFY_SQL, statement {number}", answer.passed, answer.found)


def _check(name: str, found: inspection.Found, what: str) -> Check:
    if not found.problems:
        return Check(name, passed=True, found=f"{found.checked} {what}")
    shown = "; ".join(found.problems[:_MOST_PROBLEMS])
    more = len(found.problems) - _MOST_PROBLEMS
    return Check(name, passed=False, found=shown + (f"; and {more} more" if more > 0 else ""))


def refuse_failed(checks: Sequence[Check]) -> None:
    """Raise DrillFailedError, with all checks that failed, if any did."""
    failed = [f"{check.name}: {check.found}" for check in checks if not check.passed]
    if failed:
        raise DrillFailedError(
            f"{len(failed)} of {counted(len(checks), 'check')} failed:\n" + "\n".join(failed)
        )
