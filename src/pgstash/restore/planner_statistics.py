"""The statistics for the planner after a restore: those of the source, or new ones by ANALYZE."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pgstash import events
from pgstash.errors import CorruptedError, Interrupted, StorageError
from pgstash.postgres.dump.statistics import FIRST
from pgstash.postgres.restore import owners_and_privileges, statistics
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools.tool_run import ToolRun
from pgstash.repository.archive import Archive


@dataclass(frozen=True, slots=True)
class PlannerStatistics:
    """What of an archive was requested, and how many sessions (``jobs``) run ANALYZE."""

    archive: Archive
    request: Request
    tool_run: ToolRun
    jobs: int

    def update(self, into: Server, only: Sequence[str] | None = None) -> None:
        """Give the restored tables statistics; the restoring role should still own them.

        In an existing database, tables with other names than those in ``only`` ("schema.name") are
        left alone, if it is given. A drill runs no queries, and needs no statistics. What has none
        in the end is a warning. Raises TargetLostError if a session is lost.
        """
        request, emit = self.request, self.tool_run.emit
        if request.no_analyze or request.for_drill:
            return
        with _reported(request, emit):
            which = statistics.EVERY
            if only is not None and request.create is None:
                which = statistics.named(into, only)
            elif only is None and self._restored(into):
                which = statistics.LACKING
            statistics.analyse(into, which, self.jobs, emit)

    def _restored(self, into: Server) -> bool:
        """Apply the stored statistics, if there are any for this server; return whether it did.

        A statement that the server refuses concerns a table that was dropped during the backup, or
        one that ANALYZE will have to read.
        """
        if into.major < FIRST:
            return False
        try:
            script = self.archive.statistics()
        except (CorruptedError, StorageError) as error:
            self.tool_run.emit(
                events.Warned(f"The statistics of the source are not used: {error.message}")
            )
            return False
        if script is None:
            return False
        self.tool_run.emit(events.PhaseStarted("statistics"))
        self.tool_run.emit(events.Informed("Restoring the statistics of the source"))
        owners_and_privileges.apply(into, script, self.tool_run)
        return True


def analyse(into: Server, request: Request, names: Sequence[str], emit: events.Emit) -> None:
    """Run ANALYZE by one session for these tables ("schema.name") of an existing database.

    What cannot be analysed is a warning. Raises TargetLostError.
    """
    if not request.no_analyze:
        with _reported(request, emit):
            statistics.analyse(into, statistics.named(into, names), 1, emit)


@contextlib.contextmanager
def _reported(request: Request, emit: events.Emit) -> Iterator[None]:
    """Warn if a signal ends the block, and rows were committed before it."""
    try:
        yield
    except Interrupted:
        if request.create is None:
            emit(
                events.Warned(
                    "Not all statistics for the planner were updated: run ANALYZE", to_do=True
                )
            )
        raise
