"""The log: its lines, its streams, and that nothing reaches them unscrubbed or forged."""

from __future__ import annotations

import ast
import json
import logging
import os
import pty
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pgstash import events
from pgstash.errors import Interrupted
from pgstash.monitoring import event_log, log
from pgstash.monitoring.log import LOGGER
from pgstash.monitoring.messages import seconds, size
from pgstash.monitoring.redaction import Scrubber

SECRET = "PlantedSecret1"
SOURCE = Path(log.__file__).parents[1]
NAME = "backup_20260131_020000.sql.gz"
LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) ([A-Z]+) (.*)")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Give back what log.start changes for the whole process."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    levels = {
        name: logging.getLogger(name).level for name in ("botocore", "boto3", "urllib3", "psycopg")
    }
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, logging.raiseExceptions = before
    root.setLevel(before[1])
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks


Captured = pytest.CaptureFixture[str]


def start(*, layout: log.Format = "text", debug: bool = False) -> None:
    log.start(Scrubber([SECRET]), layout=layout, debug=debug)


def parsed(text: str) -> list[tuple[str, str]]:
    """Return level and message of each line, all of which must have the format of the log."""
    matches = [LINE.fullmatch(line) for line in text.splitlines()]
    assert all(matches), text
    return [(match[2], match[3]) for match in matches if match]


LEFT_BEHIND = (
    "The upload of a/b could not be aborted (503). It is not visible as a backup, but its parts "
    "take up space until they are removed; upload id: upload-1"
)
BACKUP = [
    events.BackupStarted(NAME),
    events.DumpStarted(NAME, "18.1", "16.2"),
    events.UploadStarted(NAME, "s3://backups", 8 * 1024 * 1024),
    events.Progressed(NAME, 1, 1),
    events.DumpFinished(NAME, 21.4, 524_000_000),
    events.UploadFinished(NAME, 90.2, 120_000_000),
    events.BackupSucceeded(
        name=NAME,
        seconds=113.1,
        location=f"s3://backups/postgres-backups/{NAME}",
        raw_bytes=524_000_000,
        stored_bytes=120_000_000,
        tables=12,
        rows=345,
    ),
]


def test_a_backup_in_the_words_that_people_look_for(capsys: Captured) -> None:
    start()
    for event in BACKUP:
        event_log.listen(event)
    out, err = capsys.readouterr()
    assert parsed(out) == [
        ("INFO", f"Starting backup: {NAME}"),
        ("INFO", "Creating database dump..."),
        ("INFO", "Uploading to S3..."),
        ("INFO", "Dump completed in 21s, size: 524MB"),
        ("INFO", "Upload completed in 90s"),
        (
            "SUCCESS",
            f"Backup completed successfully in 113s: {NAME} (12 tables, 345 rows, 120MB stored)",
        ),
        ("INFO", f"Backup location: s3://backups/postgres-backups/{NAME}"),
    ]
    assert err == ""


def test_details_when_debugging(capsys: Captured) -> None:
    start(debug=True)
    for event in (*BACKUP[1:3], events.Notice("a detail")):
        event_log.listen(event)
    assert [line for line in parsed(capsys.readouterr().out) if line[0] == "DEBUG"] == [
        ("DEBUG", "pg_dump 18.1, server 16.2"),
        ("DEBUG", "Parts of 8.4MB to s3://backups"),
        ("DEBUG", "a detail"),
    ]


def test_a_directory_is_not_called_s3(capsys: Captured) -> None:
    start()
    event_log.listen(events.UploadStarted(NAME, "file:///backups", 1))
    assert parsed(capsys.readouterr().out) == [("INFO", "Uploading to file:///backups...")]


def test_what_goes_wrong_goes_to_stderr(capsys: Captured) -> None:
    start()
    event_log.listen(events.Warned("odd"))
    event_log.listen(events.ToolSaid("pg_dump", "pg_dump: warning: circular constraints"))
    event_log.listen(events.ToolSaid("pg_dump", "pg_dump: error: connection lost"))
    event_log.listen(events.Retrying("put of x", 1, 3, 5.04, "503 Slow Down"))
    event_log.listen(events.UploadLeftBehind("a/b", "upload-1", "503"))
    event_log.listen(events.BackupFailed(NAME, 3.21, "pg_dump failed", "Look at it."))
    event_log.listen(events.BackupFailed(NAME, 3.21, "pg_dump failed", ""))
    event_log.listen(events.BackupFailed(NAME, 3.21, "pg_dump failed", "", repeated=True))
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines.pop(6) == "  Look at it."
    assert parsed("\n".join(lines)) == [
        ("WARNING", "odd"),
        ("WARNING", "pg_dump: warning: circular constraints"),
        ("WARNING", "pg_dump: error: connection lost"),
        ("WARNING", "put of x failed (503 Slow Down); retry 1 of 3 in 5.0s"),
        ("WARNING", LEFT_BEHIND),
        ("FAILURE", f"Backup failed after 3.2s: {NAME}: pg_dump failed"),
        ("FAILURE", f"Backup failed after 3.2s: {NAME}: pg_dump failed"),
        ("WARNING", f"Backup failed again after 3.2s: {NAME}: pg_dump failed"),
    ]


PRUNED: list[events.Event] = [
    events.BackupKept(NAME, ("the newest", "within 7 days")),
    events.BackupRemoved(NAME, ("older than 7 days",), dry_run=False),
    events.LeftoverSwept(f"s3://b/p/{NAME}", "an upload that began 8 days ago", dry_run=False),
    events.PruneFinished("s3://b/p", kept=1, removed=1, swept=1, dry_run=False),
]


def test_after_a_backup_the_log_says_what_was_removed_and_why(capsys: Captured) -> None:
    start()
    for event in PRUNED:
        event_log.listen(event)
    event_log.listen(events.PruneFinished("s3://b/p", kept=1, removed=0, swept=0, dry_run=False))
    out, err = capsys.readouterr()
    assert parsed(out) == [
        ("INFO", f"removed {NAME}  older than 7 days"),
        ("INFO", f"swept   s3://b/p/{NAME}  an upload that began 8 days ago"),
        ("INFO", "Pruned s3://b/p: 1 backup kept, 1 removed, 1 leftover swept"),
    ]
    assert err == ""


def test_it_says_what_stays_only_because_it_is_proven(capsys: Captured) -> None:
    start()
    event_log.listen(events.BackupKept(NAME, (events.KEPT_AS_PROVEN,)))
    event_log.listen(events.BackupKept(NAME, ("within 7 days", events.KEPT_AS_PROVEN)))
    out, _ = capsys.readouterr()
    assert parsed(out) == [("INFO", f"keep    {NAME}  the newest that is proven to restore")]


def test_who_asks_for_pruning_is_told_of_every_backup(capsys: Captured) -> None:
    start()
    for event in PRUNED[:2]:
        event_log.explain(event)
    event_log.explain(events.BackupRemoved(NAME, ("older than 7 days",), dry_run=True))
    event_log.explain(
        events.LeftoverSwept(f"s3://b/p/{NAME}", "no backup belongs to it", dry_run=True)
    )
    event_log.explain(events.Informed("Leftovers were not swept: a backup runs"))
    event_log.explain(events.PruneFinished("s3://b/p", kept=2, removed=1, swept=1, dry_run=True))
    event_log.explain(events.PruneFinished("s3://b/p", kept=2, removed=0, swept=0, dry_run=False))
    event_log.explain(events.PruneFailed("cannot delete", "Check the key."))
    out, err = capsys.readouterr()
    assert parsed(out) == [
        ("INFO", f"keep    {NAME}  the newest; within 7 days"),
        ("INFO", f"removed {NAME}  older than 7 days"),
        ("INFO", f"remove  {NAME}  older than 7 days"),
        ("INFO", f"sweep   s3://b/p/{NAME}  no backup belongs to it"),
        ("INFO", "Leftovers were not swept: a backup runs"),
        ("INFO", "Dry run of s3://b/p: 2 backups to keep, 1 to remove, 1 leftover to sweep"),
        ("INFO", "Pruned s3://b/p: 2 backups kept, 0 removed, 0 leftovers swept"),
    ]
    assert err.splitlines()[0].endswith("FAILURE Pruning failed: cannot delete")
    assert err.splitlines()[1:] == ["  Check the key."]


def test_what_a_tool_says_by_the_way(capsys: Captured) -> None:
    start()
    event_log.listen(events.ToolSaid("pg_dump", "NOTICE: hello"))
    event_log.listen(events.ToolSaid("pg_dump", "pg_dump: last built-in OID is 16383"))
    assert parsed(capsys.readouterr().out) == [
        ("INFO", "pg_dump: NOTICE: hello"),
        ("INFO", "pg_dump: last built-in OID is 16383"),
    ]


def test_json_is_one_object_a_line(capsys: Captured) -> None:
    start(layout="json")
    LOGGER.info('two\nlines, "quotes", 密码, \u2028, \udce9, \x1b[31m and %s', SECRET)
    LOGGER.warning("odd")
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert out.isascii()
    value = json.loads(line)
    assert list(value) == ["timestamp", "level", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value["timestamp"])
    assert value["message"] == 'two\nlines, "quotes", 密码, \u2028, \udce9, \x1b[31m and ***'
    assert json.loads(err)["level"] == "WARNING"


@pytest.mark.parametrize("layout", ["text", "json"])
@pytest.mark.parametrize(
    "say",
    [
        pytest.param(lambda: LOGGER.info("x %s", SECRET), id="argument"),
        pytest.param(lambda: LOGGER.info("a PlantedSecret1"), id="message of ours"),
        pytest.param(lambda: LOGGER.info("x %r", [SECRET]), id="repr of an argument"),
        pytest.param(lambda: LOGGER.info("%s: %s", "password", "Planted"), id="two arguments"),
        pytest.param(lambda: LOGGER.info("%s", {"a": SECRET}), id="mapping"),
        pytest.param(lambda: LOGGER.info("%d %.20s", 1, SECRET), id="shortened"),
        pytest.param(lambda: logging.getLogger("botocore.x").warning(SECRET), id="library"),
        pytest.param(lambda: logging.getLogger().warning(SECRET), id="root"),
        pytest.param(lambda: logging.getLogger(SECRET).warning("x"), id="name of a logger"),
        pytest.param(lambda: warnings.warn(f"x {SECRET}", stacklevel=1), id="warning"),
        pytest.param(lambda: LOGGER.error("x", exc_info=ValueError(SECRET)), id="traceback"),
        pytest.param(lambda: LOGGER.error("x", stack_info=True, exc_info=failed()), id="causes"),
        pytest.param(lambda: event_log.listen(events.ToolSaid("pg_dump", SECRET)), id="tool"),
        pytest.param(
            lambda: event_log.listen(events.BackupFailed(NAME, 1, SECRET, SECRET)), id="failure"
        ),
        pytest.param(lambda: in_thread(SECRET), id="thread"),
        pytest.param(lambda: sys.excepthook(ValueError, ValueError(SECRET), None), id="uncaught"),
        pytest.param(lambda: unraisable(SECRET), id="unraisable"),
    ],
)
def test_every_way_into_the_log_is_scrubbed(
    capsys: Captured, layout: log.Format, say: Callable[[], None]
) -> None:
    start(layout=layout, debug=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        say()
    out, err = capsys.readouterr()
    assert "Planted" not in out + err
    assert "***" in out + err


EVERYDAY_WORDS = [
    "backup",
    "Starting",
    "Creating",
    "Uploading",
    "Upload",
    "Dump",
    "completed",
    "S3",
]


@pytest.mark.parametrize("layout", ["text", "json"])
def test_the_words_that_people_look_for_survive_a_secret_that_is_one_of_them(
    capsys: Captured, layout: log.Format
) -> None:
    log.start(Scrubber(EVERYDAY_WORDS), layout=layout, debug=False)
    for event in BACKUP:
        event_log.listen(event)
    event_log.listen(events.ToolSaid("pg_dump", "the password is backup, or Uploading"))
    lines = capsys.readouterr().out.splitlines()
    assert [
        json.loads(x)["message"] if layout == "json" else x.split(" ", 2)[2] for x in lines
    ] == [
        f"Starting backup: {NAME}",
        "Creating database dump...",
        "Uploading to S3...",
        "Dump completed in 21s, size: 524MB",
        "Upload completed in 90s",
        f"Backup completed successfully in 113s: {NAME} (12 tables, 345 rows, 120MB stored)",
        f"Backup location: s3://backups/postgres-backups/{NAME}",
        "pg_dump: the password is ***, or ***",
    ]


def test_every_message_of_ours_is_a_constant() -> None:
    """Its words are not scrubbed: what is put into it has to be an argument."""
    calls = 0
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if ast.unparse(node.func.value) not in {"LOGGER", "log.LOGGER"}:
                continue
            message = node.args[1 if node.func.attr == "log" else 0]
            assert isinstance(message, ast.Constant), ast.unparse(node)
            calls += 1
    assert calls > 15


def failed() -> Exception:
    error = KeyError({"password": SECRET})
    error.__cause__ = ValueError(SECRET)
    error.add_note(f"note {SECRET}")
    return error


def in_thread(message: str) -> None:
    def run() -> None:
        raise RuntimeError(message)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def unraisable(message: str) -> None:
    raise_in_finalizer(RuntimeError(message))


def raise_in_finalizer(error: BaseException) -> None:
    class Fragile:
        def __del__(self) -> None:
            raise error

    del [Fragile()][0]


def test_a_signal_in_a_finalizer_is_no_error(capsys: Captured) -> None:
    """It is raised again soon: see ``test_signals.py``."""
    start(debug=True)
    raise_in_finalizer(Interrupted(15))
    assert capsys.readouterr() == ("", "")


def test_a_record_of_a_library_is_named_and_quiet(capsys: Captured) -> None:
    start()
    logging.getLogger("botocore.hooks").info("Event before-parameter-build")
    logging.getLogger("urllib3").warning("Connection pool is full")
    logging.getLogger("other").info("hello")
    out, err = capsys.readouterr()
    assert parsed(out) == [("INFO", "other: hello")]
    assert parsed(err) == [("WARNING", "urllib3: Connection pool is full")]
    start(debug=True)
    logging.getLogger("botocore.auth").debug("StringToSign: …")
    assert capsys.readouterr() == ("", "")


def test_a_record_that_does_not_fit_its_message_raises_nothing(capsys: Captured) -> None:
    start()
    logging.getLogger("other").warning("%d", SECRET)
    logging.getLogger("other").warning("%s %s", SECRET)  # noqa: PLE1206 - on purpose
    logging.getLogger("other").warning("next")
    out, err = capsys.readouterr()
    assert out == ""
    assert parsed(err) == [("WARNING", "other: next")]


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\n2026-01-31T02:00:00Z SUCCESS x", "a\n  2026-01-31T02:00:00Z SUCCESS x"),
        ("a\r2026-01-31T02:00:00Z SUCCESS x", r"a\r2026-01-31T02:00:00Z SUCCESS x"),
        ("a\x1b[2K\x1b[1Ab", r"a\x1b[2K\x1b[1Ab"),
        ("a\x9b2Kb\x85c\u2028d\x0be", r"a\x9b2Kb\x85c\u2028d\x0be"),
        ("a\x00b\x08c\x7f", r"a\x00b\x08c\x7f"),
        ("a\u202eb\ufeffc", r"a\u202eb\ufeffc"),
        ("ü 密码 🔑", "ü 密码 🔑"),
    ],
)
def test_a_name_cannot_forge_a_line(capsys: Captured, hostile: str, shown: str) -> None:
    start()
    LOGGER.info("Table %s", hostile)
    out = capsys.readouterr().out
    assert out.split(" ", 1)[1] == f"INFO Table {shown}\n"
    assert sum(bool(LINE.fullmatch(line)) for line in out.split("\n")) == 1


def test_start_replaces_what_was_before(capsys: Captured) -> None:
    start()
    start()
    LOGGER.info("once")
    assert parsed(capsys.readouterr().out) == [("INFO", "once")]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0B"),
        (999, "999B"),
        (1000, "1.0KB"),
        (9_949, "9.9KB"),
        (10_000, "10KB"),
        (524_000_000, "524MB"),
        (999_499, "999KB"),
        (999_500, "1.0MB"),
        (999_999_999, "1.0GB"),
        (1_500_000_000, "1.5GB"),
        (10**12, "1.0TB"),
        (10**16, "10000TB"),
    ],
)
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


@pytest.mark.parametrize(
    ("duration", "shown"),
    [(0, "0.0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.95, "10s"), (21.4, "21s"), (7200, "7200s")],
)
def test_durations(duration: float, shown: str) -> None:
    assert seconds(duration) == shown


PROGRAM = """
import logging, sys, threading
from pgstash.errors import Interrupted
from pgstash.monitoring import event_log, log
from pgstash.monitoring.redaction import Scrubber
log.start(Scrubber(["PlantedSecret1"]), layout=sys.argv[1], debug=False)
log.LOGGER.info("info \\u5bc6 \\udce9")
log.LOGGER.log(log.SUCCESS, "success")
log.LOGGER.warning("warning")
log.LOGGER.log(log.FAILURE, "failure")
"""


def python(
    program: str, *arguments: str, environment: dict[str, str] | None = None, **rest: object
) -> subprocess.Popen[bytes]:
    settings = {"PATH": os.environ["PATH"], **(environment or {})}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=settings, **rest)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", r"\u5bc6 \udce9"), ("utf-8", r"密 \udce9")]
)
def test_what_cannot_be_encoded_is_shown_all_the_same(encoding: str, shown: str) -> None:
    child = python(
        PROGRAM,
        "text",
        environment={"PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0
    assert f"INFO info {shown}\n" in out.decode()
    assert b"FAILURE failure" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_in_any_encoding(encoding: str) -> None:
    child = python(
        PROGRAM,
        "json",
        environment={"PYTHONIOENCODING": encoding},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    out, _ = child.communicate(timeout=30)
    messages = [json.loads(line)["message"] for line in out.splitlines()]
    assert messages == ["info 密 \udce9", "success"]


def test_a_reader_that_goes_away_stops_nothing() -> None:
    program = (
        PROGRAM + "for _ in range(1000): log.LOGGER.info('x' * 1000)\nlog.finish()\nsys.exit(7)\n"
    )
    child = python(program, "text", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout
    assert child.stderr
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(30) == 7
    assert [level for level, _ in parsed(err.decode())] == ["WARNING", "FAILURE"]


def test_a_full_disk_under_the_log_stops_nothing() -> None:
    program = PROGRAM + "import os; os.write(2, b'goes on'); log.finish(); sys.exit(7)\n"
    with Path("/dev/full").open("wb") as full:
        child = python(program, "text", stdout=full, stderr=subprocess.PIPE)
        _, err = child.communicate(timeout=30)
    assert child.returncode == 7
    assert err.endswith(b"goes on")
    assert b"Traceback" not in err


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_process_started_without_streams(closed: str) -> None:
    shell = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" text {closed}', sys.executable, PROGRAM + "sys.exit(7)\n"],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert shell.returncode == 7
    assert (b"success" in shell.stdout) == (">&-" not in closed.replace("2>&-", ""))
    assert (b"failure" in shell.stderr) == ("2>&-" not in closed)


def read_all(descriptor: int) -> bytes:
    found = b""
    while True:
        try:
            more = os.read(descriptor, 65536)
        except OSError:  # how a pty says that the other end is closed
            return found
        if not more:
            return found
        found += more


def test_colours_on_a_terminal_and_nowhere_else() -> None:
    ours, theirs = pty.openpty()
    child = python(PROGRAM, "text", stdout=theirs, stderr=subprocess.PIPE, close_fds=True)
    os.close(theirs)
    shown = read_all(ours).decode()
    os.close(ours)
    _, err = child.communicate(timeout=30)
    assert re.search(r"\033\[32m\S+ SUCCESS success\033\[0m", shown)
    assert re.search(r"(?m)^\S+ INFO info", shown)
    assert b"\033" not in err
    assert b"FAILURE failure" in err


def test_uncaught_exceptions_of_a_whole_process() -> None:
    program = PROGRAM + (
        "thread = threading.Thread(target=lambda: 1 / len('') or 'PlantedSecret1')\n"
        "thread.start(); thread.join()\n"
        "raise ValueError('PlantedSecret1')\n"
    )
    child = python(program, "text", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 1
    assert b"PlantedSecret1" not in err
    assert b"ZeroDivisionError" in err
    assert b"ValueError: ***" in err
    assert err.count(b"FAILURE Unexpected error") == 2
