"""Copy what the copies of ``COPY_TO`` lack after a backup, then prune there.

Nothing that goes wrong in it is a failure of the backup.
"""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from signal import SIGTERM

from pgstash import events
from pgstash.commands import copies
from pgstash.commands.copying import Copier
from pgstash.commands.prune import policy_of, prune_after_backup
from pgstash.commands.source import owners_of, server_clock
from pgstash.commands.storage import open_storage
from pgstash.copying import behind
from pgstash.errors import Interrupted, PgstashError
from pgstash.format.identity import Identity
from pgstash.prune import retention
from pgstash.repository import catalog
from pgstash.repository.catalog import Backup
from pgstash.runtime import Runtime
from pgstash.settings import Settings
from pgstash.signals import Interruption, kept_for_this_thread
from pgstash.storage.interface import Storage

SECONDS_TO_END = 5.0
"""How long the end of the service waits for a copy, whose upload has to be removed."""

ServerClock = Callable[[Settings], datetime]


def copy_and_prune(
    settings: Settings,
    source: Identity,
    runtime: Runtime,
    go_on: Callable[[], None],
    server_now: ServerClock = server_clock,
) -> None:
    """Bring each copy up to date, one after the other, the newest backup first.

    A backup is copied if the retention of the copy keeps it. If all of them arrived, the copy is
    pruned. What fails is reported as a warning; ``go_on`` ends the work by raising Interrupted.
    """
    for copy in copies.of(settings):
        try:
            _Updating(settings, source, copy, runtime, go_on).run(server_now)
        except Exception as error:  # noqa: BLE001 - nothing that happens now undoes the backup
            what = f"{type(error).__name__}: {error}"
            runtime.emit(events.Warned(f"The copy {copy.name} was not brought up to date: {what}"))
            runtime.emit(events.Notice(traceback.format_exc()))


@dataclass(frozen=True, slots=True)
class _Updating:
    """The work on one copy."""

    settings: Settings
    source: Identity
    copy: copies.Copy
    runtime: Runtime
    go_on: Callable[[], None]

    def run(self, server_now: ServerClock) -> None:
        primary = open_storage(self.settings, self.runtime.emit)
        copier = Copier(self.settings, primary, self.runtime, self.go_on, after_backup=self.source)
        errors = copier.copy_all(self.copy, lambda _copy, place: self._lacking(primary, place))
        self._report_state(primary, errors)
        if errors:
            return
        self.go_on()
        place = self.copy.open(self.runtime.emit)
        prune_after_backup(self.copy.settings, self.source, place, self.runtime, server_now)

    def _own(self, primary: Storage) -> list[Backup]:
        found = catalog.read(primary, self.settings.backup_prefix).backups
        return owners_of(primary).of(found, [self.source])

    def _lacking(self, primary: Storage, place: Storage) -> Sequence[Backup]:
        """Return what the copy lacks of what its retention keeps, the newest first.

        Backups that have to be thawed wait until they are.
        """
        here = self._own(primary)
        there = catalog.read(place, self.copy.settings.backup_prefix).backups
        missing = [each for each in behind.missing(here, there) if not each.archived]
        if missing:
            theirs = owners_of(place).of(there, [self.source])
            both = {each.name: each for each in [*theirs, *here]}
            policy = policy_of(self.copy.settings)
            decided = retention.decide(both.values(), policy, self.runtime.now())
            kept = {decision.backup.name for decision in decided if decision.keep}
            missing = [each for each in missing if each.name in kept]
        return [*missing, *behind.outdated(here, there)]

    def _report_state(self, primary: Storage, errors: Sequence[PgstashError]) -> None:
        """Report what the copy has by now, as far as it is known."""
        problem = errors[0].message if errors else ""
        newest: Backup | None = None
        missing: int | None = None
        try:
            place = self.copy.open(events.ignore, prompt=True)
            prefix = self.copy.settings.backup_prefix
            names = {each.name for each in self._own(primary)}
            there = catalog.read(place, prefix).backups
            newest = next((each for each in reversed(there) if each.name in names), None)
            missing = len(self._lacking(primary, place))
        except PgstashError as error:
            problem = problem or error.message
        self.runtime.emit(
            events.CopyCompared(
                self.copy.name,
                newest.name if newest else None,
                newest.started if newest else None,
                missing,
                problem,
            )
        )


class BackgroundCopies:
    """A thread that brings the copies up to date, so that no backup has to wait for them."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        """Start nothing yet."""
        self._settings = settings
        # Signals concern the main thread alone.
        self._runtime = replace(
            runtime, emit=_without_progress(runtime.emit), interruption=Interruption()
        )
        self._wanted: queue.SimpleQueue[Identity | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="copies", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        with kept_for_this_thread():
            self._thread.start()

    def request(self, source: Identity) -> None:
        """Ask for the copies of the backups of a source. Never waits."""
        self._wanted.put(source)

    def end(self) -> None:
        """End the thread, and the copying, whose upload is removed. Waits for a limited time."""
        self._stopping.set()
        self._wanted.put(None)
        self._thread.join(SECONDS_TO_END)
        if self._thread.is_alive():
            self._runtime.emit(
                events.Warned(
                    "A copy did not end in time. An unfinished upload may take up space there "
                    "until pruning removes it"
                )
            )

    def _work(self) -> None:
        while source := self._wanted.get():
            if not self._wanted.empty():
                continue  # a later request, or the end, includes this one
            try:
                copy_and_prune(self._settings, source, self._runtime, self._go_on)
            except Interrupted:
                return

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise Interrupted(SIGTERM)


@contextmanager
def in_background(settings: Settings, runtime: Runtime) -> Iterator[Callable[[Identity], None]]:
    """Yield what asks for the copies of a source; they are made while the block runs."""
    if not settings.copy_names:
        yield lambda _source: None
        return
    copying = BackgroundCopies(settings, runtime)
    copying.start()
    try:
        yield copying.request
    finally:
        copying.end()


def _without_progress(emit: events.Emit) -> events.Emit:
    """Return what passes events on, except the progress of copies: a backup may be running."""

    def listener(event: events.Event) -> None:
        match event:
            case events.CopyProgressed():
                pass
            case events.CopyStarted():
                emit(events.Informed(f"Copying {event.name} to {event.copy}"))
            case _:
                emit(event)

    return listener
