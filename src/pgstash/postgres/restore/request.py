"""What was asked of a restore: it travels whole from the command line to the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Request:
    """What to restore, and what the restore may do to the target.

    ``create`` is the name of a new database on the target's server; ``any_locale`` allows it
    another locale if the server does not have the original one. ``any_name`` allows an existing
    target with another name than the database of the backup, and ``overwrite`` one that holds
    objects. With ``replace``, the new database takes the place of an existing one of its name.
    ``tables`` are patterns for the only tables to restore; ``rows_only`` restores nothing but their
    rows, and ``into_existing`` restores them next to what the target holds, the only one of
    them under another name if it is to be ``renamed``. ``create_roles``
    creates missing roles; with ``for_drill`` they are marked, and dropped after the drill. A
    ``dry_run`` changes nothing. Restored objects get the owners of the source, unless
    ``no_owner``, and its privileges, unless ``no_privileges``; and so does a new database itself.
    Statistics for the planner are updated at the end, unless ``no_analyze``. Objects that the
    restoring role may not create are left out with ``skip_superuser_objects``. With ``mark``, the
    database is marked as restored from the backup, for a recovery of the whole server.
    """

    create: str | None = None
    any_name: bool = False
    overwrite: bool = False
    tables: Sequence[str] = ()
    rows_only: bool = False
    into_existing: bool = False
    renamed: str = ""
    create_roles: bool = False
    dry_run: bool = False
    any_locale: bool = False
    for_drill: bool = False
    no_owner: bool = False
    no_privileges: bool = False
    replace: bool = False
    no_analyze: bool = False
    mark: bool = False
    skip_superuser_objects: bool = False

    @property
    def gives_privileges(self) -> bool:
        """Whether to restore owners and privileges by the script that is stored for them."""
        whole = not (self.for_drill or self.rows_only or self.into_existing)
        return whole and not (self.no_owner and self.no_privileges)
