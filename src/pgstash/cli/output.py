"""Print to stdout."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence

from pgstash.errors import OutputError
from pgstash.monitoring import log
from pgstash.signals import end_by


def print_line(line: str) -> None:
    """Print a line to stdout. A closed pipe ends the process. Raises OutputError."""
    if sys.stdout is None:
        raise OutputError("cannot write to stdout: it is closed")
    with writing():
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def line_width() -> int | None:
    """Return how many characters fit into a line; None if stdout is no terminal.

    COLUMNS takes precedence: https://docs.python.org/3/library/shutil.html
    """
    return shutil.get_terminal_size((0, 0)).columns or None


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with columns of equal width. Raises OutputError."""
    widths = _widths(rows)
    for row in rows:
        shown = (log.printable(cell).ljust(width) for cell, width in zip(row, widths, strict=True))
        print_line("  ".join(shown).rstrip())


def table_width(rows: Sequence[Sequence[str]]) -> int:
    """Return the number of characters in the longest line of a printed table."""
    widths = _widths(rows)
    return sum(widths) + 2 * (len(widths) - 1)


def without_columns(
    table: Sequence[Sequence[str]], width: int | None, heads: Sequence[str]
) -> Sequence[Sequence[str]]:
    """Return a table without columns: those with these heads, one after the other, until it fits.

    Without a ``width`` all of them are left out.
    """
    columns = {cells[0]: cells for cells in zip(*table, strict=True)}
    for head in heads:
        if width is not None and table_width(list(zip(*columns.values(), strict=True))) <= width:
            break
        columns.pop(head, None)
    return list(zip(*columns.values(), strict=True))


def shown_copies(copies: Mapping[str, bool | None]) -> str:
    """Return the copies that have a backup, with a question mark if that is unknown."""
    known = {True: "", None: "?"}
    named = [f"{name}{known[there]}" for name, there in copies.items() if there in known]
    return ", ".join(named) or "-"


def _widths(rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(len(log.printable(cell)) for cell in column) for column in zip(*rows, strict=True)]


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Turn a failed write to stdout into OutputError; a closed pipe ends the process by SIGPIPE."""
    try:
        yield
    except BrokenPipeError:
        end_by(signal.SIGPIPE)
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}") from error
