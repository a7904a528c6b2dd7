"""Finds what a restore may not create before it starts, and leaves that out if this is requested.

A new database is judged twice: before it exists, by what is known then, and while it is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import CorruptedError, StorageError, SuperuserRequiredError
from pgstash.format.manifest import Manifest
from pgstash.postgres.restore import owners_and_privileges, rights
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.rights import NOT_AVAILABLE, Rights
from pgstash.postgres.server.connection import Server
from pgstash.postgres.server.quoting import identifier
from pgstash.postgres.tools import toc
from pgstash.repository.archive import Archive
from pgstash.restore import superuser_objects
from pgstash.restore.administrator_file import AdministratorFile
from pgstash.restore.strategy import Strategy
from pgstash.restore.superuser_objects import Verdict

_MOST_NAMED = 50
_PURPOSE = "create what the restoring role may not create"
_AS_SUPERUSER = (
    "Restore as a superuser. Or let an administrator create the missing extensions in an existing "
    "database (CREATE EXTENSION …), and restore into it with --to."
)
_OPTION = "--skip-superuser-objects"


@dataclass(slots=True)
class LeavingOut:
    """What one restore of an archive leaves out."""

    archive: Archive
    request: Request
    strategy: Strategy
    emit: events.Emit
    _is_limited: bool = False
    _contents: toc.Contents | None = None
    _verdict: Verdict = field(default_factory=Verdict)

    def look(self, server: Server) -> LeavingOut:
        """Judge the archive before anything is changed; report in a dry run what is left out.

        Returns itself. Raises SuperuserRequiredError, TargetLostError.
        """
        request = self.request
        if request.rows_only or request.into_existing or request.for_drill:
            return self
        if self.archive.manifest is None:
            return self
        new = request.create is not None
        with rights.asked(server, new=new, hopeful=new and not request.dry_run) as found:
            if found is None:
                return self
            self._is_limited = True
            self._contents = self._read()
            self._judge(found, self.archive.manifest, server)
        if request.dry_run and self._verdict.reasons:
            self.emit(events.Warned(f"Would be left out:{self._list(self._verdict.reasons)}"))
        return self

    def settle(self, into: Server, given: bytes, administrator: AdministratorFile) -> bytes:
        """Judge a new database, leave out what the role may not create, and write it to the file.

        ``given`` is the script of owners and privileges; the rest of it is returned. Raises
        SuperuserRequiredError, TargetLostError.
        """
        if not self._is_limited or self.archive.manifest is None:
            return given
        if self.request.create is not None:
            with rights.asked(into, new=False) as found:
                if found is not None:
                    self._judge(found, self.archive.manifest, into)
        left_out = self._verdict.left_out
        if not left_out or self._contents is None:
            return given
        definitions = {
            each.number: toc.definition(self._contents, each)
            for each in left_out
            if each.description not in superuser_objects.PRIVILEGES
        }
        for each in left_out:
            if not superuser_objects.is_plain(definitions.get(each.number, b"")):
                raise CorruptedError(
                    f"pg_dump does not write such a definition: {superuser_objects.label(each)}",
                    hint="It may contain a command of psql, which an administrator would run.",
                )
        self.strategy.leave_out(self._contents, definitions)
        if not self._verdict.reasons:
            return given
        given, owners = owners_and_privileges.without_entries(
            given, superuser_objects.headings(left_out)
        )
        statements = [
            text.strip()
            for number, text in definitions.items()
            if number not in self._verdict.needless
        ]
        session = superuser_objects.session(self._contents)
        remedy = administrator.add(_PURPOSE, session, [*statements, *owners])
        count = counted(len(self._verdict.reasons), "object")
        administrator.warn(f"{count} left out:{self._list(self._verdict.reasons)}\n{remedy}")
        return given

    def _read(self) -> toc.Contents | None:
        """Return the table of contents; None if the backup has none, or it cannot be read."""
        if not self.archive.is_seekable:
            return None
        try:
            return toc.read(self.archive.schema())
        except (CorruptedError, StorageError, toc.TocError) as error:
            self.emit(
                events.Warned(
                    f"Objects that need a superuser are not known before the restore: {error}"
                )
            )
            return None

    def _judge(self, found: Rights, manifest: Manifest, server: Server) -> None:
        if self._contents is None:
            verdict = _of_extensions(found, manifest)
        else:
            selected = self.strategy.selected
            entries = superuser_objects.restored(
                self._contents, selected.after if selected else None
            )
            filled = {
                (_bytes(each.schema), _bytes(each.name)) for each in manifest.tables if each.rows
            }
            verdict = superuser_objects.judge(self._contents, entries, found, filled)
        self._verdict = verdict
        if self.request.skip_superuser_objects:
            can_go_on = self._contents is not None and not verdict.in_the_way
        else:
            # Extensions that are not available are refused with other hints, but not those of a
            # partial backup, which may not contain them.
            can_go_on = not manifest.options and all(
                each.endswith(NOT_AVAILABLE) for each in verdict.reasons
            )
        if (not verdict.reasons or can_go_on or found.guessed) and not verdict.closed:
            return
        user = server.connection.parameters.get("user", "the login")
        if verdict.closed:
            raise self._closed(verdict, user, server.database.host)
        count = counted(len(verdict.reasons), "object")
        message = (
            f"the role {user} may not create {count} of the backup on {server.database.host}:"
            f"{self._list(verdict.reasons)}"
        )
        if verdict.in_the_way:
            message += f"\nThese objects of the backup need them:{self._list(verdict.in_the_way)}"
        raise SuperuserRequiredError(message, hint=self._hint(verdict))

    def _closed(self, verdict: Verdict, user: str, host: str) -> SuperuserRequiredError:
        tables = verdict.closed
        grants = " ".join(f"GRANT INSERT ON {each} TO {identifier(user)};" for each in tables)
        return SuperuserRequiredError(
            f"the role {user} may not load rows into {counted(len(tables), 'table')} of "
            f"extensions on {host}:{self._list(tables)}",
            hint=f"Let an administrator allow it in the target database: {grants}",
        )

    def _hint(self, verdict: Verdict) -> str:
        lines = [_AS_SUPERUSER]
        if self._contents is None:
            lines.append(f"{_OPTION} cannot help: the backup has no table of contents.")
        elif verdict.in_the_way:
            lines.append(f"{_OPTION} cannot help: it leaves out no rows, and nothing that is used.")
        else:
            lines.append(
                f"Or restore without these objects, with {_OPTION}: their SQL is written to a file "
                "for an administrator."
            )
        return "\n".join(lines)

    @staticmethod
    def _list(lines: Sequence[str]) -> str:
        more = len(lines) - _MOST_NAMED
        shown = "".join(f"\n  {line}" for line in lines[:_MOST_NAMED])
        return shown + (f"\n  and {more:,} more" if more > 0 else "")


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _of_extensions(found: Rights, manifest: Manifest) -> Verdict:
    """Judge the extensions of a backup without a table of contents."""
    verdict = Verdict()
    if manifest.options:  # they may have left out extensions
        return verdict
    for each in manifest.extensions:
        if reason := found.extension(each.name.encode()):
            verdict.reasons.append(f"extension {each.name}: {reason}")
    return verdict
