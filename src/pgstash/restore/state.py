"""The state of a running restore, and the progress that it reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pgstash import events
from pgstash.format.manifest import Section
from pgstash.postgres.restore.target import TargetState
from pgstash.postgres.server.connection import Server
from pgstash.repository.archive import Archive
from pgstash.throttle import Throttle


@dataclass(slots=True)
class State:
    """The name of the backup, and the state of the target so far.

    ``raw_bytes`` counts the plain bytes that were restored. If the target ``is_empty``, nothing has
    to be dropped, and some of the drops would fail. ``server`` is the target's, once it answered.
    """

    name: str
    target: TargetState = field(default_factory=TargetState)
    raw_bytes: int = 0
    is_empty: bool = False
    server: Server | None = None

    def wants(self, section: Section | None) -> bool:
        """Return whether this section of the script is to be restored."""
        return section != "drops" or not self.is_empty


class Progress:
    """Counts what was read from the store and restored, and reports it now and then."""

    def __init__(self, archive: Archive, state: State, emit: events.Emit) -> None:
        """Report to ``emit``, and keep the count of restored bytes in ``state``."""
        self._archive = archive
        self._state = state
        self._emit = emit
        self._stored_bytes = 0
        self._throttle = Throttle()

    def read(self, stored_bytes: int) -> None:
        """Take the number of bytes that were read from the store so far."""
        self._stored_bytes = stored_bytes

    def counted(self, script: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same script, and count each chunk after it was used.

        Its end is reported too: the server may then work for long on what it has read.
        """
        for chunk in script:
            yield chunk
            self.restored_more(len(chunk))
        self._report()

    def restored_more(self, raw_bytes: int) -> None:
        """Take a number of plain bytes that were restored in addition."""
        self.restored(self._state.raw_bytes + raw_bytes)

    def restored(self, raw_bytes: int) -> None:
        """Take the number of plain bytes that were restored so far."""
        self._state.raw_bytes = raw_bytes
        if self._throttle.is_due():
            self._report()

    def _report(self) -> None:
        self._emit(
            events.RestoreProgressed(
                self._archive.name, self._state.raw_bytes, self._stored_bytes, self._archive.size
            )
        )
