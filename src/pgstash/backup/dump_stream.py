"""A dump as a stream of an archive: by several sessions if possible, otherwise by one pg_dump."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from pgstash import events
from pgstash.backup import dump_workers, parallel_dump, single_dump, start_retries
from pgstash.format.manifest import Member
from pgstash.postgres.dump.moment import Moment
from pgstash.postgres.dump.owners_and_privileges import Objects
from pgstash.postgres.dump.schema_dump import CompositionError
from pgstash.processes import hooks


class Stream(Protocol):
    """A dump that becomes an archive; its contents are known when :meth:`archive` has ended."""

    @property
    def schema(self) -> bytes | None:
        """The table of contents of pg_dump; None if there is none."""

    @property
    def owners(self) -> Objects | CompositionError | None:
        """The script of owners and privileges, or why there is none; None if nobody made one."""

    @property
    def moment(self) -> Moment | None:
        """The moment of the server just before the snapshot; None if it is unknown."""

    @property
    def raw_bytes(self) -> int:
        """The plain bytes so far."""

    @property
    def rows(self) -> Mapping[bytes, int]:
        """The number of rows, by the name of the table as the dump writes it."""

    @property
    def members(self) -> Sequence[Member]:
        """The members of the archive."""

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed. Raises DumpError, PipelineError, HookError."""
        ...


@contextlib.contextmanager
def opened(
    plan: dump_workers.Plan, verify: hooks.Hook | None, facts: Mapping[str, str], name: str
) -> Iterator[Stream]:
    """Start a dump. Leaving the block ends it.

    The hook ``verify``, with these ``facts`` in its environment, reads the whole script, which only
    one pg_dump writes. ``name`` is the name of the archive. Raises DumpError.
    """
    retries = start_retries.Retries(plan.limits.lock)
    with contextlib.ExitStack() as stack:
        stream: Stream | None = None
        if plan.jobs > 1 and verify is None:
            try:
                stream = stack.enter_context(parallel_dump.opened(plan, retries.half()))
            except parallel_dump.ParallelDumpUnavailable as why:
                plan.tool_run.emit(
                    events.Warned(
                        f"Falling back to a single pg_dump for {name} (no parallel or per-table "
                        f"restore): {why}"
                    )
                )
        if stream is None:
            stream = one = stack.enter_context(single_dump.opened(plan, retries, name))
            one.watch = stack.enter_context(hooks.verifying(verify, facts, plan.tool_run.emit))
        yield stream
