"""What happened, as frozen values: any package may emit them, any listener may receive them.

Sizes are in bytes, durations in seconds; ``name`` is the name of the archive without its
prefix (``backup_20260131_020000.sql.gz``). Import events from here, not from the modules.
"""

from pgstash.events.backup import (
    BackupAttempted,
    BackupFailed,
    BackupStarted,
    BackupSucceeded,
    DumpFinished,
    DumpStarted,
    IterationStarted,
    NextRunPlanned,
    Progressed,
    UploadFinished,
    UploadStarted,
)
from pgstash.events.base import (
    Emit,
    Event,
    Informed,
    Notice,
    Retrying,
    ToolSaid,
    UploadLeftBehind,
    Warned,
    ignore,
)
from pgstash.events.drill import (
    DrillFailed,
    DrillStarted,
    DrillSucceeded,
)
from pgstash.events.prune import (
    KEPT_AS_PROVEN,
    BackupKept,
    BackupRemoved,
    LeftoverSwept,
    OthersLeft,
    PruneFailed,
    PruneFinished,
)
from pgstash.events.restore import (
    BackupChosen,
    RestoreFailed,
    RestorePlanned,
    RestoreProgressed,
    RestoreStarted,
    RestoreSucceeded,
    RestoreTargeted,
    RoleCreated,
    StatisticsUpdated,
)

__all__ = [
    "KEPT_AS_PROVEN",
    "BackupAttempted",
    "BackupChosen",
    "BackupFailed",
    "BackupKept",
    "BackupRemoved",
    "BackupStarted",
    "BackupSucceeded",
    "DrillFailed",
    "DrillStarted",
    "DrillSucceeded",
    "DumpFinished",
    "DumpStarted",
    "Emit",
    "Event",
    "Informed",
    "IterationStarted",
    "LeftoverSwept",
    "NextRunPlanned",
    "Notice",
    "OthersLeft",
    "Progressed",
    "PruneFailed",
    "PruneFinished",
    "RestoreFailed",
    "RestorePlanned",
    "RestoreProgressed",
    "RestoreStarted",
    "RestoreSucceeded",
    "RestoreTargeted",
    "Retrying",
    "RoleCreated",
    "StatisticsUpdated",
    "ToolSaid",
    "UploadFinished",
    "UploadLeftBehind",
    "UploadStarted",
    "Warned",
    "ignore",
]
