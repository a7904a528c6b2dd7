"""The standard tools: openssl and gunzip read the same archive as the drill, to its end.

Every archive must open without pgstash. The tools only receive a copy of the stream, and their
verdict is read at the end. Their output is never executed: only bytes that pgstash verified itself
are.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping

from pgstash.errors import HookError
from pgstash.events import Emit, Notice
from pgstash.format.proof import Check
from pgstash.pipeline.encryption import ROUNDS
from pgstash.processes.hooks import Hook, Running
from pgstash.repository.archive import Archive

_NAME = "standard tools"
_SECONDS = 300.0

_PASSPHRASE = "BACKUP_ENCRYPTION_KEY"  # noqa: S105 - the name of a variable
_DECRYPT = ("openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-pass", f"env:{_PASSPHRASE}")
_PASS_ON = ("cat",)

# A pipe of a POSIX shell has only the status of its last command. So the other commands report a
# failure on a descriptor of its own: what arrives there is not a number then, and equals none.
_COUNT = """\
count=$({ { "$@" || echo failed >&3; } | { gunzip || echo failed >&3; } | wc -c >&3; } 3>&1)
[ "$count" -eq "$RAW_BYTES" ] 2>/dev/null || { echo "$count"; exit 1; }
"""


class Tools:
    """openssl and gunzip, or only gunzip, while they run."""

    def __init__(self, running: Running, names: str, raw_bytes: int) -> None:
        """Take the running tools; ``raw_bytes`` is the number of bytes that they have to write."""
        self._running = running
        self._names = names
        self._raw_bytes = raw_bytes
        self._failure: HookError | None = None

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same chunks and pass a copy to the tools, even after they failed."""
        for chunk in chunks:
            # If the archive is damaged, the error of our own reader is more precise.
            with self._judged():
                self._running.write(chunk)
            yield chunk

    def check(self) -> Check:
        """Return the verdict of the tools, after they received everything."""
        with self._judged():
            self._running.finish()
        if self._failure:
            return Check(_NAME, passed=False, found=str(self._failure))
        return Check(_NAME, passed=True, found=f"{self._names} wrote {self._raw_bytes} bytes")

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except HookError as error:
            self._failure = self._failure or error


@contextlib.contextmanager
def reading(archive: Archive, environment: Mapping[str, str], emit: Emit) -> Iterator[Tools | None]:
    """Start the tools that open such an archive; yield None if one of them is not installed.

    Leaving the block ends them. The archive has a manifest. Raises HookError if they cannot be
    started.
    """
    manifest = archive.manifest
    if manifest is None:
        raise AssertionError("only a backup with a manifest is drilled")
    path = environment.get("PATH", "")
    first: tuple[str, ...] = _PASS_ON
    names, secrets = "gunzip", dict[str, str]()
    if manifest.encryption and archive.passphrase is not None:
        names, secrets = "openssl and gunzip", {_PASSPHRASE: archive.passphrase}
        rounds = manifest.encryption.rounds
        first = _DECRYPT if rounds == ROUNDS else (*_DECRYPT, "-iter", str(rounds))
    needed = ("sh", first[0], "gunzip", "wc")
    missing = [name for name in needed if shutil.which(name, path=path) is None]
    if missing:
        emit(Notice(f"Skipping the standard tools: not found on PATH: {', '.join(missing)}"))
        yield None
        return
    hook = Hook(
        name=names,
        command=["sh", "-c", _COUNT, "sh", *first],
        timeout=_SECONDS,
        environment={"PATH": path, "LC_ALL": "C", "RAW_BYTES": str(manifest.raw_bytes)},
        secrets=tuple(secrets.values()),
    )
    with Running(hook, secrets, emit, fed=True) as running:
        yield Tools(running, names, manifest.raw_bytes)
