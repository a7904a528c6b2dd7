"""Stores the companions of an archive before it becomes visible, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pgstash import events
from pgstash.backup.dump_stream import Stream
from pgstash.backup.job import Job
from pgstash.errors import DatabaseError, DumpError, PgstashError, StorageError
from pgstash.format import manifest as manifests
from pgstash.format import metadata, names
from pgstash.format.manifest import Manifest
from pgstash.pipeline import encryption, recipients
from pgstash.postgres.dump import globals as globals_dump
from pgstash.postgres.dump import owners_and_privileges, schema_dump, statistics
from pgstash.postgres.dump.owners_and_privileges import Objects, Script
from pgstash.postgres.dump.schema_dump import CompositionError
from pgstash.postgres.tools.tool_run import Limits, ToolRun
from pgstash.repository.keys import recipients_metadata

_WITHOUT_PRIVILEGES = (
    "The backup is complete without them. After a restore, all objects belong to the role that "
    "restored them, and nothing is granted to others."
)


class _Named(Protocol):
    def __call__(self, base: str, backup_id: str, /, *, encrypted: bool) -> str: ...


@dataclass(frozen=True, slots=True)
class Digests:
    """The SHA-256 of the plain text of each companion; None if it was not stored.

    ``globals_passwords`` is whether the stored roles have their passwords; ``privilege_roles`` are
    the roles in the script of owners and privileges.
    """

    globals: str | None
    globals_passwords: bool
    privileges: str | None
    schema: str | None
    statistics: str | None
    privilege_roles: Sequence[str]


class Companions:
    """Stores the companions of one backup, and removes them if there will be no archive."""

    def __init__(self, job: Job) -> None:
        """Store nothing yet."""
        self._job = job
        source = job.others.source.metadata()
        self._metadata = {"id": job.id, **metadata.encoded(source)}
        self._keys: list[str] = []

    def store_key(self) -> None:
        """Store the wrapped passphrase, if the backup has one of its own. Raises StorageError."""
        sealing, base, backup_id = self._job.sealing, self._job.base, self._job.id
        public, kms = recipients.of_age(sealing.recipients), recipients.of_kms(sealing.recipients)
        for name, packed, wrapped_for in (
            (names.key_name(base, backup_id), sealing.wrapped, public),
            (names.kms_name(base, backup_id), sealing.kms, kms),
        ):
            if packed is not None:
                values = metadata.encoded(recipients_metadata(wrapped_for))
                self._put(name, packed, {**self._metadata, **values})

    def store_contents(self, tool_run: ToolRun, stream: Stream) -> Digests:
        """Store the roles, owners and privileges, and the table of contents if there is one.

        A backup without roles, owners and privileges is still a backup: if they cannot be dumped,
        that is a warning. Raises StorageError.
        """
        server = self._job.server
        passwords = self._may_store_passwords()
        roles = self._dumped(
            "The roles of the server are",
            lambda: globals_dump.dump_globals(server, tool_run, passwords=passwords),
        )
        named: list[str] = []

        def dump_privileges() -> bytes:
            made = self._privileges(tool_run, stream.owners)
            named.extend(made.roles)
            return made.text

        what = "The owners and privileges of the database's objects are"
        privileges = self._dumped(what, dump_privileges)
        return Digests(
            globals=self._store(names.globals_name, roles),
            globals_passwords=passwords and bool(roles),
            privileges=self._store(names.privileges_name, privileges),
            schema=self._store(names.schema_name, stream.schema),
            statistics=self._store(names.statistics_name, self._statistics(tool_run)),
            privilege_roles=named if privileges else (),
        )

    def _may_store_passwords(self) -> bool:
        """Return whether to store passwords of roles; warn if they are wanted and cannot be."""
        if not self._job.plan.stores_passwords:
            return False
        try:
            problem = globals_dump.passwords_problem(self._job.server)
        except DatabaseError as error:
            problem = f"{error.message}, so the passwords of roles are not stored", error.hint
        if problem:
            self._job.emit(events.Warned("\n".join(problem).rstrip()))
        return problem is None

    def _privileges(self, tool_run: ToolRun, made: Objects | CompositionError | None) -> Script:
        server, plan = self._job.server, self._job.plan
        try:
            if made is None:  # one pg_dump made the dump, which has no table of contents
                limits = Limits(lock=plan.lock_seconds, idle=plan.idle_seconds)
                silent = replace(tool_run, emit=events.ignore)  # the dump itself has logged it
                with schema_dump.opened(
                    server, silent, plan.options, limits, snapshot=None
                ) as contents:
                    made = owners_and_privileges.of_objects(tool_run, contents)
            if isinstance(made, CompositionError):
                raise made
            return owners_and_privileges.complete(server, made)
        except CompositionError as error:
            raise DumpError(error.message, hint=_WITHOUT_PRIVILEGES) from error

    def _statistics(self, tool_run: ToolRun) -> bytes | None:
        """Return the statistics for the planner; None if there are none, or they are refused."""
        server, options = self._job.server, self._job.plan.options
        if not statistics.wanted(server, tool_run.client, options):
            return None
        try:
            return statistics.dump(server, tool_run, options)
        except DatabaseError as error:
            self._job.emit(
                events.Informed(
                    f"The statistics for the planner are not stored: {error.message}. A restore "
                    "runs ANALYZE instead"
                )
            )
            return None

    def _dumped(self, what: str, dump: Callable[[], bytes]) -> bytes | None:
        """Return the text of a companion; None, with a warning, if it cannot be dumped."""
        try:
            text = dump()
            if len(text) > manifests.LARGEST:
                raise DumpError(f"{len(text)} bytes are more than a restore reads")
        except DatabaseError as error:
            reason = f"{error.message}\n{error.hint}".rstrip()
            self._job.emit(events.Warned(f"{what} not stored with the backup: {reason}"))
            return None
        return text

    def _store(self, named: _Named, text: bytes | None) -> str | None:
        """Store a companion if there is one, and return the digest of its text."""
        if not text:
            return None
        key = self._job.new_key()
        name = named(self._job.base, self._job.id, encrypted=key is not None)
        self._put(name, encryption.sealed(text, key), self._metadata)
        return hashlib.sha256(text).hexdigest()

    def store_manifest(self, manifest: Manifest, seconds: float) -> None:
        """Store the manifest; its metadata repeat some of it, and that the backup took ``seconds``.

        Raises DumpError if it is larger than a restore would read, StorageError.
        """
        key = self._job.new_key()
        name = names.manifest_name(self._job.base, self._job.id, encrypted=key is not None)
        text = manifests.dump(manifest, key.authenticate if key else None)
        if len(text) > manifests.LARGEST:
            raise DumpError(
                f"the manifest of {len(manifest.members)} members and {len(manifest.tables)} "
                "tables would be larger than what a restore reads",
                hint="Back the database up in parts with EXCLUDE_SCHEMAS and EXCLUDE_TABLES, each "
                "part to a BACKUP_PREFIX of its own.",
            )
        values = metadata.facts(manifest, seconds) | self._job.sealing.metadata(key)
        self._put(name, encryption.sealed(text, key), values)

    def remove(self, error: BaseException) -> None:
        """Remove all of them, because the archive certainly does not exist and never will.

        A signal leaves no time for it, a store that is down no way, and some hosts may not delete:
        then pruning removes them. Companions that are left
        mean nothing without an archive that has their id.
        """
        if self._keys and self._job.plan.may_delete and isinstance(error, PgstashError):
            with contextlib.suppress(StorageError):
                self._job.storage.delete(self._keys)

    def _put(self, name: str, data: bytes, values: Mapping[str, str]) -> None:
        self._keys.append(f"{self._job.plan.prefix}/{name}")
        self._job.storage.put(self._keys[-1], data, values)
