"""Connects restored tables with others: foreign keys, partitions, publications.

Each statement is a transaction of its own, because it locks tables that applications use, and may
be impossible: the other table, or the rows that a key refers to, may be gone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

from pgstash import events
from pgstash.counting import counted
from pgstash.errors import Interrupted, RestoreError, StatementError
from pgstash.postgres.restore.copy_loader import Loader
from pgstash.postgres.tools import toc
from pgstash.restore.table_parts import Attempt

# A session that waits for a lock blocks all that come later, so the wait is short.
_LOCK_SECONDS = 5
_SHOWN = 20
_INTERRUPTED = "the restore was interrupted"

Opened = Callable[[], AbstractContextManager[Loader]]
"""Opens a session in the target."""


def connect(
    opened: Opened,
    contents: toc.Contents,
    attempts: Iterable[Attempt],
    codec: str,
    emit: events.Emit,
) -> None:
    """Run the statements of these entries; warn of each that failed, with its statement.

    ``codec`` is that of their text.
    """
    todo = deque(_statements(contents, attempt) for attempt in attempts)
    if not todo:
        return
    failed: list[tuple[bytes, str]] = []
    try:
        with opened() as session:
            session.run(b"SET lock_timeout = '%ds'" % _LOCK_SECONDS)
            while todo:
                if reason := _refusal(session, todo[0]):
                    failed.append((todo[0], reason))
                todo.popleft()
    except RestoreError as error:
        failed += [(statements, error.message) for statements in todo]
    except Interrupted:
        failed += [(statements, _INTERRUPTED) for statements in todo]
        raise
    finally:
        _warn(failed, codec, emit)


def warn_of_interruption(
    contents: toc.Contents, attempts: Iterable[Attempt], codec: str, emit: events.Emit
) -> None:
    """Warn of the statements of these entries, none of which was run."""
    _warn([(_statements(contents, attempt), _INTERRUPTED) for attempt in attempts], codec, emit)


def _statements(contents: toc.Contents, attempt: Attempt) -> bytes:
    entries = [attempt.entry, *attempt.comments]
    return b"\n".join(toc.definition(contents, entry).strip() for entry in entries)


def _refusal(session: Loader, statements: bytes) -> str:
    """Run statements; return why the server refused them, empty if it did not."""
    try:
        session.run(statements)
    except StatementError as error:
        return error.message.partition("\nSTATEMENT: ")[0]
    return ""


def as_comment(reason: str) -> str:
    """Return why a statement failed as a comment of SQL, so that all can be pasted into psql."""
    bare = reason.removeprefix("the target refused a statement: ")
    return "\n".join(f"-- {line}" for line in bare.splitlines())


def _warn(failed: Sequence[tuple[bytes, str]], codec: str, emit: events.Emit) -> None:
    if not failed:
        return
    count = counted(len(failed), "statement")
    lines = [f"The tables are restored, but {count} to connect them with others failed. In psql:"]
    for statements, reason in failed[:_SHOWN]:
        lines.append(f"{as_comment(reason)}\n{statements.decode(codec, 'replace')}")
    if len(failed) > _SHOWN:
        lines.append(f"and {len(failed) - _SHOWN} more, which are at the end of `pgstash cat`")
    emit(events.Warned("\n".join(lines), to_do=True))
