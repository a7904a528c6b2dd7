"""An archive as it comes into being: by several sessions where that can be, else by one pg_dump."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from pgstash import events, hooks, parallel, pieces
from pgstash.manifest import Member
from pgstash.pipeline import compression
from pgstash.pipeline.opening import Opening
from pgstash.pipeline.tally import Part, Tally
from pgstash.postgres import extensions
from pgstash.postgres.dump import dump


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
    with contextlib.ExitStack() as stack:
        stream: Stream | None = None
        if plan.jobs > 1 and verify is None:
            try:
                stream = stack.enter_context(parallel.opened(plan))
            except parallel.Impossible as why:
                plan.emit(
                    events.Warned(
                        f"{name} is dumped by one pg_dump, and cannot be restored by several "
                        f"sessions: {why}"
                    )
                )
        if stream is None:
            chunks = stack.enter_context(
                dump(
                    plan.server,
                    plan.client,
                    options=plan.options,
                    lock_seconds=plan.lock_seconds,
                    idle_seconds=plan.idle_seconds,
                    environment=plan.environment,
                    emit=plan.emit,
                )
            )
            watch = stack.enter_context(hooks.verifying(verify, facts, plan.emit))
            stream = _Single(plan, name, chunks, watch)
        yield stream


class _Single:
    """What one pg_dump writes, cut into members by size."""

    schema = None

    def __init__(
        self,
        plan: pieces.Plan,
        name: str,
        chunks: Iterator[bytes],
        watch: Callable[[Iterable[bytes]], Iterator[bytes]],
    ) -> None:
        self._plan = plan
        self._name = name
        self._chunks = chunks
        self._watch = watch
        self._tally = Tally()
        self._added = 0
        self.members: list[Member] = []

    @property
    def raw_bytes(self) -> int:
        return self._tally.raw_bytes + self._added

    @property
    def rows(self) -> Mapping[bytes, int]:
        return self._tally.rows

    def archive(self) -> Iterator[bytes]:
        opening = Opening()
        yield from compression.compress(
            opening.split(self._watch(self._script())),
            level=self._plan.level,
            record=self.members.append,
        )
        if not opening.found:
            self._plan.emit(
                events.Warned(
                    f"{self._name}: the dump does not begin as expected, so that a restore into an "
                    "empty database cannot leave its DROP statements out"
                )
            )
            self.members = [replace(member, section=None) for member in self.members]

    def _script(self) -> Iterator[bytes]:
        """Yield what pg_dump writes, and what is added to it before the first rows.

        By then it has its snapshot: the sequences are as far as the rows are, or further.
        """
        found = False
        for piece in self._tally.split(self._chunks):
            if not isinstance(piece, Part):
                yield piece
            elif not found and piece.table is not None:
                found = True
                more = extensions.additions(self._plan.server, self._plan.options)
                text = more.before_rows + more.sequences
                self._added = len(text)
                if text:
                    yield text
