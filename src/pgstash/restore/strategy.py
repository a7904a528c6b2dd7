"""How an archive is restored: as one script, by several sessions, or only some of its tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from pgstash import events
from pgstash.pipeline.refresh_filter import Refreshes
from pgstash.postgres.restore import foreign_views, present_extensions
from pgstash.postgres.restore.request import Request
from pgstash.postgres.server import startup_options
from pgstash.postgres.server.connection import Server
from pgstash.postgres.tools import installed, toc
from pgstash.repository.archive import Archive
from pgstash.restore import parallel_restore, preflight, table_selection
from pgstash.restore.state import Progress, State


@dataclass(frozen=True, slots=True)
class Strategy:
    """One of three ways: the ``script``, ``parallel`` sessions, or the ``selected`` tables.

    ``edit`` changes the script on its way to the target.
    """

    edit: Refreshes
    script: Iterable[bytes] = ()
    parallel: parallel_restore.ParallelRestore | None = None
    selected: table_selection.Selection | None = None

    def leave_out(self, contents: toc.Contents, definitions: Mapping[int, bytes]) -> None:
        """Leave out entries of the archive's table of contents, with these definitions."""
        self.edit.leave_out(filter(None, definitions.values()))
        if self.parallel:
            self.parallel.leave_out(self.edit, toc.without(contents, definitions))


class Opener:
    """Opens an archive the way that a restore needs; ``stack`` closes it."""

    def __init__(
        self,
        archive: Archive,
        state: State,
        progress: Progress,
        emit: events.Emit,
        stack: contextlib.ExitStack,
    ) -> None:
        """Open nothing yet."""
        self._archive = archive
        self._state = state
        self._progress = progress
        self._emit = emit
        self._stack = stack

    def open(self, request: Request, jobs: int) -> Strategy:
        """Open the archive for ``jobs`` sessions, if several can restore it.

        Raises CorruptedError, EncryptionError, StorageError, TableNotStoredError.
        """
        archive, create = self._archive, request.create is not None
        # pg_dump's own transactions cannot run inside the one transaction of a restore.
        edit = Refreshes(
            partial(foreign_views.filling, for_drill=request.for_drill), keeps_transactions=create
        )
        if request.tables:
            selected = table_selection.select(
                archive,
                request.tables,
                self._emit,
                rows_only=request.rows_only or request.into_existing,
            )
            return Strategy(edit, selected=selected)
        if create and jobs > 1 and archive.is_seekable:
            parallel = parallel_restore.ParallelRestore(archive, self._progress.read)
            return Strategy(edit, parallel=parallel)
        if create and jobs > 1 and archive.manifest and archive.manifest.schema_sha256:
            self._emit(
                events.Warned(
                    f"The schema companion of {archive.name} is missing: a single session restores"
                )
            )
        return Strategy(edit, script=self._script(edit))

    def for_target(
        self,
        strategy: Strategy,
        client: installed.ClientTools,
        server: Server,
        request: Request,
    ) -> Strategy:
        """Return the same strategy, or a single session if the target does not allow several.

        What only the owners of the target's extensions may do is left out, if it is needless.
        Raises TargetLostError.
        """
        if request.create is None:
            strategy.edit.leave_out(present_extensions.needless_statements(server))
        if not strategy.parallel:
            return strategy
        reason = _why_single_session(self._archive, client, server)
        if not reason:
            return strategy
        name = self._archive.name
        self._emit(events.Notice(f"Restoring {name} with a single session: {reason}"))
        return replace(strategy, parallel=None, script=self._script(strategy.edit))

    def _script(self, edit: Refreshes) -> Iterable[bytes]:
        opened = self._archive.script(self._progress.read, self._state.wants, edit)
        return self._stack.enter_context(opened)


def _why_single_session(archive: Archive, client: installed.ClientTools, server: Server) -> str:
    """Return why several sessions cannot restore; empty if they can."""
    if not preflight.reads_archive(archive.manifest, client, server):
        return f"pg_restore {client.major} cannot restore into PostgreSQL {server.major}"
    if not startup_options.passed_on(server):
        return "the pooler does not pass on the settings that pg_restore needs"
    return ""
