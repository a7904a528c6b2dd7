"""What a backup, a restore or a drill is doing, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pgstash import events
from pgstash.counting import counted
from pgstash.monitoring.messages import size, span

# Whichever comes first begins a run: finding its backup, and a login, may take seconds.
_STARTS = (
    events.BackupAttempted,
    events.BackupStarted,
    events.RestoreTargeted,
    events.RestoreStarted,
    events.DrillAttempted,
    events.DrillStarted,
    events.CopyStarted,
)
# The service makes copies during other runs, which do not end with them.
_COPY_ENDS = (events.CopySucceeded, events.CopyFailed)
_ENDS = (
    events.UploadFinished,
    events.BackupSucceeded,
    events.BackupFailed,
    events.RestorePlanned,
    events.RestoreSucceeded,
    events.RestoreFailed,
    events.DrillSucceeded,
    events.DrillFailed,
    *_COPY_ENDS,
)
_MOST_PERCENT = 99  # as long as it runs
_LEAST_SECONDS = 5.0  # before the time that is left is estimated


@dataclass(slots=True)
class _Phase:
    """A phase that ``began`` at a time, with ``total`` steps; ``what`` is being worked on."""

    began: float
    name: str = "preparing"
    total: int | None = None
    done: int = 0
    what: str = ""


@dataclass(slots=True)
class _Run:
    """A run that ``began`` at a time, what it was last known to do, and how much it has to do."""

    began: float
    phase: _Phase
    bytes: events.Progressed | events.RestoreProgressed | events.CopyProgressed | None = None
    sizes: events.UploadStarted | None = None
    is_copy: bool = False


@dataclass(frozen=True, slots=True)
class _Done:
    """The ``share`` that is done, None if it is unknown, and facts about it."""

    share: float | None
    facts: list[str] = field(default_factory=list)


class RunState:
    """Follows the events of one run after the other; any thread may ask for the text.

    ``running`` is whether there is anything to show.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """Measure by ``clock``, in seconds."""
        self._clock = clock
        self._run = self._new_run()
        self.running = False

    def update(self, event: events.Event) -> bool:
        """Take an event. Return whether it starts a run."""
        run = self._run
        match event:
            case events.UploadStarted():
                run.sizes = event
            case events.PhaseStarted():
                run.phase = _Phase(self._clock(), event.phase, event.total)
            case events.StepsDone():
                run.phase.done = event.done
            case events.WorkingOn():
                run.phase.what = event.what
            case events.Progressed() | events.RestoreProgressed() | events.CopyProgressed():
                run.bytes = event
                self.running = True
            case _ if isinstance(event, _STARTS) and not self.running:
                self._run = self._new_run()
                self._run.is_copy = isinstance(event, events.CopyStarted)
                self.running = True
                return True
            case _ if isinstance(event, _ENDS) and isinstance(event, _COPY_ENDS) <= run.is_copy:
                self.running = False
            case _:
                pass
        return False

    def _new_run(self) -> _Run:
        now = self._clock()
        return _Run(now, _Phase(now))

    def text(self) -> str:
        """Return the line, such as ``rows: 45%, 30MB of 66MB read, …, 30s elapsed``."""
        run = self._run
        phase, now = run.phase, self._clock()
        seconds = now - phase.began
        match run.bytes:
            case events.Progressed():
                name, done = "", _backup(run.bytes, run.sizes, seconds)
            case events.CopyProgressed():
                name, done = "copying", _copy(run.bytes, seconds)
            case events.RestoreProgressed() if "rows" in phase.name:
                name, done = phase.name, _rows(run.bytes, seconds)
            case _:
                name, done = phase.name, _steps(phase)
        facts = [*done.facts, phase.what] if phase.what else done.facts
        if done.share is not None:
            facts = [f"{min(int(done.share * 100), _MOST_PERCENT)}%", *facts]
        facts = [*facts, f"{span(now - run.began)} elapsed"]
        if done.share and done.share < 1 and seconds >= _LEAST_SECONDS:
            facts.append(f"about {span(seconds * (1 - done.share) / done.share)} left")
        return f"{name}: {', '.join(facts)}" if name else ", ".join(facts)


def _backup(latest: events.Progressed, sizes: events.UploadStarted | None, seconds: float) -> _Done:
    """Judge a backup by the size of the latest ones, or else by that of the database.

    One that is larger than that shows that the estimate was wrong.
    """
    facts = [f"{size(latest.raw_bytes)} read"]
    if latest.rows:
        facts.append(counted(latest.rows, "row"))
    facts += [f"{size(latest.stored_bytes)} stored", *_rate(latest.raw_bytes, seconds)]
    share = None
    if sizes and sizes.usual_bytes:
        share = latest.stored_bytes / sizes.usual_bytes
    elif sizes and sizes.database_bytes:
        share = latest.raw_bytes / sizes.database_bytes
    return _Done(None if share is None or share > 1 else share, facts)


def _rows(latest: events.RestoreProgressed, seconds: float) -> _Done:
    of_total = f" of {size(latest.total)}" if latest.total else ""
    facts = [
        f"{size(latest.stored_bytes)}{of_total} read",
        f"{size(latest.raw_bytes)} restored",
        *_rate(latest.raw_bytes, seconds),
    ]
    return _Done(latest.stored_bytes / latest.total if latest.total else None, facts)


def _copy(latest: events.CopyProgressed, seconds: float) -> _Done:
    facts = [f"{size(latest.sent_bytes)} of {size(latest.total)} sent"]
    facts += _rate(latest.sent_bytes, seconds)
    return _Done(latest.sent_bytes / latest.total if latest.total else None, facts)


def _steps(phase: _Phase) -> _Done:
    if not phase.total:
        return _Done(None)
    done = min(phase.done, phase.total)
    return _Done(done / phase.total, [f"{done} of {phase.total}"])


def _rate(count: int, seconds: float) -> list[str]:
    return [f"{size(round(count / seconds))}/s"] if seconds > 0 else []
