"""An upload in parts: threads send parts while the next one is being filled."""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

from pgstash import events
from pgstash.errors import UploadError
from pgstash.storage.cleanup import PATIENT, PROMPT, Cleanup
from pgstash.storage.multipart import Multipart
from pgstash.storage.part_size import BUFFERS, MIB, SENDERS, Sizes

# Seconds of PROMPT reserved for removing an upload whose creation was interrupted.
ROOM_TO_ABORT = 1.0


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    size: int
    buffer: mmap.mmap


class MultipartUpload:
    """An object being uploaded; see :class:`pgstash.storage.interface.Upload`.

    One thread writes and commits. Each buffer is in exactly one of three places: with the writer,
    in the queue of the senders (or with a sender), or free. Waiting for the senders means waiting
    for a free buffer, which senders always return.
    """

    def __init__(
        self,
        multipart: Multipart,
        sizes: Sizes,
        emit: events.Emit,
        *,
        senders: int = SENDERS,
    ) -> None:
        """Prepare; nothing is sent until the block is entered."""
        self._multipart = multipart
        self._url = multipart.url
        self._sizes = sizes

        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._queue: SimpleQueue[_Part | None] = SimpleQueue()
        self._filling: mmap.mmap | None = None
        self._filled = 0
        self._numbered = 0
        self._failure: BaseException | None = None
        self._finished = False
        self._committed = False

        self._stopping = threading.Event()
        self._senders = [
            # Daemons: an unresponsive store must not keep the process alive.
            threading.Thread(target=self._send_parts, name=f"part-sender-{index}", daemon=True)
            for index in range(senders)
        ]
        self._cleanup = Cleanup(multipart, self._senders, emit)

    @property
    def part_size(self) -> int:
        """The size of the first parts in bytes; of all but the last, unless parts have to grow."""
        return self._sizes.first

    @property
    def committed(self) -> bool | None:
        """Whether the object is visible; None if a commit was cut off with unknown outcome."""
        committed = self._committed or self._cleanup.found_stored
        return None if self._multipart.unclear and not committed else committed

    def __enter__(self) -> Self:
        self._begin()
        try:
            for _ in range(BUFFERS):
                self._free.put(self._room(self._sizes.first))
            for sender in self._senders:
                sender.start()
        except BaseException:
            self._discard(PROMPT)
            raise
        return self

    def _begin(self) -> None:
        """Create the upload in a thread: a signal must not cut off the response with its id."""
        answers: SimpleQueue[BaseException | None] = SimpleQueue()

        def create() -> None:
            try:
                self._multipart.begin(self._stopping)
            except BaseException as exc:  # noqa: BLE001 - raised in the caller's thread
                answers.put(exc)
            else:
                answers.put(None)

        beginner = threading.Thread(target=create, name="upload-beginner", daemon=True)
        try:
            beginner.start()
            failure = answers.get()
        except BaseException:
            give_up = time.monotonic() + PROMPT
            self._stopping.set()
            # Not get() with a timeout, which a signal can make wait forever.
            if beginner.ident is not None:
                beginner.join(PROMPT - ROOM_TO_ABORT)
            try:
                begun = answers.get_nowait() is None
            except Empty:
                begun = False
                self._cleanup.report_left_behind()
            if begun:
                self._discard(max(0.0, give_up - time.monotonic()))
            raise
        if failure:
            raise failure

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        self._finished = True
        if self._committed:
            self._stop()
            return
        if self._multipart.unclear:
            self._stop()
            self._cleanup.find_commit()
            return
        hurry = exc_type is not None and not issubclass(exc_type, Exception)
        self._discard(PROMPT if hurry else PATIENT)

    def write(self, data: bytes) -> None:
        """Append ``data``; see :meth:`pgstash.storage.interface.Upload.write`.

        Raises UploadError after a flush, and when the store's part numbers are used up.
        """
        if self._finished:
            raise UploadError(f"the upload of {self._url} is finished; nothing can be added")
        self._raise_failure()
        rest = memoryview(data)
        while rest:
            if self._filling is None:
                if self._numbered == self._sizes.most:
                    raise self._too_large()
                self._filling = self._next_free(self._sizes.of(self._numbered + 1))
            piece = rest[: len(self._filling) - self._filled]
            self._filling[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            rest = rest[len(piece) :]
            if self._filled == len(self._filling):
                self._enqueue(self._filling)

    def flush(self) -> None:
        """Send the last part and wait for all parts. Nothing can be written afterwards."""
        if not self._finished:
            self._finished = True
            if self._filling is not None or not self._numbered:
                self._enqueue(self._filling or self._next_free())
            for _ in range(BUFFERS):
                self._next_free()
        self._raise_failure()

    def commit(self) -> None:
        """Compare the parts in the store with those sent, and make the object visible."""
        self.flush()
        self._multipart.complete(self._cleanup.given_up)
        self._committed = True

    def _next_free(self, size: int = 0) -> mmap.mmap:
        """Wait for a free buffer and return it, or a larger one in its place."""
        buffer = self._free.get()
        self._raise_failure()
        if len(buffer) >= size:
            return buffer
        del buffer  # before the larger one is allocated
        return self._room(size)

    def _room(self, size: int) -> mmap.mmap:
        """Return anonymous memory: allocated as it is filled, and freed as a whole."""
        try:
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as exc:
            raise UploadError(
                f"cannot store {self._url}: no memory for a part of {size // MIB} MiB: "
                f"{exc.strerror}",
                hint="The backup has become much larger than earlier ones. Give pgstash more "
                "memory, or set S3_PART_SIZE (MiB).",
            ) from exc

    def _enqueue(self, buffer: mmap.mmap) -> None:
        self._numbered += 1
        part = _Part(self._numbered, self._filled, buffer)
        self._filling, self._filled = None, 0
        self._queue.put(part)

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _too_large(self) -> UploadError:
        size = self._sizes.of(self._sizes.most) // MIB
        return UploadError(
            f"cannot store {self._url}: it does not fit into {self._sizes.most} parts "
            f"{'of up to' if self._sizes.grow else 'of'} {size} MiB",
            hint=self._multipart.too_large(size),
            retryable=False,
        )

    # The sender threads.

    def _send_parts(self) -> None:
        while part := self._queue.get():
            try:
                if not self._stopping.is_set():
                    self._send(part)
            except BaseException as exc:  # noqa: BLE001 - the writer raises it in its own thread
                self._failure = self._failure or exc
                self._stopping.set()
            finally:
                self._free.put(part.buffer)

    def _send(self, part: _Part) -> None:
        self._multipart.send(part.number, memoryview(part.buffer)[: part.size], self._stopping)
        self._cleanup.part_ended()

    # Leaving.

    def _stop(self) -> None:
        self._stopping.set()
        for _ in self._senders:
            self._queue.put(None)

    def _discard(self, budget: float) -> None:
        self._stop()
        self._cleanup.discard(budget)
