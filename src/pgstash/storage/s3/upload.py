"""A multipart upload: parts are sent by two threads while the next one is being filled.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import mmap
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

from pgstash import events
from pgstash.errors import StorageError, UploadError
from pgstash.storage.parts import BUFFERS, MIB, SENDERS, Sizes
from pgstash.storage.s3_client import Requests
from pgstash.storage.s3_errors import upload_is_gone
from pgstash.storage.s3_multipart import Multipart

# Seconds that leaving without a commit may take: when somebody waits for the process to
# stop, and otherwise; how long parts on their way may take to end by themselves; and what is kept
# for removing an upload whose beginning was interrupted.
PROMPT = 3.0
PATIENT = 30.0
LAST_PARTS = 1.5
ROOM_TO_ABORT = 1.0
ABORT_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    size: int
    buffer: mmap.mmap


class S3Upload:
    """An object on its way; see :class:`pgstash.storage.interface.Upload`.

    Written and committed by one thread. Each buffer is in exactly one of three places:
    with the writer, in the queue of the senders (or with one of them), or free. Whoever
    waits for the senders waits for a free buffer, and senders always give it back.
    """

    def __init__(
        self,
        requests: Requests,
        key: str,
        *,
        metadata: Mapping[str, str],
        sizes: Sizes,
        emit: events.Emit,
    ) -> None:
        """Prepare; nothing is sent before the block is entered."""
        self._multipart = Multipart(requests, key, metadata)
        self._key = key
        self._url = self._multipart.url
        self._sizes = sizes
        self._emit = emit

        self._free: SimpleQueue[mmap.mmap] = SimpleQueue()
        self._queue: SimpleQueue[_Part | None] = SimpleQueue()
        self._filling: mmap.mmap | None = None
        self._filled = 0
        self._numbered = 0
        self._failure: BaseException | None = None
        self._finished = False
        self._committed = False

        self._stopping = threading.Event()
        self._aborting = threading.Event()
        self._given_up = threading.Event()
        self._left_behind = "the store did not answer in time"
        self._senders = [
            # A daemon: a store that does not answer must not keep the process alive.
            threading.Thread(target=self._send_parts, name=f"part-sender-{index}", daemon=True)
            for index in range(SENDERS)
        ]

    @property
    def part_size(self) -> int:
        """Bytes of the first parts; of all but the last, unless they have to grow."""
        return self._sizes.first

    @property
    def committed(self) -> bool | None:
        """Whether the object is visible; None where a commit was cut off and nobody knows."""
        return None if self._multipart.unclear and not self._committed else self._committed

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
        """Begin the upload, in a thread: a signal must not cut off the answer, which names it."""
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
            # Not get() with a timeout, which a signal can make wait for ever.
            if beginner.ident is not None:
                beginner.join(PROMPT - ROOM_TO_ABORT)
            try:
                begun = answers.get_nowait() is None
            except Empty:
                begun = False
                self._tell_left_behind()
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
            self._leave_be()
            return
        hurry = exc_type is not None and not issubclass(exc_type, Exception)
        self._discard(PROMPT if hurry else PATIENT)

    def write(self, data: bytes) -> None:
        """Append ``data``; see :meth:`pgstash.storage.interface.Upload.write`.

        Raises UploadError after a flush, and when the store's part numbers are used up.
        """
        if self._finished:
            raise UploadError(f"the upload of {self._url} is finished, nothing can be added")
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
        """Send the last part and wait for all; nothing can be written after it."""
        if not self._finished:
            self._finished = True
            if self._filling is not None or not self._numbered:
                self._enqueue(self._filling or self._next_free())
            for _ in range(BUFFERS):
                self._next_free()
        self._raise_failure()

    def commit(self) -> None:
        """Compare what the store holds with what was sent, and make the object visible."""
        self.flush()
        self._multipart.complete(self._given_up)
        self._committed = True

    def _next_free(self, size: int = 0) -> mmap.mmap:
        """Wait for a free buffer; return it, or a larger one in its place."""
        buffer = self._free.get()
        self._raise_failure()
        if len(buffer) >= size:
            return buffer
        del buffer  # before there is a larger one
        return self._room(size)

    def _room(self, size: int) -> mmap.mmap:
        """Return anonymous memory: taken as it is filled, given back whole."""
        try:
            return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as exc:
            raise UploadError(
                f"cannot store {self._url}: no memory for a part of {size // MIB} MiB: "
                f"{exc.strerror}",
                hint="The backup has become much larger than the ones before it. Give pgstash more "
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
            hint=f"Set S3_PART_SIZE (MiB) to more than {size}, for example {2 * size}.",
        )

    # Senders.

    def _send_parts(self) -> None:
        while part := self._queue.get():
            try:
                if not self._stopping.is_set():
                    self._send(part)
            except BaseException as exc:  # noqa: BLE001 - the writer raises it, in its thread
                self._failure = self._failure or exc
                self._stopping.set()
            finally:
                self._free.put(part.buffer)

    def _send(self, part: _Part) -> None:
        self._multipart.send(part.number, memoryview(part.buffer)[: part.size], self._stopping)
        if self._aborting.is_set():
            # A part that ends after the abort may stay: then the abort has to be repeated.
            # https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
            self._multipart.abort(self._given_up)

    # Leaving without a commit.

    def _stop(self) -> None:
        self._stopping.set()
        for _ in self._senders:
            self._queue.put(None)

    def _discard(self, budget: float) -> None:
        """Remove what was sent, in ``budget`` seconds; report what could not be removed.

        A thread does it, so that a store that does not answer cannot hold the caller.
        """
        self._stop()
        remover = threading.Thread(target=self._remove, name="upload-remover", daemon=True)
        try:
            remover.start()
            remover.join(budget)
        finally:
            self._given_up.set()
            if self._left_behind:
                self._tell_left_behind()

    def _leave_be(self) -> None:
        """Look whether a commit that was cut off did its work, and touch nothing.

        The store may still be at it, and an abort that meets it was seen to leave a visible
        object without its parts.
        """
        self._stop()
        looker = threading.Thread(target=self._look, name="upload-looker", daemon=True)
        self._left_behind = "the store did not say whether it completed it"
        try:
            looker.start()
            looker.join(PROMPT)
        finally:
            self._given_up.set()
            if not self._committed:
                self._tell_left_behind()

    def _look(self) -> None:
        self._committed = self._multipart.is_stored()

    def _remove(self) -> None:
        for sender in self._senders:
            if sender.ident is not None:
                sender.join(LAST_PARTS / SENDERS)
        self._aborting.set()
        try:
            for _ in range(ABORT_ROUNDS):
                self._multipart.abort(self._given_up)
                if not any(self._multipart.held(self._given_up)):
                    self._left_behind = ""
                    return
            self._left_behind = "the store keeps parts of it after it was aborted"
        except StorageError as exc:
            self._left_behind = "" if upload_is_gone(exc) else exc.message

    def _tell_left_behind(self) -> None:
        self._emit(events.UploadLeftBehind(self._key, self._multipart.id, self._left_behind))
