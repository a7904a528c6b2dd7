"""A file of statements that a restore may not run, for an administrator to run with psql.

It is in the working directory, and exists only if there are such statements. They may contain
secrets, such as settings of a database: only the user of pgstash may read the file.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pgstash import events
from pgstash.counting import counted
from pgstash.postgres.restore.target import Outcome, TargetState
from pgstash.postgres.server import conninfo

_SUPERUSER = "postgres"  # the usual name, to be replaced if there is another one
_MOST_LOGGED = 100
# Text in quotes of any kind, and names in quotes, which stay: a quote in a name begins no text.
_QUOTED = re.compile(
    rb"""("(?:[^"]|"")*+")|E?'(?:[^']|'')*+'"""
    rb"""|\$((?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*+)?)\$.*?\$\2\$""",
    re.DOTALL,
)
_BREAKS = re.compile(r"[\x00-\x1f\x7f]+")


@dataclass(slots=True)
class AdministratorFile:
    """The statements for an administrator: the first ones create the file, more are appended.

    ``backup`` is the name of the archive, and ``url`` leads to the server of the ``database``.
    ``path`` is that of the file once it exists.
    """

    backup: str
    url: str = field(repr=False)
    database: str
    emit: events.Emit
    path: Path | None = None
    _warnings: list[str] = field(default_factory=list)

    def add(self, purpose: str, session: Sequence[bytes], statements: Sequence[bytes]) -> str:
        """Append statements; return the sentence for a warning that shows where they are.

        ``purpose`` completes "These statements …". ``session`` sets up the session for them, first
        of all its encoding. If no file can be written, the statements are logged, without text in
        quotes. Each statement ends in a semicolon.
        """
        title = _comment(f"These statements {purpose}")
        section = b"\n".join([title, b"", *session, b"", *statements, b"", b""])
        try:
            self._write(section)
        except OSError as error:
            self._log(statements)
            return (
                f"The file for an administrator cannot be written ({error.strerror}): the log has "
                f"its {counted(len(statements), 'statement')}, without text in quotes"
            )
        return f"To run the rest as a superuser: {self._command(str(self.path))}"

    def warn(self, message: str) -> None:
        """Warn of what is left to do, at the end and only if the database is there then."""
        self._warnings.append(message)

    def close(self) -> None:
        """Emit the warnings."""
        for message in self._warnings:
            self.emit(events.Warned(message, to_do=True))

    def discard(self) -> None:
        """Remove the file, and drop the warnings: the database does not exist."""
        if self.path:
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _write(self, section: bytes) -> None:
        if self.path is None:
            self._create(section)
            return
        with self.path.open("ab") as file:
            size = file.tell()
            try:
                file.write(section)
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), size)
                raise

    def _create(self, section: bytes) -> None:
        for path in self._paths():
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            except FileExistsError:
                continue
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(self._head(path.name) + section)
            except OSError:
                path.unlink()
                raise
            self.path = path
            return

    def _paths(self) -> Iterator[Path]:
        base = Path(self.backup).name.partition(".")[0]
        folder = Path.cwd()
        yield folder / f"{base}.for_administrator.sql"
        for number in itertools.count(2):
            yield folder / f"{base}.for_administrator_{number}.sql"

    def _head(self, name: str) -> bytes:
        lines = [
            f"What the restore of {self.backup} could not do in the database {self.database}.",
            "Run it as a superuser, with psql:",
            f"    {self._command(name)}",
            "psql reports an error and continues. You can run the file again.",
        ]
        return b"\n".join([*map(_comment, lines), b"", b""])

    def _command(self, path: str) -> str:
        uri = conninfo.login_uri(self.url, self.database, _SUPERUSER)
        return shlex.join(["psql", "-X", "-d", uri, "-f", path])

    def _log(self, statements: Sequence[bytes]) -> None:
        lines = [_without_text(each) for each in statements[:_MOST_LOGGED]]
        text = b"\n".join(lines).decode(errors="backslashreplace")
        more = len(statements) - len(lines)
        if more:
            text += f"\nand {counted(more, 'more statement')}"
        self.emit(events.Informed(f"For an administrator of {self.database}:\n{text}"))


@contextlib.contextmanager
def kept(
    backup: str, url: str, database: str, state: TargetState, emit: events.Emit
) -> Iterator[AdministratorFile]:
    """Provide the file for a restore into this database; discard it if that leaves no database.

    ``state`` is that of the target.
    """
    file = AdministratorFile(backup, url, database, emit)
    try:
        yield file
    except BaseException:
        if state.outcome is Outcome.NOTHING:
            file.discard()
        else:
            file.close()
        raise
    file.close()


def _without_text(statement: bytes) -> bytes:
    return _QUOTED.sub(lambda found: found[1] or b"'...'", statement)


def _comment(text: str) -> bytes:
    """Return a line of comment that no name can end, in any encoding."""
    return b"-- " + _BREAKS.sub(" ", text).encode("ascii", "backslashreplace")
