"""Leaves an upload that was not committed: removes its parts, or finds out what a commit did."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pgstash import events
from pgstash.errors import StorageError
from pgstash.storage.multipart import Multipart

# Seconds that leaving without a commit may take: if the process is about to stop, and otherwise.
PROMPT = 3.0
PATIENT = 30.0

# Seconds that parts in transit may take to finish on their own.
LAST_PARTS = 1.5
ABORT_ROUNDS = 3


class Cleanup:
    """Ends one upload within a time limit, and reports what stays in the store.

    A thread of its own sends the requests, so that an unresponsive store cannot block the caller.
    """

    def __init__(
        self, multipart: Multipart, senders: Sequence[threading.Thread], emit: events.Emit
    ) -> None:
        """Prepare; nothing is sent yet. The caller stops the ``senders``."""
        self._multipart = multipart
        self._senders = senders
        self._emit = emit
        self._aborting = threading.Event()
        self._left_behind = "the store did not answer in time"
        self.given_up = threading.Event()
        """Set when time is up: it ends the wait for the next attempt of a request."""
        self.found_stored = False
        """Whether the object was found in the store after a commit that was cut off."""

    def discard(self, budget: float) -> None:
        """Remove the parts within ``budget`` seconds, and report what could not be removed."""
        remover = threading.Thread(target=self._remove, name="upload-remover", daemon=True)
        try:
            remover.start()
            remover.join(budget)
        finally:
            self.given_up.set()
            if self._left_behind:
                self.report_left_behind()

    def find_commit(self) -> None:
        """Find out whether a commit that was cut off succeeded; change nothing in the store.

        The store may still be processing it. An abort at that moment was seen to leave a visible
        object without its parts.
        """
        finder = threading.Thread(target=self._find, name="upload-finder", daemon=True)
        self._left_behind = "the store did not report whether the upload was completed"
        try:
            finder.start()
            finder.join(PROMPT)
        finally:
            self.given_up.set()
            if not self.found_stored:
                self.report_left_behind()

    def part_ended(self) -> None:
        """Repeat the abort if a part ended after it. Raises StorageError.

        Such a part may stay in the store, for example
        https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
        """
        if self._aborting.is_set():
            self._multipart.abort(self.given_up)

    def report_left_behind(self) -> None:
        """Report that parts of the upload, or all of it, may stay in the store."""
        self._emit(
            events.UploadLeftBehind(self._multipart.key, self._multipart.id, self._left_behind)
        )

    def _find(self) -> None:
        self.found_stored = self._multipart.is_stored()

    def _remove(self) -> None:
        for sender in self._senders:
            if sender.ident is not None:
                sender.join(LAST_PARTS / len(self._senders))
        self._aborting.set()
        try:
            for _ in range(ABORT_ROUNDS):
                self._multipart.abort(self.given_up)
                if not any(self._multipart.held(self.given_up)):
                    self._left_behind = ""
                    return
            self._left_behind = "the store keeps parts of it after the abort"
        except StorageError as exc:
            self._left_behind = "" if self._multipart.is_gone(exc) else exc.message
