"""The standard tools beside our own: openssl and gunzip read what a drill reads, to its end.

What is stored has to open without pgstash. They are shown the bytes and judged afterwards; nothing
that comes out of them is run, because it is verified only in what we read ourselves.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Mapping

from pgstash.errors import HookError
from pgstash.events import Emit, Notice
from pgstash.hooks import Hook, Running
from pgstash.manifest import Manifest
from pgstash.proof import Check

_NAME = "standard tools"
_SECONDS = 300.0

_PASSPHRASE = "BACKUP_ENCRYPTION_KEY"  # noqa: S105 - the name of a variable
_DECRYPT = ("openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-pass", f"env:{_PASSPHRASE}")
_PASS_ON = ("cat",)

# A pipe of a POSIX shell has the status of its last command alone: the others say on a descriptor
# of its own that they failed, and what is no number is not equal to one either.
_COUNT = """\
count=$({ { "$@" || echo failed >&3; } | { gunzip || echo failed >&3; } | wc -c >&3; } 3>&1)
[ "$count" -eq "$RAW_BYTES" ] 2>/dev/null || { echo "$count"; exit 1; }
"""


class Tools:
    """openssl and gunzip, or gunzip alone, at work."""

    def __init__(self, running: Running, names: str, raw_bytes: int) -> None:
        """Watch them; ``raw_bytes`` is how much has to come out of them."""
        self._running = running
        self._names = names
        self._raw_bytes = raw_bytes
        self._failure: HookError | None = None

    def watch(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the same chunks, shown to the tools, whatever these think of them."""
        for chunk in chunks:
            # What is wrong with the archive our own reading tells better.
            with self._judged():
                self._running.show(chunk)
            yield chunk

    def check(self) -> Check:
        """Return what they found, after all was shown to them."""
        with self._judged():
            self._running.finish()
        if self._failure:
            return Check(_NAME, passed=False, found=str(self._failure))
        return Check(_NAME, passed=True, found=f"{self._names} made {self._raw_bytes} bytes of it")

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except HookError as error:
            self._failure = self._failure or error


@contextlib.contextmanager
def reading(
    manifest: Manifest, passphrase: str | None, environment: Mapping[str, str], emit: Emit
) -> Iterator[Tools | None]:
    """Start the tools that open such an archive; yield None where one of them is not installed.

    Leaving the block ends them. Raises HookError where they cannot be started.
    """
    path = environment.get("PATH", "")
    first: tuple[str, ...] = _PASS_ON
    names, secrets = "gunzip", dict[str, str]()
    if manifest.encryption and passphrase is not None:
        first, names, secrets = _DECRYPT, "openssl and gunzip", {_PASSPHRASE: passphrase}
    needed = ("sh", first[0], "gunzip", "wc")
    missing = [name for name in needed if shutil.which(name, path=path) is None]
    if missing:
        emit(Notice(f"The standard tools are not tried: there is no {', '.join(missing)} on PATH"))
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
