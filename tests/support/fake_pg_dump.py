"""A pg_dump that misbehaves on request; put on PATH by ``support.fake_tools``.

Called as ``python -I -S fake_pg_dump.py <folder> <pg_dump's own arguments>``. The folder
holds ``behaviour.json``: the fields of ``fake_tools.FakePgDump``. Each call is recorded there,
in ``calls.jsonl``, and one with ``--version`` in ``version_calls.jsonl``.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

STDOUT, STDERR = 1, 2
BLOCK_SIZE = 1024 * 1024
PIPE_SIZE = 1024 * 1024
FOREVER = 3600.0  # seconds

HEAD = """\
--
-- PostgreSQL database dump
--

-- Dumped from database version {version}
-- Dumped by pg_dump version {version}

SET statement_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;

DROP TABLE IF EXISTS public.filler;
--
-- Name: filler; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.filler (
    id integer,
    content text
);


--
-- Data for Name: filler; Type: TABLE DATA; Schema: public; Owner: -
--

COPY public.filler (id, content) FROM stdin;
"""

TAIL = """\
\\.


--
-- PostgreSQL database dump complete
--

"""


def write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def block_of_rows(*, noisy: bool) -> bytes:
    """Return a block of whole rows of about one MiB: hexadecimal text, half of it random.

    One that is noisy is random text; compressed it has three quarters of its size.
    """
    if noisy:
        text = base64.b64encode(os.urandom(BLOCK_SIZE * 3 // 4 - 4096))
        starts = range(0, len(text), 100)
        return b"".join(b"%d\t%s\n" % (start, text[start : start + 100]) for start in starts)
    noise = os.urandom(16 * 1024).hex()
    rows = bytearray()
    number = 0
    while len(rows) < BLOCK_SIZE - 256:
        start = number * 37 % (len(noise) - 100)
        rows += f"{number}\t{noise[start : start + 100]} {'abcdefghij' * 8}".encode() + b"\n"
        number += 1
    return bytes(rows)


def write_rows(version: str, size: int, *, noisy: bool) -> None:
    # Where it is no pipe, or more than an ordinary user may have: slower, no worse.
    with contextlib.suppress(OSError):
        fcntl.fcntl(STDOUT, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    write(STDOUT, HEAD.format(version=version).encode())
    block = block_of_rows(noisy=noisy)
    for _ in range(size // BLOCK_SIZE):
        write(STDOUT, block)


def record_call(file: Path, arguments: list[str]) -> None:
    call = {
        "pid": os.getpid(),
        "session": os.getsid(0),
        "arguments": arguments,
        "environment": dict(os.environ),
    }
    with file.open("a") as calls:
        calls.write(json.dumps(call) + "\n")


def flood_stderr(size: int, *, newlines: bool) -> None:
    line = b"pg_dump: warning: " + b"flood " * 20 + (b"\n" if newlines else b"")
    block = line * (BLOCK_SIZE // len(line))
    for _ in range(max(1, size // BLOCK_SIZE)):
        write(STDERR, block)


def hang(*, with_child: bool) -> NoReturn:
    if with_child:
        # It inherits both pipes and outlives this process: end-of-file does not come.
        subprocess.Popen(["sleep", str(FOREVER)])
    time.sleep(FOREVER)
    sys.exit(0)


def main(folder: Path, arguments: list[str]) -> int:
    behaviour: dict[str, Any] = json.loads((folder / "behaviour.json").read_text())
    if arguments[:1] in (["--version"], ["-V"]):
        record_call(folder / "version_calls.jsonl", arguments)
        write(STDOUT, f"pg_dump (PostgreSQL) {behaviour['version']}\n".encode())
        return 0
    record_call(folder / "calls.jsonl", arguments)
    for name in behaviour["ignored_signals"]:
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    time.sleep(behaviour["silence"])
    if behaviour["stderr_flood"]:
        flood_stderr(behaviour["stderr_flood"], newlines=behaviour["stderr_newlines"])
    if behaviour["leak_password"]:
        write(STDERR, f"pg_dump: detail: password={os.environ.get('PGPASSWORD', '')}\n".encode())
    if not behaviour["empty"]:
        write_rows(behaviour["version"], behaviour["size"], noisy=behaviour["noisy"])
    while behaviour["until"] and not Path(behaviour["until"]).exists():
        time.sleep(0.05)
    write(STDERR, behaviour["stderr"].encode())
    if behaviour["hang"]:
        hang(with_child=behaviour["hang"] == "with child")
    if behaviour["complete"]:
        write(STDOUT, TAIL.encode())
    if behaviour["killed_by"]:
        os.kill(os.getpid(), signal.Signals[behaviour["killed_by"]])
    status: int = behaviour["status"]
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
