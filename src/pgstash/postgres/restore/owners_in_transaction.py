"""Gives objects their owners and privileges in the transaction of a restore.

psql would stop at the first statement that is refused, and the transaction could not go on. So each
statement runs in a block of its own, which reports a refusal as a warning that is read here. The
server itself only warns of a GRANT or REVOKE that did nothing: psql's line shows which one it was.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence

from pgstash.postgres.restore.owners_and_privileges import NOTHING_DONE, Refused

_STATE = "PGS01"  # of the warning; no server and no extension uses this class
# psql:<stdin>:12: WARNING:  PGS01: 3 42501 must be able to SET ROLE "app"
_MESSAGE = re.compile(rf"psql:<stdin>:\d+: [^:]+:  {_STATE}: (\d+) ([0-9A-Z]{{5}}) (.*)")
_BEGIN = re.compile(rf"psql:<stdin>:(\d+): [^:]+:  {_STATE}: begin")
_NOTHING = re.compile(rf"psql:<stdin>:(\d+): [^:]+:  ({'|'.join(sorted(NOTHING_DONE))}): (.*)")
_NEXT = re.compile(r"psql(?:\.bin)?:")

# What concerns the transaction, and not the statement: it ends the restore.
_FATAL = "ARRAY['40', '53', '54', '55', '57', '58', 'XX']"
# Its line is the one that the lines of the blocks after it are counted from.
_FIRST = (
    f"DO LANGUAGE plpgsql 'BEGIN RAISE WARNING USING ERRCODE = ''{_STATE}'', MESSAGE = ''begin'';"
    " END';\n"
).encode()
_BLOCK = b"""DO LANGUAGE plpgsql %(tag)s
BEGIN %(executions)s
EXCEPTION WHEN OTHERS THEN
    IF pg_catalog."left"(SQLSTATE, 2) OPERATOR(pg_catalog.=) ANY (%(fatal)s) THEN RAISE; END IF;
    RAISE WARNING USING ERRCODE = '%(state)s',
        MESSAGE = pg_catalog.concat('%(number)d ', SQLSTATE, ' ', SQLERRM);
END %(tag)s;
"""


class Giving:
    """The units of statements to run, and those that were ``refused`` so far."""

    def __init__(self, session: Sequence[bytes], units: Sequence[tuple[bytes, ...]]) -> None:
        """Take the units, each of which runs whole or not at all, and what sets up the session."""
        self._session = session
        self._units = units
        self._found: dict[int, Refused] = {}
        self._first_line: int | None = None
        self._ends: dict[int, int] = {}  # the units by the lines on which their blocks end
        self._reading = False

    @property
    def refused(self) -> list[Refused]:
        """The refused units, in their order."""
        return [self._found[number] for number in sorted(self._found)]

    def script(self) -> Iterator[bytes]:
        """Yield a script for psql, which reports refusals to :meth:`read`."""
        if self._units:
            yield b"\n".join([b"", *self._session, b""]) + _FIRST
        # No text of a statement can end the quotes around it.
        tag, inner = (b"$pgstash_%s$" % secrets.token_hex(8).encode() for _ in range(2))
        lines = 0
        for number, unit in enumerate(self._units):
            executions = b" ".join(b"EXECUTE %s%s%s;" % (inner, each, inner) for each in unit)
            block = _BLOCK % {
                b"tag": tag,
                b"executions": executions,
                b"fatal": _FATAL.encode(),
                b"state": _STATE.encode(),
                b"number": number,
            }
            lines += block.count(b"\n")
            self._ends[lines] = number
            yield block

    def read(self, line: str) -> bool:
        """Take the next line of psql's stderr; return whether it is of such a report."""
        if found := self._refusal(line):
            number, state, reason = found
            self._found[number] = Refused(self._units[number], state, reason)
            self._reading = True
        elif begin := _BEGIN.match(line):
            self._first_line = int(begin[1])
            self._reading = True
        elif _NEXT.match(line):
            self._reading = False
        return self._reading

    def _refusal(self, line: str) -> tuple[int, str, str] | None:
        """Return the number of the unit that a line reports, the state and the reason."""
        match = _MESSAGE.match(line)
        if match and int(match[1]) < len(self._units):
            return int(match[1]), match[2], match[3]
        match = _NOTHING.match(line)
        if match and self._first_line is not None:
            number = self._ends.get(int(match[1]) - self._first_line)
            if number is not None:
                return number, match[2], match[3]
        return None
