"""The boundary to Google's API: requests that are signed, retried, and whose errors are translated.

https://cloud.google.com/storage/docs/json_api
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, TypeVar, cast
from urllib.parse import quote

import google.auth
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession
from google.auth.transport.requests import Request as TokenRequest
from requests import RequestException, Response, Session
from requests.adapters import HTTPAdapter

from pgstash import events
from pgstash.errors import StorageError
from pgstash.storage.gcs.config import GcsConfig
from pgstash.storage.gcs.errors import UNAUTHORIZED, ResponseError, translate, unreadable
from pgstash.storage.network import ignore_netrc
from pgstash.storage.retry import Retry

T = TypeVar("T")

# https://cloud.google.com/storage/docs/oauth-scopes
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"


@dataclass(frozen=True, slots=True)
class Request:
    """One request: ``path`` begins with a slash, ``expected`` are the statuses of a success."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    headers: Mapping[str, str] | None = None
    body: bytes | IO[bytes] = b""
    expected: Collection[int] = (200,)
    of_object: bool = True


class Requests:
    """A client of one bucket, whose requests raise only errors of pgstash."""

    def __init__(self, config: GcsConfig, emit: events.Emit) -> None:
        """Prepare; the credentials are searched for when the first request is sent."""
        self.where = f"gs://{config.bucket}"
        self.objects = f"/storage/v1/b/{quote(config.bucket, safe='')}/o"
        self._config = config
        self._retry = Retry(config.retry_attempts, config.retry_delay, emit)
        self._lock = threading.Lock()
        self._session: Any = None  # google.auth's transport has no types
        session = Session()
        session.auth = ignore_netrc
        self._tokens: Any = cast("Any", TokenRequest)(session)

    def path_of(self, key: str) -> str:
        """Return the path of an object."""
        return f"{self.objects}/{quote(key, safe='')}"

    def call(
        self,
        doing: str,
        request: Callable[[], T],
        *,
        retry: Retry | None = None,
        abandoned: threading.Event | None = None,
    ) -> T:
        """Return the result of ``request``; ``doing`` completes the sentence "cannot …".

        ``request`` sends, and extracts what it needs from the response. Setting ``abandoned`` ends
        a wait for the next attempt. Raises StorageError.
        """

        def once() -> T:
            try:
                return request()
            except (ResponseError, RequestException, GoogleAuthError) as exc:
                raise translate(exc, doing) from exc
            except StorageError:
                raise
            except (KeyError, TypeError, ValueError) as exc:
                raise unreadable(doing) from exc

        return (retry or self._retry)(doing, once, abandoned)

    def send(self, request: Request) -> Response:
        """Send once, and again if another token is needed.

        Raises ResponseError, and the errors of requests and google.auth.
        """
        response = self._sent(request)
        if response.status_code == UNAUTHORIZED:
            # Not left to google.auth: it sends what it has already read of a body as nothing.
            self._opened().credentials.refresh(partial(self._tokens, timeout=self._timeout))
            response = self._sent(request)
        if response.status_code not in request.expected:
            raise ResponseError(
                response.status_code, _reason(response), of_object=request.of_object
            )
        return response

    def _sent(self, request: Request) -> Response:
        if not isinstance(request.body, bytes):
            request.body.seek(0)
        response: Response = self._opened().request(
            request.method,
            f"{self._config.endpoint}{request.path}",
            params=request.query,
            data=request.body,
            # A compressed response would have another length than the object.
            headers={"Accept-Encoding": "identity", **(request.headers or {})},
            timeout=self._timeout,
            allow_redirects=False,
        )
        return response

    @property
    def _timeout(self) -> tuple[float, float]:
        return self._config.connect_timeout, self._config.read_timeout

    def _opened(self) -> Any:  # noqa: ANN401 - as above
        with self._lock:
            if self._session is None:
                session = cast("Any", AuthorizedSession)(
                    self._credentials(), refresh_status_codes=(), auth_request=self._tokens
                )
                session.auth = ignore_netrc
                adapter = HTTPAdapter(pool_maxsize=self._config.connections)
                session.mount("https://", adapter)
                session.mount("http://", adapter)
                self._session = session
            return self._session

    def _credentials(self) -> Any:  # noqa: ANN401 - as above
        if self._config.anonymous:
            return cast("Any", AnonymousCredentials)()
        return google.auth.default(scopes=[SCOPE], request=self._tokens)[0]


def _reason(response: Response) -> str:
    """Return the reason in the body of an error; "" if the body is another document."""
    try:
        return str(response.json()["error"]["errors"][0]["reason"])
    except (KeyError, IndexError, TypeError, ValueError):
        return ""
