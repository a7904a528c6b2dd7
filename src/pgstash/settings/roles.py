"""The role of this host: whether it may read and delete what it stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

SETTING = "STORAGE_ROLE"
_SHORT = "ROLE"
WRITER = "writer"


def settle(values: MutableMapping[str, str]) -> list[str]:
    """Take ``ROLE=writer`` for ``STORAGE_ROLE=writer``; return a note if that was done.

    Any other value of ``ROLE`` belongs to another program.
    """
    if SETTING in values or values.get(_SHORT, "").strip() != WRITER:
        return []
    values[SETTING] = WRITER
    note = (
        f"{_SHORT}={WRITER} means {SETTING}={WRITER}: this host neither reads nor deletes backups. "
        f"If {_SHORT} is meant for another program, set {SETTING}=full."
    )
    return [note]


def problems(values: Mapping[str, str]) -> Iterator[str]:
    """Yield the settings that a writer cannot have."""
    if values.get(SETTING, "").strip() == WRITER and "VERIFY_INTERVAL" in values:
        yield (
            f"VERIFY_INTERVAL is set, but with {SETTING}={WRITER} this host cannot read backups. "
            "Unset VERIFY_INTERVAL, and run `pgstash drill` on another host."
        )
    if values.get(SETTING, "").strip() == WRITER and "COPY_TO" in values:
        yield (
            f"COPY_TO is set, but with {SETTING}={WRITER} this host cannot read what it would "
            "copy. Unset COPY_TO, and set it on another host."
        )
