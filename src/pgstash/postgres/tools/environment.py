"""The environment of a client tool, and how it gets its secrets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

from pgstash.postgres.server.connection import Connection
from pgstash.processes import left_behind

# All that a client tool gets of the environment: no secret of pgstash, and no PG… variable.
_VISIBLE = (
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "TZ",
    "KRB5CCNAME",
    "KRB5_CLIENT_KTNAME",
    "KRB5_CONFIG",
    "KRB5_KTNAME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "OPENSSL_CONF",
    left_behind.VARIABLE,
)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the part of an environment that a client tool may see, with messages in English."""
    allowed = {name: value for name, value in environment.items() if name in _VISIBLE}
    return allowed | {"LC_ALL": "C"}


@contextlib.contextmanager
def in_memory(name: str, content: bytes) -> Iterator[tuple[int, str]]:
    """Yield the descriptor and the path of a file in memory; a child must inherit the descriptor.

    https://man7.org/linux/man-pages/man2/memfd_create.2.html
    """
    descriptor = os.memfd_create(name)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def of_login(connection: Connection) -> Iterator[tuple[dict[str, str], tuple[int, ...], str]]:
    """Yield what a child logs in with: variables, descriptors to inherit, its connection string.

    Passwords are passed in PGPASSWORD. The few secrets that have no variable are passed in a
    service file (https://www.postgresql.org/docs/current/libpq-pgservice.html) that exists
    in memory only.
    """
    variables: dict[str, str] = {}
    secrets = connection.secrets_of_login()
    if "password" in secrets:
        variables["PGPASSWORD"] = secrets.pop("password")
    if not secrets:
        yield variables, (), connection.conninfo
        return
    lines = ["[pgstash]", *(f"{key}={value}" for key, value in secrets.items()), ""]
    with in_memory("pg_service.conf", "\n".join(lines).encode("utf-8", "surrogateescape")) as (
        descriptor,
        path,
    ):
        variables["PGSERVICEFILE"] = path
        yield variables, (descriptor,), f"{connection.conninfo} service=pgstash"
