"""Reports what somebody has to do after a restore when that has ended, and not in the middle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from pgstash import events
from pgstash.runtime import Runtime


@contextlib.contextmanager
def at_the_end(runtime: Runtime) -> Iterator[Runtime]:
    """Yield the runtime for a restore; warnings with ``to_do`` are emitted after the block.

    They are emitted however it ends: a role that was created stays, even if the restore fails.
    """
    held: list[events.Warned] = []

    def emit(event: events.Event) -> None:
        if isinstance(event, events.Warned) and event.to_do:
            held.append(event)
        else:
            runtime.emit(event)

    try:
        yield replace(runtime, emit=emit)
    finally:
        for warning in held:
            runtime.emit(warning)
