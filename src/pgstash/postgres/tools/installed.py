"""Finds the PostgreSQL client tools that fit a server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pgstash.errors import ClientToolsError, ScratchError
from pgstash.postgres.server.connection import Connection
from pgstash.postgres.tools.environment import child_environment

# Where packages put several majors side by side: Debian and Ubuntu, RHEL, Alpine, Homebrew.
_PACKAGED = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(\S*)")
_SECONDS_FOR_VERSION = 10
_INVALID_OPTION = re.compile(r'invalid connection option "(\w+)"')

# The parameters that even the oldest libpq knows, and the majors that introduced the others
# (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS).
_KNOWN_TO_ALL = frozenset(
    {
        "application_name",
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "gssencmode",
        "gsslib",
        "host",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "options",
        "passfile",
        "password",
        "port",
        "replication",
        "requirepeer",
        "service",
        "ssl_max_protocol_version",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcompression",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslpassword",
        "sslrootcert",
        "target_session_attrs",
        "tcp_user_timeout",
        "user",
    }
)
_SINCE = {
    "gssdelegation": 17,
    "load_balance_hosts": 16,
    "max_protocol_version": 18,
    "min_protocol_version": 18,
    "oauth_client_id": 18,
    "oauth_client_secret": 18,
    "oauth_issuer": 18,
    "oauth_scope": 18,
    "require_auth": 16,
    "scram_client_key": 18,
    "scram_server_key": 18,
    "sslcertmode": 16,
    "sslcrldir": 14,
    "sslkeylogfile": 18,
    "sslnegotiation": 17,
    "sslsni": 14,
}


@dataclass(frozen=True, slots=True)
class ClientTools:
    """One installed set of client tools: its folder and its version.

    ``minor`` is the number after the major; -1 for a beta or a release candidate.
    """

    folder: Path
    major: int
    version: str
    minor: int = -1

    @property
    def pg_dump(self) -> Path:
        """The path of pg_dump."""
        return self.folder / "pg_dump"

    @property
    def pg_dumpall(self) -> Path:
        """The path of pg_dumpall."""
        return self.folder / "pg_dumpall"

    @property
    def pg_restore(self) -> Path:
        """The path of pg_restore."""
        return self.folder / "pg_restore"

    @property
    def psql(self) -> Path:
        """The path of psql."""
        return self.folder / "psql"


def find(server_major: int, path: str, environment: Mapping[str, str] | None = None) -> ClientTools:
    """Return the latest tools of the server's major, else of the next newer major.

    ``path`` is a search path as in ``PATH``. The tools are asked for their version with a part of
    ``environment``, or with the path alone if it is not given. pg_dump refuses a server newer than
    itself (https://www.postgresql.org/docs/current/app-pgdump.html, Notes), and a much newer one
    writes settings that an old server rejects. Raises ClientToolsError, which names the package to
    install.
    """
    visible = child_environment(environment or {"PATH": path})
    installed = list(_installed(path, visible))
    fitting = [tools for tools in installed if tools.major >= server_major]
    if fitting:
        return min(fitting, key=_nearest)
    found = ", ".join(sorted({tools.version for tools in installed})) or "none"
    raise ClientToolsError(
        f"no pg_dump fits PostgreSQL {server_major} (installed: {found})",
        hint=(
            f"Install the client of PostgreSQL {server_major}, or a newer one: "
            f"postgresql-client-{server_major} (Debian and Ubuntu, from apt.postgresql.org if "
            f"their own repository lacks it), postgresql{server_major} (RHEL, from "
            f"yum.postgresql.org) or postgresql{server_major}-client (Alpine)."
        ),
    )


def refuse_unknown_parameters(
    tools: ClientTools, connection: Connection, environment: Mapping[str, str]
) -> None:
    """Raise ClientToolsError if the tools do not know a parameter of the connection.

    pgstash's own libpq may be newer than theirs. Their version does not determine their libpq, so
    pg_dump is asked.
    """
    # Empty parameters are not passed on: they only keep the environment from filling them in.
    given = {name for name, value in connection.parameters.items() if value}
    left = sorted({*given, *connection.secrets} - _KNOWN_TO_ALL)
    unknown: list[str] = []
    while left and (refused := _refused(tools, left, environment)):
        unknown.append(refused)
        left.remove(refused)
    if not unknown:
        return
    names = ", ".join(unknown)
    since = max(_SINCE.get(name, 0) for name in unknown)
    version = f"PostgreSQL {since}, or a newer one" if since else "a newer PostgreSQL"
    raise ClientToolsError(
        f"pg_dump {tools.version} in {tools.folder} does not know these parameters of the "
        f"connection: {names}",
        hint=f"Install the client of {version}. Or remove {names} from DATABASE_URL, the "
        "environment and the service file.",
    )


def _refused(
    tools: ClientTools, names: Sequence[str], environment: Mapping[str, str]
) -> str | None:
    """Return the first of these parameters that pg_dump refuses; it does not connect."""
    conninfo = " ".join(["host=/nonexistent", "dbname=x", *(f"{name}=''" for name in names)])
    try:
        answer = subprocess.run(  # noqa: S603 - a path that was found, no shell
            [str(tools.pg_dump), "--no-password", f"--dbname={conninfo}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=child_environment(environment),
            start_new_session=True,
            timeout=_SECONDS_FOR_VERSION,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # the dump itself will report the cause
    # It runs with English messages. Its other message is that no server answers.
    found = _INVALID_OPTION.search(answer.stderr.decode(errors="replace"))
    return found[1] if found and found[1] in names else None


def find_server(major: int, path: str, environment: Mapping[str, str] | None = None) -> ClientTools:
    """Return tools of this major, else of the next newer one, with a server in their folder.

    Arguments as in :func:`find`. Raises ScratchError, which names the package to install.
    """
    visible = child_environment(environment or {"PATH": path})
    fitting = [
        tools
        for tools in _installed(path, visible)
        if tools.major >= major
        and all(shutil.which(name, path=str(tools.folder)) for name in ("postgres", "initdb"))
    ]
    if fitting:
        return min(fitting, key=_nearest)
    raise ScratchError(
        f"no server of PostgreSQL {major} or newer is installed here to restore into",
        hint=f"Install its package (Debian and Ubuntu: postgresql-{major}, RHEL: "
        f"postgresql{major}-server, Alpine: postgresql{major}), or set VERIFY_DATABASE_URL to a "
        "server on which pgstash may create temporary databases.",
    )


def _nearest(tools: ClientTools) -> tuple[int, int]:
    """Order by major, the latest release of each first: it has the most bug fixes."""
    return tools.major, -tools.minor


def _installed(path: str, environment: Mapping[str, str]) -> Iterator[ClientTools]:
    folders = [
        folder
        for pattern in _PACKAGED
        for folder in sorted(Path("/").glob(pattern.removeprefix("/")))
    ]
    folders += [Path(entry) for entry in path.split(":") if entry]
    for folder in dict.fromkeys(folders):
        pg_dump = shutil.which("pg_dump", path=str(folder))
        # Debian's wrapper in /usr/bin chooses a major by its own rules. The real tools are above.
        if pg_dump and Path(pg_dump).resolve().name != "pg_wrapper":
            version = _version_of([pg_dump, "--version"], environment)
            if version:
                yield ClientTools(folder, *version)


def _version_of(
    command: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, str, int] | None:
    try:
        answer = subprocess.run(  # noqa: S603 - a path found above, no shell
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            start_new_session=True,
            timeout=_SECONDS_FOR_VERSION,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None  # it cannot be run
    match = _VERSION.search(answer.stdout.decode(errors="replace"))
    if not match:
        return None
    minor = match[2].removeprefix(".")
    return int(match[1]), match[1] + match[2], int(minor) if minor.isdecimal() else -1
