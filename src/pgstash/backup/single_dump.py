"""A dump by one pg_dump, cut into members by size."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from pgstash import events, steady
from pgstash.manifest import Member
from pgstash.pieces import Plan
from pgstash.pipeline import compression
from pgstash.pipeline.opening import Opening
from pgstash.pipeline.tally import Part, Tally, split_name
from pgstash.postgres import baseline, extensions, patterns
from pgstash.postgres.baseline import Baseline, Changed
from pgstash.postgres.dump import dump

_NO_UNLOGGED = "--no-unlogged-table-data"

Watch = Callable[[Iterable[bytes]], Iterator[bytes]]


class Single:
    """What one pg_dump writes; it holds its locks, and its tables are what its snapshot says.

    ``watch`` may be set to what is to be shown the script. ``members`` and ``rows``, the number of
    rows by the name of the table as the dump writes it, are complete when :meth:`archive` came to
    its end.
    """

    schema = None

    def __init__(
        self,
        plan: Plan,
        name: str,
        chunks: Iterator[bytes],
        tables: Baseline,
        spared: Iterable[Changed],
    ) -> None:
        """Take over what was begun; ``spared`` are tables that the dump must hold no rows of."""
        self.members: list[Member] = []
        self.watch: Watch = iter
        self._plan = plan
        self._name = name
        self._chunks = chunks
        self._baseline = tables
        self._spared = list(spared)
        self._tally = Tally()
        self._added = 0

    @property
    def raw_bytes(self) -> int:
        """The plain bytes so far."""
        return self._tally.raw_bytes + self._added

    @property
    def rows(self) -> Mapping[bytes, int]:
        """The number of rows so far, by the name of the table."""
        return self._tally.rows

    def archive(self) -> Iterator[bytes]:
        """Yield the members, compressed.

        Raises DumpError, TableRewrittenError, PipelineError, HookError.
        """
        opening = Opening()
        yield from compression.compress(
            opening.split(self.watch(self._script())),
            level=self._plan.level,
            record=self.members.append,
        )
        self._check()
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

    def _check(self) -> None:
        dumped = {split_name(name) for name in self._tally.rows}
        baseline.refuse([each for each in self._spared if each.name in dumped])
        self._baseline.refuse_renamed(sorted(dumped))


@contextlib.contextmanager
def opened(plan: Plan, patience: steady.Patience, name: str) -> Iterator[Single]:
    """Start a dump by one pg_dump; nothing of it is read before its tables were compared.

    ``name`` is that of the archive. Leaving the block ends the dump. Raises DumpError,
    LockTimeoutError, TableRewrittenError.
    """

    def prepare(stack: contextlib.ExitStack, tables: Baseline) -> Single:
        spared: list[Changed] = []

        def compare(mark: str) -> None:
            changed = tables.of_session(mark)
            baseline.refuse([each for each in changed if _is_read(each, plan)])
            spared.extend(changed)

        chunks = stack.enter_context(
            dump(
                plan.server,
                plan.client,
                options=plan.options,
                lock_seconds=plan.lock_seconds,
                idle_seconds=plan.idle_seconds,
                environment=plan.environment,
                emit=plan.emit,
                locked=compare,
            )
        )
        first = next(chunks, b"")
        return Single(plan, name, itertools.chain([first], chunks), tables, spared)

    with steady.begun(plan, patience, prepare) as made:
        yield made


def _is_read(table: Changed, plan: Plan) -> bool:
    """Tell whether pg_dump reads the rows of a table, as far as the options say.

    It has locked some of which it dumps no rows. What is taken for one of these is looked for in
    the dump when that is complete.
    """
    if table.name is None:
        return True
    if table.unregistered or (table.unlogged and _NO_UNLOGGED in plan.options):
        return False
    codec = plan.server.codec
    schema, name = (part.decode(codec, "surrogateescape") for part in table.name)
    dumped, read = patterns.dumped(plan.options), patterns.read(plan.options)
    return dumped(schema, name) and read(schema, name)
