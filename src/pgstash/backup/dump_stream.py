"""An archive as it comes into being: by several sessions where that can be, else by one pg_dump."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from pgstash import events, hooks, parallel, pieces, single, steady
from pgstash.manifest import Member


class Stream(Protocol):
    """A dump that becomes an archive; what it holds is known when that came to its end.

    ``raw_bytes`` counts the plain bytes so far; ``rows`` are those of each table, by its name as
    the dump writes it; ``schema`` is pg_dump's table of contents, None where there is none.
    """

    @property
    def schema(self) -> bytes | None:
        """pg_dump's table of contents."""

    @property
    def raw_bytes(self) -> int:
        """The plain bytes so far."""

    @property
    def rows(self) -> Mapping[bytes, int]:
        """The number of rows, by the name of the table."""

    @property
    def members(self) -> Sequence[Member]:
        """What the archive is made of."""

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed. Raises DumpError, PipelineError, HookError."""
        ...


@contextlib.contextmanager
def opened(
    plan: pieces.Plan, verify: hooks.Hook | None, facts: Mapping[str, str], name: str
) -> Iterator[Stream]:
    """Start a dump. Leaving the block ends it.

    ``verify`` reads the whole script, told these ``facts``: so it is read by one pg_dump. ``name``
    is that of the archive. Raises DumpError.
    """
    patience = steady.Patience(plan.lock_seconds)
    with contextlib.ExitStack() as stack:
        stream: Stream | None = None
        if plan.jobs > 1 and verify is None:
            try:
                stream = stack.enter_context(parallel.opened(plan, patience.half()))
            except parallel.Impossible as why:
                plan.emit(
                    events.Warned(
                        f"{name} is dumped by one pg_dump, and cannot be restored by several "
                        f"sessions: {why}"
                    )
                )
        if stream is None:
            stream = one = stack.enter_context(single.opened(plan, patience, name))
            one.watch = stack.enter_context(hooks.verifying(verify, facts, plan.emit))
        yield stream
