"""The report of `pgstash recover`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgstash.cli.output import print_line, print_table
from pgstash.counting import counted
from pgstash.errors import NotAllRecoveredError
from pgstash.format.iso_time import iso
from pgstash.monitoring import log
from pgstash.monitoring.messages import size, span

if TYPE_CHECKING:
    from pgstash.commands.recovery_results import Report, Result

_ABSENT = "-"
_WORDS = {
    "restored": "restored",
    "there": "there already",
    "incomplete": "INCOMPLETE",
    "empty": "nothing to restore",
    "planned": "can be restored",
    "failed": "NOT RESTORED",
}


def failure(report: Report, *, dry_run: bool) -> NotAllRecoveredError:
    """Return the error for a recovery that did not bring everything back."""
    failed = [each.database for each in report.results if each.is_missing]
    missing = [f"{len(failed)} of {counted(len(report.results), 'database')}"] if failed else []
    if report.roles_refused:
        missing.append(counted(len(report.roles_refused), "role"))
    return NotAllRecoveredError(
        f"{' and '.join(missing)} {'cannot be' if dry_run else 'not'} restored",
        hint="The report names each with its reason. Correct that, and run the same command again: "
        "it skips what is restored.",
    )


def show(report: Report, scrub: Callable[[str], str], *, dry_run: bool) -> None:
    """Print the report for people, without secrets. Raises OutputError."""

    def line(text: str = "") -> None:
        for each in scrub(text).split("\n"):
            print_line(log.printable(each))

    seconds = "ABOUT" if dry_run else "TOOK"
    rows = [["DATABASE", "STATE", "BACKUP", "TIME", "SIZE", "ROWS", seconds]]
    print_table(rows + [_row(each) for each in report.results])
    for result in report.results:
        if result.is_missing:
            line(f"\n{result.database} ({result.exit_code}): {result.message}")
            if result.hint:
                line(result.hint)
    of_databases = [f"{each.database}: {text}" for each in report.results for text in each.to_do]
    if to_do := [*report.to_do, *of_databases]:
        line("\nLeft to do:")
        for text in to_do:
            line(f"- {text}")


def _row(result: Result) -> list[str]:
    return [
        result.database,
        _WORDS[result.state],
        (result.backup or _ABSENT).partition(".")[0],
        iso(result.started) if result.started else _ABSENT,
        _ABSENT if result.stored_bytes is None else size(result.stored_bytes),
        _ABSENT if result.rows is None else f"{result.rows:,}",
        _ABSENT if result.seconds is None else span(result.seconds),
    ]


def facts(report: Report, *, dry_run: bool) -> dict[str, Any]:
    """Return the report for programs."""
    described = [
        {
            "database": each.database,
            "state": each.state,
            "backup": each.backup,
            "time": iso(each.started) if each.started else None,
            "stored_bytes": each.stored_bytes,
            "rows": each.rows,
            "seconds": None if each.seconds is None else round(each.seconds, 3),
            "message": each.message or None,
            "hint": each.hint or None,
            "exit_code": each.exit_code,
            "warnings": list(each.warnings),
            "to_do": list(each.to_do),
        }
        for each in report.results
    ]
    return {
        "operation": "recover",
        "dry_run": dry_run,
        "status": "success" if report.is_whole else "failure",
        "databases": described,
        "roles_refused": report.roles_refused,
        "to_do": report.to_do,
        "exit_code": 0 if report.is_whole else NotAllRecoveredError.exit_code,
    }
