"""What HTTP libraries have in common: netrc, and what it means if a store did not answer."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import TypeVar

from pgstash.errors import StorageError, StorageRefusedError, StorageUnreachableError

T = TypeVar("T")

_DEEPEST = 20
_PYTHON = ("builtins", "http.client", "socket", "ssl")


def unanswered(exc: BaseException, cannot: str, endpoint: str) -> StorageError:
    """Return the error for a request without a response.

    ``cannot`` is the beginning of the message, ``endpoint`` what the user can check.
    """
    causes = [*causes_of(exc)]
    innermost = [each for each in causes if type(each).__module__ in _PYTHON] or causes
    text = f"{innermost[-1]}" or type(innermost[-1]).__name__
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in causes):
        return StorageRefusedError(
            f"{cannot}: the certificate of the store is not trusted ({text})",
            hint=f"Check {endpoint} and the clock. The certificate must be valid for that host.",
        )
    if any(isinstance(each, socket.gaierror) for each in causes):
        return StorageUnreachableError(
            f"{cannot}: the name of the store cannot be resolved ({text})",
            hint=f"Check {endpoint} and the DNS of this machine.",
        )
    if any(isinstance(each, TimeoutError) for each in causes):
        return overloaded(f"{cannot}: the store does not answer in time", endpoint)
    if any(isinstance(each, ConnectionRefusedError) for each in causes):
        return StorageUnreachableError(
            f"{cannot}: no connection to the store ({text})", hint=f"Check {endpoint}."
        )
    return StorageUnreachableError(
        f"{cannot}: the connection broke ({text})", hint=f"Check {endpoint} and the network."
    )


def overloaded(message: str, endpoint: str) -> StorageUnreachableError:
    """Return the error for a store that cannot serve at the moment.

    ``endpoint`` is what the user can check: the settings of S3 are not those of another store.
    """
    return StorageUnreachableError(
        message, hint=f"The store may be down or overloaded. Check {endpoint} and the network."
    )


def ignore_netrc(request: T) -> T:
    """Return a request of requests as it is; this is a session's ``auth``.

    Without one, requests puts a password of ``~/.netrc`` in place of the token or the signature,
    also that of an entry for any host.
    """
    return request


def causes_of(exc: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was made of, as libraries nest them."""
    seen: set[int] = set()
    waiting: list[object] = [exc]
    while waiting and len(seen) < _DEEPEST:
        error = waiting.pop(0)
        if not isinstance(error, BaseException) or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        waiting += [error.__cause__, getattr(error, "reason", None), *error.args]
        waiting.append(getattr(error, "inner_exception", None))  # of Azure's SDK
        waiting.append(error.__context__)
