"""Record a failed backup or drill in the store, so that the history there has failures too.

A record is worth little compared with what failed: a thread tries each request once, and the run
waits for it only briefly. If the store did not answer before, nothing is tried. Whatever goes wrong
is a notice, and changes no exit status.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta

from pgstash import __version__, events
from pgstash.backup import sealing
from pgstash.backup.sealing import Keys, Sealing
from pgstash.commands import kms
from pgstash.commands.source import configured_source
from pgstash.commands.storage import open_storage
from pgstash.errors import (
    Interrupted,
    PgstashError,
    SourceUnclearError,
    StorageUnreachableError,
)
from pgstash.format import failure_record, metadata, names
from pgstash.format.failure_record import LONGEST_TEXT, Failure
from pgstash.format.identity import Identity
from pgstash.format.iso_time import iso
from pgstash.monitoring import run_phase
from pgstash.monitoring.redaction import Scrubber
from pgstash.pipeline import encryption
from pgstash.pipeline import recipients as recipient_lists
from pgstash.processes.child import shortened
from pgstash.repository.keys import recipients_metadata
from pgstash.runtime import Runtime
from pgstash.settings import Settings
from pgstash.signals import kept_for_this_thread

SECONDS = 4.0
"""How long a failed run waits for its record. The record may still arrive after that."""

SECONDS_AFTER_SIGNAL = 1.0

_ID_BYTES = 8

_OF_STORE = range(StorageUnreachableError.exit_code, SourceUnclearError.exit_code + 1)
"""The exit statuses of failures of the store."""

_Failed = events.BackupFailed | events.DrillFailed


def keys_of(settings: Settings, emit: events.Emit) -> Keys:
    """Return what new backups are encrypted with, according to the settings."""
    return Keys(
        settings.passphrase,
        settings.recipients,
        settings.backup_encryption_iterations,
        kms.opener(settings, emit),
    )


@contextlib.contextmanager
def recorded(settings: Settings, runtime: Runtime, seconds: float = SECONDS) -> Iterator[Runtime]:
    """Yield a runtime; if the run in the block fails and reports it, that is recorded.

    The end of the block waits for the record for up to ``seconds``, after a signal for one second.
    """
    recorder = _Recorder(settings, runtime)
    try:
        yield replace(runtime, emit=recorder.listen)
    except Interrupted:
        recorder.wait(SECONDS_AFTER_SIGNAL)
        raise
    except Exception:
        recorder.wait(seconds)
        raise


class _Recorder:
    """Passes on the events of one run, and stores the record of its failure in a thread."""

    def __init__(self, settings: Settings, runtime: Runtime) -> None:
        self._settings = settings
        self._runtime = runtime
        self._phase: run_phase.RunPhase = "preparing"
        self._is_silent = False  # the store, by the end of the run
        self._thread: threading.Thread | None = None
        self._began = 0.0

    def listen(self, event: events.Event) -> None:
        """Take an event; never waits."""
        self._phase = run_phase.after(event) or self._phase
        self._runtime.emit(event)
        self._is_silent |= isinstance(event, events.UploadLeftBehind)
        if not isinstance(event, events.BackupFailed | events.DrillFailed):
            return
        if self._is_silent:
            what = "The failure is not recorded, because the store did not answer"
            self._runtime.emit(events.Notice(what))
        elif self._thread is None:
            self._began = time.monotonic()
            work = _Work(self._settings, self._runtime, event, self._phase)
            self._thread = threading.Thread(target=work.run, name="failure record", daemon=True)
            with kept_for_this_thread():
                self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait for the record, for up to ``seconds`` from the failure on."""
        if self._thread is not None:
            self._thread.join(max(0.0, self._began + seconds - time.monotonic()))
            if self._thread.is_alive():
                self._runtime.emit(
                    events.Informed(
                        f"The failure was not recorded in the store within {seconds:g} seconds"
                    )
                )


@dataclass(frozen=True, slots=True)
class _Work:
    """The storing of one record, in a thread of its own."""

    settings: Settings = field(repr=False)
    runtime: Runtime
    event: _Failed
    phase: run_phase.RunPhase

    def run(self) -> None:
        try:
            self._store()
        except PgstashError as error:
            # If the store failed the run, that is in its log already.
            kind = events.Notice if self._is_of_store() else events.Informed
            self.runtime.emit(kind(f"The failure was not recorded in the store: {error.message}"))
        except Exception as error:  # noqa: BLE001 - the border of a thread
            what = type(error).__name__
            self.runtime.emit(events.Informed(f"The failure was not recorded in the store: {what}"))

    def _is_of_store(self) -> bool:
        return self.event.exit_code in _OF_STORE

    def _store(self) -> None:
        random, prefix = self.runtime.random, self.settings.backup_prefix
        failure_id = random(_ID_BYTES).hex()
        sealed = sealing.sealing_of(keys_of(self.settings, events.ignore), random, failure_id)
        key = sealed.new_key(random)
        failure = self._failure(failure_id)
        started = self.runtime.now() - timedelta(seconds=self.event.seconds)
        base = names.base_name(started)
        text = failure_record.dump(
            replace(failure, started=iso(started)), key.authenticate if key else None
        )
        values = {**failure_record.facts(failure, self._source()), **_of_key(sealed, key)}
        storage = open_storage(self.settings, events.ignore, prompt=True)
        for ending, packed in ((names.AGE_ENDING, sealed.wrapped), (names.KMS_ENDING, sealed.kms)):
            if packed is not None:
                name = names.failure_key_name(base, failure_id, ending)
                storage.put(f"{prefix}/{name}", packed, values | _recipients(sealed, ending))
        name = names.failure_name(base, failure_id, encrypted=key is not None)
        storage.put(f"{prefix}/{name}", encryption.sealed(text, key), values)

    def _failure(self, failure_id: str) -> Failure:
        event, is_drill = self.event, isinstance(self.event, events.DrillFailed)
        named = event.name if names.ARCHIVE_NAME.fullmatch(event.name) else ""
        return Failure(
            format=failure_record.FORMAT,
            tool=f"pgstash {__version__}",
            operation="drill" if is_drill else "backup",
            id=failure_id,
            started="",
            seconds=round(event.seconds, 3),
            phase=self.phase,
            error=event.error,
            exit_code=event.exit_code,
            message=self._without_secrets(event.message),
            hint=self._without_secrets(event.hint),
            backup=named if is_drill else "",
            machine=self._without_secrets(socket.gethostname()),
        )

    def _without_secrets(self, text: str) -> str:
        """Scrub before shortening: half a secret would not be recognised."""
        secrets = self.settings.secrets()
        return shortened(Scrubber(secrets).scrub(text), LONGEST_TEXT, secrets)

    def _source(self) -> Identity:
        configured = configured_source(self.settings)
        own = Identity(self.event.database or None, host=self.event.host or None)
        return own if configured is None else configured


def _of_key(sealed: Sealing, key: encryption.Key | None) -> dict[str, str]:
    if key is None:
        return metadata.encoded({"encryption": "none"})
    how = f"aes-256-cbc pbkdf2 {sealed.rounds}"
    return metadata.encoded({"encryption": how, **sealed.metadata(key)})


def _recipients(sealed: Sealing, ending: str) -> dict[str, str]:
    of = recipient_lists.of_age if ending == names.AGE_ENDING else recipient_lists.of_kms
    return metadata.encoded(recipients_metadata(of(sealed.recipients)))
