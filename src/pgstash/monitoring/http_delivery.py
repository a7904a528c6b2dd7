"""Sends small HTTP requests in the background: bounded in time, retried, never fatal.

Errors are worded here: messages of the library would quote the URL, which is a secret.
"""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import SimpleQueue
from urllib.parse import unquote

import tenacity
import urllib3
from urllib3.exceptions import (
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as NoAnswerError
from urllib3.util import parse_url

from pgstash import __version__
from pgstash.counting import counted
from pgstash.errors import Interrupted

TRIES = 3
ANSWER_SECONDS = 10.0
"""Seconds that a try may take, from resolving the host name to the status of the answer."""

BACKOFF_SECONDS = 1.0
"""Seconds before the second try; doubled before the third."""

END_SECONDS = 45.0
"""Seconds that the end of a command waits for pending deliveries, all tries included."""

SIGNAL_SECONDS = 1.0
"""Seconds that it waits for them after a signal."""


_FIRST_ERROR, _FIRST_SERVER_ERROR = 400, 500
# Request Timeout, Too Early, Too Many Requests: the same request may succeed later.
_PASSING = (408, 425, 429)
_MOST_WORDS = 300  # characters of an answer that are shown


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``body`` is called by the thread that sends it.

    ``sign`` returns further headers for the body.
    """

    method: str
    url: str = field(repr=False)
    body: Callable[[], bytes] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    sign: Callable[[bytes], Mapping[str, str]] | None = None
    tries: int = TRIES


class DeliveryError(Exception):
    """A request failed or got an error as its answer; the text may be logged once it is scrubbed.

    The receiver's own words in it may quote the URL.
    """


class _RefusedError(DeliveryError):
    """The receiver does not want the request: the same again would get the same answer."""


class Courier:
    """Sends requests to one destination, in order, from a thread of its own.

    ``what`` names the destination in warnings; ``warn`` receives them.
    """

    def __init__(
        self,
        what: str,
        warn: Callable[[str], None],
        *,
        answer_seconds: float = ANSWER_SECONDS,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        """Start the thread, which does not keep the process alive."""
        self._what = what
        self._warn = warn
        self._answer_seconds = answer_seconds
        self._backoff_seconds = backoff_seconds
        self._queue: SimpleQueue[Request | Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=what, daemon=True)
        self._thread.start()

    def send(self, request: Request) -> None:
        """Queue a request and return immediately."""
        self._queue.put(request)

    def call(self, deliver: Callable[[], None]) -> None:
        """Queue a delivery by other means, and return immediately.

        It is tried once, raises DeliveryError, and may take as long as the end of a command.
        """
        self._queue.put(deliver)

    def finish(self) -> None:
        """Accept no more requests."""
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for the requests queued before :meth:`finish`; warn if they take longer."""
        self._thread.join(max(seconds, 0))
        if self._thread.is_alive():
            self._warn(f"{self._what} was not delivered before the command ended")

    def _work(self) -> None:
        while (request := self._queue.get()) is not None:
            try:
                if isinstance(request, Request):
                    self._deliver(request)
                else:
                    self._within(request, END_SECONDS)
            except _RefusedError as error:
                self._warn(f"{self._what} was refused: {error}")
            except DeliveryError as error:
                tries = request.tries if isinstance(request, Request) else 1
                number = counted(tries, "try", "tries")
                self._warn(f"{self._what} could not be delivered in {number}: {error}")
            except Exception as error:  # noqa: BLE001 - the border of a thread
                self._warn(f"{self._what} could not be delivered: {type(error).__name__}")

    def _deliver(self, request: Request) -> None:
        body = request.body() if request.body else None
        headers = {"User-Agent": f"pgstash/{__version__}", **request.headers}
        if request.sign and body is not None:
            headers |= request.sign(body)

        def send() -> None:
            self._send(request, body, headers)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(request.tries),
            wait=tenacity.wait_exponential(multiplier=self._backoff_seconds),
            retry=tenacity.retry_if_exception(
                lambda error: (
                    isinstance(error, DeliveryError) and not isinstance(error, _RefusedError)
                )
            ),
            reraise=True,
        )
        retrying(lambda: self._within(send, self._answer_seconds))

    def _within(self, send: Callable[[], None], seconds: float) -> None:
        """Enforce the time limit: a socket timeout limits neither DNS nor a trickle of bytes."""
        errors: list[DeliveryError] = []

        def work() -> None:
            try:
                send()
            except DeliveryError as error:
                errors.append(error)
            except Exception as error:  # noqa: BLE001 - the border of a thread
                errors.append(DeliveryError(type(error).__name__))

        thread = threading.Thread(target=work, name=self._what, daemon=True)
        thread.start()
        thread.join(seconds)
        if thread.is_alive():
            raise DeliveryError(f"no answer within {seconds:g}s")
        if errors:
            raise errors[0]

    def _send(self, request: Request, body: bytes | None, headers: dict[str, str]) -> None:
        """Send it once. Redirects are not followed: they would send the body elsewhere."""
        timeout = urllib3.Timeout(total=self._answer_seconds)
        try:
            login = parse_url(request.url).auth
            if login:
                token = base64.b64encode(unquote(login).encode()).decode()
                headers = {**headers, "Authorization": f"Basic {token}"}
            with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
                response = pool.request(
                    request.method,
                    request.url,
                    body=body,
                    headers=headers,
                    redirect=False,
                    preload_content=False,
                )
                words = _words(response) if response.status >= _FIRST_ERROR else ""
                response.close()
        except HTTPError as error:
            raise DeliveryError(self._reason(error)) from None
        if response.status >= _FIRST_ERROR:
            text = f"HTTP {response.status}{words}"
            passing = response.status >= _FIRST_SERVER_ERROR or response.status in _PASSING
            raise DeliveryError(text) if passing else _RefusedError(text)
        if response.status >= 300:  # noqa: PLR2004 - where HTTP's redirects begin
            raise DeliveryError(f"HTTP {response.status}: redirects are not followed")

    def _reason(self, error: HTTPError) -> str:
        match error:
            case NameResolutionError():
                return "its host name cannot be resolved"
            case NewConnectionError(__cause__=OSError() as cause) if cause.strerror:
                return f"no connection ({cause.strerror})"
            case NoAnswerError():
                return f"no answer within {self._answer_seconds:g}s"
            case SSLError():
                return "TLS failed: the certificate is not trusted, or is not valid for this host"
            case ProtocolError():
                return "the connection broke"
            case _:
                return type(error).__name__


def _words(response: urllib3.BaseHTTPResponse) -> str:
    """Return the beginning of an answer on one line, after a colon; empty if there is nothing."""
    try:
        start = response.read(4 * _MOST_WORDS, decode_content=False)
    except HTTPError:
        return ""
    text = " ".join(start.decode(errors="replace").split())
    shown = "".join(each for each in text if each.isprintable())
    return f": {shown[:_MOST_WORDS]}" + "…" * (len(shown) > _MOST_WORDS) if shown else ""


@contextlib.contextmanager
def finished(couriers: list[Courier]) -> Iterator[None]:
    """Wait at the end of the block until everything is delivered; after a signal, only briefly."""
    seconds = END_SECONDS
    try:
        yield
    except Interrupted:
        seconds = SIGNAL_SECONDS
        raise
    finally:
        for courier in couriers:
            courier.finish()
        end = time.monotonic() + seconds
        for courier in couriers:
            courier.wait(end - time.monotonic())
