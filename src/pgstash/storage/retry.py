"""Retries requests, with a growing delay between attempts."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tenacity

from pgstash import events
from pgstash.errors import StorageUnreachableError, UploadError

T = TypeVar("T")

LONGEST_DELAY = 300.0
JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Retry:
    """How many times a request is retried, and after which delays.

    ``attempts`` come after the first try. ``delay``, in seconds, doubles each time, up to five
    minutes. Up to a tenth of the initial delay is added at random, so that the clients of a store
    do not all return at the same moment.
    """

    attempts: int
    delay: float
    emit: events.Emit = events.ignore

    def __call__(
        self, request: str, function: Callable[[], T], abandoned: threading.Event | None = None
    ) -> T:
        """Return the result of ``function``; retry on StorageUnreachableError alone.

        Raises the last error when all attempts are used up. Setting ``abandoned`` ends a wait at
        once, with UploadError.
        """
        stop = abandoned or threading.Event()

        def sleep(seconds: float) -> None:
            if stop.wait(seconds):
                raise UploadError(f"{request} was abandoned")

        def report(state: tenacity.RetryCallState) -> None:
            self.emit(
                events.Retrying(
                    request=request,
                    attempt=state.attempt_number,
                    attempts=self.attempts,
                    delay=state.upcoming_sleep,
                    reason=str(state.outcome.exception()) if state.outcome else "",
                )
            )

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(1 + self.attempts)
            | tenacity.stop_when_event_set(stop),
            wait=tenacity.wait_exponential(multiplier=self.delay, max=LONGEST_DELAY)
            + tenacity.wait_random(0, JITTER * self.delay),
            retry=tenacity.retry_if_exception_type(StorageUnreachableError),
            sleep=sleep,
            before_sleep=report,
            reraise=True,
        )
        try:
            return retrying(function)
        except Exception as error:
            # The error and the frames of tenacity refer to each other. That cycle would keep the
            # store's client and its connections alive until the next garbage collection.
            traceback.clear_frames(error.__traceback__)
            raise
