"""A dump by one pg_dump, cut into members by size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from pgstash import events
from pgstash.backup import start_retries
from pgstash.backup.dump_workers import Plan
from pgstash.format.manifest import Member
from pgstash.pipeline import compression
from pgstash.pipeline.sections import Sections
from pgstash.pipeline.sql_scanner import Part, SqlScanner, split_name
from pgstash.postgres.dump import baseline, extension_tables
from pgstash.postgres.dump.baseline import Baseline, Changed
from pgstash.postgres.dump.moment import Moment
from pgstash.postgres.dump.pg_dump import dump
from pgstash.postgres.tools import patterns

_NO_UNLOGGED = "--no-unlogged-table-data"

Watch = Callable[[Iterable[bytes]], Iterator[bytes]]


class SingleDump:
    """The output of one pg_dump, which holds its locks; its tables match its snapshot.

    ``watch`` may be set to a function that reads the script on its way. ``members`` and ``rows``,
    the number of rows by the name of the table as the dump writes it, are complete when
    :meth:`archive` has ended.
    """

    schema = None
    owners = None

    def __init__(
        self,
        plan: Plan,
        name: str,
        chunks: Iterator[bytes],
        tables: Baseline,
        spared: Iterable[Changed],
    ) -> None:
        """Take over a started dump; it must hold no rows of the ``spared`` tables."""
        self.members: list[Member] = []
        self.watch: Watch = iter
        self.moment: Moment | None = None
        self._plan = plan
        self._name = name
        self._chunks = chunks
        self._baseline = tables
        self._spared = list(spared)
        self._scanner = SqlScanner()
        self._added = 0

    @property
    def raw_bytes(self) -> int:
        """The plain bytes so far."""
        return self._scanner.raw_bytes + self._added

    @property
    def rows(self) -> Mapping[bytes, int]:
        """The number of rows so far, by the name of the table."""
        return self._scanner.rows

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed.

        Raises DumpError, TableRewrittenError, PipelineError, HookError.
        """
        sections = Sections()
        yield from compression.compress(
            sections.split(self.watch(self._script())),
            level=self._plan.level,
            record=self.members.append,
        )
        self._check()
        if not sections.found:
            self._plan.tool_run.emit(
                events.Warned(
                    f"{self._name}: the dump does not begin as expected, so a restore into an "
                    "empty database cannot leave out its DROP statements"
                )
            )
            self.members = [replace(member, section=None) for member in self.members]

    def _script(self) -> Iterator[bytes]:
        """Yield the output of pg_dump, with the additions for extensions before the first rows.

        The additions are queried after pg_dump has its snapshot, so sequences are as far as the
        rows are, or further.
        """
        found = False
        for piece in self._scanner.split(self._chunks):
            if not isinstance(piece, Part):
                yield piece
            elif not found and piece.table is not None:
                found = True
                more = extension_tables.additions(self._plan.server, self._plan.options)
                text = more.before_rows + more.sequences
                self._added = len(text)
                if text:
                    yield text

    def _check(self) -> None:
        dumped = {split_name(name) for name in self._scanner.rows}
        baseline.refuse([each for each in self._spared if each.name in dumped])
        self._baseline.refuse_renamed(sorted(dumped))


@contextlib.contextmanager
def opened(plan: Plan, retries: start_retries.Retries, name: str) -> Iterator[SingleDump]:
    """Start a dump by one pg_dump; none of it is read before its tables were compared.

    ``name`` is that of the archive. Leaving the block ends the dump. Raises DumpError,
    LockTimeoutError, TableRewrittenError.
    """

    def prepare(stack: contextlib.ExitStack, tables: Baseline) -> SingleDump:
        spared: list[Changed] = []

        def compare(mark: str) -> None:
            changed = tables.of_session(mark)
            baseline.refuse([each for each in changed if _is_read(each, plan)])
            spared.extend(changed)

        chunks = stack.enter_context(
            dump(plan.server, plan.tool_run, plan.options, plan.limits, locked=compare)
        )
        first = next(chunks, b"")
        return SingleDump(plan, name, itertools.chain([first], chunks), tables, spared)

    with start_retries.started(plan, retries, prepare) as made:
        yield made


def _is_read(table: Changed, plan: Plan) -> bool:
    """Return whether pg_dump reads the rows of a table, as far as its options determine that.

    pg_dump also locks tables of which it dumps no rows. If this function takes a table for one of
    them, the complete dump is searched for its rows.
    """
    if table.name is None:
        return True
    if table.unregistered or (table.unlogged and _NO_UNLOGGED in plan.options):
        return False
    codec = plan.server.codec
    schema, name = (part.decode(codec, "surrogateescape") for part in table.name)
    dumped, read = patterns.dumped(plan.options), patterns.read(plan.options)
    return dumped(schema, name) and read(schema, name)
