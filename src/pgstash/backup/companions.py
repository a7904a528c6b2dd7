"""What is stored beside an archive before that becomes visible: roles, objects, the manifest."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pgstash import events
from pgstash import manifest as manifests
from pgstash.errors import DatabaseError, DumpError, PgstashError, StorageError
from pgstash.manifest import Manifest
from pgstash.pipeline import encryption
from pgstash.postgres import roles
from pgstash.postgres.source import Server
from pgstash.postgres.tools import ClientTools
from pgstash.storage.interface import Storage


@dataclass(frozen=True, slots=True)
class Beside:
    """Stores companions of one backup, and takes them back if there will be no archive.

    ``prefix`` is without a slash at its end, ``new_key`` derives a key for one object, or none;
    ``of_source`` is the metadata that say of which source they are.
    """

    storage: Storage
    prefix: str
    base: str
    backup_id: str
    new_key: Callable[[], encryption.Key | None]
    of_source: Mapping[str, str]
    emit: events.Emit
    _keys: list[str] = field(default_factory=list)

    def store_globals(
        self, server: Server, client: ClientTools, environment: Mapping[str, str]
    ) -> str | None:
        """Store the server's roles, and return their digest.

        Without them, which is a warning, a backup is still one. Raises StorageError.
        """
        try:
            script = roles.dump_globals(server, client, environment, self.emit)
        except DatabaseError as error:
            what = "The roles of the server are not stored beside the backup"
            self.emit(events.Warned(f"{what}: {error.message}\n{error.hint}".rstrip()))
            return None
        key = self.new_key()
        name = manifests.globals_name(self.base, self.backup_id, encrypted=key is not None)
        self._put(name, encryption.sealed(script, key), {"id": self.backup_id, **self.of_source})
        return hashlib.sha256(script).hexdigest()

    def store_schema(self, head: bytes) -> str:
        """Store a table of contents, and return its digest. Raises StorageError."""
        key = self.new_key()
        name = manifests.schema_name(self.base, self.backup_id, encrypted=key is not None)
        self._put(name, encryption.sealed(head, key), {"id": self.backup_id, **self.of_source})
        return hashlib.sha256(head).hexdigest()

    def store_manifest(self, manifest: Manifest, facts: Mapping[str, str]) -> None:
        """Store the manifest, with ``facts`` as its metadata.

        Raises DumpError where it is larger than what a restore would read, StorageError.
        """
        key = self.new_key()
        name = manifests.manifest_name(self.base, self.backup_id, encrypted=key is not None)
        text = manifests.dump(manifest, key.authenticate if key else None)
        if len(text) > manifests.LARGEST:
            raise DumpError(
                f"the manifest of {len(manifest.members)} members and {len(manifest.tables)} "
                "tables would be larger than what a restore reads",
                hint="Back it up in parts: EXCLUDE_SCHEMAS and EXCLUDE_TABLES, each part to a "
                "BACKUP_PREFIX of its own.",
            )
        self._put(name, encryption.sealed(text, key), facts)

    def remove(self, error: BaseException) -> None:
        """Remove it all, because the archive certainly is not there and will not be.

        A signal leaves no time for it, and a store that is down no way; without an archive of
        its id it means nothing.
        """
        if self._keys and isinstance(error, PgstashError):
            with contextlib.suppress(StorageError):
                self.storage.delete(self._keys)

    def _put(self, name: str, data: bytes, metadata: Mapping[str, str]) -> None:
        self._keys.append(f"{self.prefix}/{name}")
        self.storage.put(self._keys[-1], data, metadata)
