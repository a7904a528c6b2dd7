"""What became of each database of a recovery."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

from pgstash import events
from pgstash.commands.maintenance_database import MAINTENANCE
from pgstash.commands.recovery_choice import Chosen, Unusable
from pgstash.errors import EXIT_UNEXPECTED, SuperuserRequiredError, TargetDatabaseError
from pgstash.format import names
from pgstash.postgres.restore.present import Present
from pgstash.postgres.server import marks
from pgstash.postgres.server.marks import Mark
from pgstash.processes.children import Ended

State = Literal["restored", "there", "incomplete", "empty", "planned", "failed"]

_LAST_LINES = 5


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one database.

    It is ``there`` if an earlier recovery restored it, ``incomplete`` if it lacks owners or
    privileges, and ``empty`` if it is the maintenance
    database, and its backup holds nothing. ``seconds`` are estimated if it is only ``planned``.
    """

    database: str
    state: State
    backup: str | None = None
    started: datetime | None = None
    stored_bytes: int | None = None
    rows: int | None = None
    seconds: float | None = None
    message: str = ""
    hint: str = ""
    exit_code: int = 0
    warnings: Sequence[str] = ()
    to_do: Sequence[str] = ()

    @property
    def is_missing(self) -> bool:
        """Whether it is not back, or not all of it."""
        return self.state in ("failed", "incomplete")


@dataclass(frozen=True, slots=True)
class Report:
    """The results by name of the database, and what is left to do."""

    results: list[Result]
    to_do: list[str]
    roles_refused: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether all databases and roles are back, or would be."""
        return not self.roles_refused and not any(each.is_missing for each in self.results)


def unusable(found: Unusable) -> Result:
    """Return the result of a database that has no usable backup."""
    return Result(
        found.database,
        "failed",
        message=found.message,
        hint=found.hint,
        exit_code=found.exit_code,
    )


def of(chosen: Chosen, state: State, **more: Any) -> Result:  # noqa: ANN401 - fields of Result
    """Return the result of a backup."""
    backup = chosen.backup
    to_do = [*chosen.notes, *more.pop("to_do", ())]
    return Result(
        chosen.database,
        state,
        backup.name,
        backup.started,
        backup.size,
        chosen.rows,
        to_do=to_do,
        **more,
    )


def settled(chosen: Chosen, there: Present, *, any_time: bool) -> Result | None:
    """Return the result of a database that needs no restore, or can have none; None for others.

    An earlier restore of any backup will do if no time was given (``any_time``).
    """
    name = chosen.database
    running = there.running_for(name)
    mark = there.databases.get(name)
    is_own = chosen.system is not None and chosen.system == there.system
    other = mark and mark.source and chosen.source and mark.source != chosen.source
    if mark and (is_own or not other) and (mark.backup == chosen.backup.name or any_time):
        return _there(chosen, mark, is_own=is_own)
    if name == MAINTENANCE and not mark and not running:
        settings = "its settings (ALTER DATABASE … SET) are not restored"
        warnings = [settings] if chosen.has_settings else []
        if chosen.is_empty:
            return of(chosen, "empty", warnings=warnings)
        return None
    problem = hint = ""
    if running:
        problem = f"a restore into it is running: its database is still called {running}"
        hint = "Wait until it has ended, and run the same command again."
    elif mark and other and not is_own:
        problem = f"the target has a database of that name, restored from {mark.backup} of "
        problem += "another server"
        hint = f"Rename or drop the database {name}, and run the same command again."
    elif mark:
        problem = f"it was restored from {mark.backup} before, and --at asks for "
        problem += chosen.backup.name
        hint = f"Drop the database {name}, and run the same command again; or replace it with "
        hint += "`pgstash restore --replace`."
    elif name in there.databases and is_own:
        problem = "the backup is of the target itself, and the database is there"
        hint = "Recover to another server; or go back to the backup with "
        hint += "`pgstash restore --replace`."
    elif name in there.databases:
        problem = "the target has a database of that name, which no recovery has made"
        hint = f"Rename or drop the database {name}, and run the same command again."
    if not problem:
        return None
    return of(chosen, "failed", message=problem, hint=hint, exit_code=TargetDatabaseError.exit_code)


def _there(chosen: Chosen, mark: Mark, *, is_own: bool) -> Result:
    """Return the result of a database that an earlier recovery restored, maybe an older backup.

    If the backup is the target's own, the database has lived on, and nobody needs to drop it.
    """
    result = of(chosen, "there")
    if mark.backup != chosen.backup.name:
        newer = (
            f"it is as of {mark.backup}, and {chosen.backup.name} is stored. To have that, drop "
        )
        newer += f"the database {chosen.database}, and run the same command again"
        started = names.started_of(mark.backup.partition(".")[0])
        result = Result(
            chosen.database, "there", mark.backup, started, to_do=[] if is_own else [newer]
        )
    return incomplete(result, mark) if mark.refused else result


def incomplete(result: Result, mark: Mark) -> Result:
    """Return the result of a database that is restored, but lacks owners or privileges."""
    text = f"{mark.backup} {mark.source}".strip()
    done = marks.statement(result.database, text).as_string()
    return replace(
        result,
        state="incomplete",
        message="it is restored, but lacks owners or privileges: the target refused them, or the "
        "backup has none. Until it has them, only the restoring role and superusers may be able to "
        "connect",
        hint="Run as a superuser what the restore reported as left to do. Then mark the "
        f"database as complete, as the restoring role: {done}",
        exit_code=SuperuserRequiredError.exit_code,
    )


def after(ended: Ended[str], chosen: Chosen, *, dry_run: bool) -> Result:
    """Return the result of a restore that has ended, from the JSON that it printed."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(ValueError):
        read = json.loads(ended.output)
        facts = read if isinstance(read, dict) else {}
    about = {"warnings": facts.get("warnings", []), "to_do": facts.get("to_do", [])}
    if ended.status == 0 and dry_run:
        return of(chosen, "planned", seconds=chosen.estimate, **about)
    if ended.status == 0:
        return of(chosen, "restored", seconds=facts.get("seconds", ended.seconds), **about)
    message, hint = facts.get("message"), facts.get("hint", "")
    if not message and ended.status < 0:
        message = f"its restore was ended by signal {-ended.status}"
    if not message:
        message = "\n".join(ended.last_lines[-_LAST_LINES:]) or "its restore failed"
    if target := facts.get("target"):
        message = f"{message} ({target})"
    status = ended.status if ended.status > 0 else EXIT_UNEXPECTED
    return of(
        chosen,
        "failed",
        seconds=ended.seconds,
        message=message,
        hint=hint,
        exit_code=status,
        **about,
    )


def report(result: Result, emit: events.Emit) -> None:
    """Log a result when it is known."""
    name = result.database
    if result.state == "failed":
        emit(events.Warned(f"{name} is not restored: {result.message}"))
    elif result.state == "incomplete":
        emit(events.Warned(f"{name}: {result.message}"))
    elif result.state == "restored":
        emit(
            events.Informed(
                f"{name} is restored from {result.backup} in {result.seconds or 0:.1f} s"
            )
        )
    elif result.state == "there":
        emit(events.Informed(f"{name} is there already, restored from {result.backup}"))
    for warning in result.warnings:
        emit(events.Warned(f"{name}: {warning}"))
