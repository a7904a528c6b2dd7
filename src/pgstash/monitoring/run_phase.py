"""The phase of a backup or a drill, by a few fixed names: for records of failures, and metrics."""

from __future__ import annotations

from typing import Literal

from pgstash import events

RunPhase = Literal["preparing", "dumping", "uploading", "restoring", "checking"]
"""``preparing`` ends when the dump or the restore begins. Uploading starts while the dump runs; the
phase of that name is the time from the end of the dump to that of the upload."""


def after(event: events.Event) -> RunPhase | None:
    """Return the phase that an event begins; None if it begins none."""
    match event:
        case events.BackupAttempted() | events.DrillAttempted():
            return "preparing"
        case events.DumpStarted():
            return "dumping"
        case events.DumpFinished():
            return "uploading"
        case events.DrillStarted():
            return "restoring"
        case events.PhaseStarted(phase="checks"):
            return "checking"
        case _:
            return None
