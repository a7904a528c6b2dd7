"""Reports what a run of pruning does, and collects the errors that do not stop it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgstash import events
from pgstash.errors import StorageError, StorageUnreachableError


class Journal:
    """The event sink of one run, and the ``errors`` it met so far."""

    def __init__(self, emit: events.Emit) -> None:
        """Start without errors."""
        self.emit = emit
        self.errors: list[StorageError] = []

    @contextmanager
    def keep_going(self) -> Iterator[None]:
        """Report and record a StorageError in the block, unless the store cannot be reached.

        Raises StorageUnreachableError.
        """
        try:
            yield
        except StorageUnreachableError:
            raise
        except StorageError as error:
            self.errors.append(error)
            self.emit(events.Warned(error.message))

    def succeeds(self, action: Callable[[], None]) -> bool:
        """Run ``action``, and return whether it succeeded; see :meth:`keep_going`."""
        failures = len(self.errors)
        with self.keep_going():
            action()
        return len(self.errors) == failures
