"""Plants the changes of ``mutants.toml`` one by one, and runs only the tests meant for each.

If its tests pass with the change, they do not guard what they are there for. Nothing is changed
in the work tree: each worker has a copy of it, and a virtual environment that finds pgstash there.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import tomllib
import venv
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "scripts" / "mutants.toml"
PACKAGE = Path("src") / "pgstash"
NOT_COPIED = (".git", ".venv", ".cache", ".*_cache", ".hypothesis", "__pycache__", "dist", "build")
SECONDS = 300.0  # for the tests of one change
SECONDS_TO_END = 60.0

# Exit statuses of pytest: https://docs.pytest.org/en/stable/reference/exit-codes.html
PASSED, FAILED = 0, 1


@dataclass(frozen=True)
class Change:
    """One change of one file below src/pgstash: ``old``, which occurs once, becomes ``new``.

    ``why`` is what is lost with it, ``tests`` are arguments of pytest. ``survives`` is the reason
    why no test can notice the change, if none can.
    """

    file: str
    why: str
    old: str
    new: str
    tests: list[str] = field(default_factory=list)
    survives: str = ""

    def planted(self, root: Path) -> str:
        """Return the text of the file with the change. Raises ValueError if it does not apply."""
        path = root / PACKAGE / self.file
        text = path.read_text() if path.exists() else ""
        if (count := text.count(self.old)) != 1 or self.old == self.new:
            raise ValueError(f"the old text occurs {count} times, not once")
        return text.replace(self.old, self.new)

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"


@dataclass(frozen=True)
class Outcome:
    """The outcome of one change. ``wrong`` describes the problem, if there is one."""

    change: Change
    word: str
    seconds: float
    wrong: str = ""


class Copy:
    """A copy of the work tree in which to plant changes."""

    def __init__(self, folder: Path) -> None:
        """Make the copy, and an environment that shares the packages of this one."""
        self._root = folder
        shutil.copytree(
            ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True
        )
        (folder / ".cache").symlink_to(ROOT / ".cache")
        venv.create(folder / ".venv", symlinks=True)
        self._python = folder / ".venv" / "bin" / "python"
        # A .pth file in those folders, which leads to the work tree, is not read.
        [packages] = (folder / ".venv").glob("lib/python*/site-packages")
        lines = (folder / "src", sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
        (packages / "copy.pth").write_text("".join(f"{line}\n" for line in lines))
        command = folder / ".venv" / "bin" / "pgstash"
        command.write_text(f"#!{self._python}\nfrom pgstash.__main__ import main\n\nmain()\n")
        command.chmod(0o755)
        command_line = [str(self._python), "-c", "import pgstash; print(pgstash.__file__)"]
        found = subprocess.run(command_line, capture_output=True, text=True, check=True).stdout
        if not Path(found).is_relative_to(folder):
            raise RuntimeError(f"the copy would test {found.strip()}")

    @contextmanager
    def with_change(self, change: Change) -> Iterator[None]:
        """Plant the change for the time of the block."""
        path = self._root / PACKAGE / change.file
        before = path.read_text()
        path.write_text(change.planted(self._root))
        try:
            yield
        finally:
            path.write_text(before)

    def test(self, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Run pytest; return its exit status, None if it did not end, and what it wrote."""
        command = [str(self._python), "-m", "pytest", "-q", "--exitfirst", "-p", "no:cacheprovider"]
        # A file, since servers that are left behind would hold a pipe open.
        with (
            tempfile.TemporaryFile("w+") as output,
            subprocess.Popen(
                [*command, *arguments],
                cwd=self._root,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            status = _ended(process, seconds)
            output.seek(0)
            return status, output.read()


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return the exit status, None if the process had to be ended."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # pytest stops its servers then
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS_TO_END)
        raise
    try:
        process.wait(SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return None


def tried(change: Change, copies: queue.SimpleQueue[Copy]) -> Outcome:
    """Plant one change and run its tests."""
    copy = copies.get()
    began = time.monotonic()
    try:
        with copy.with_change(change):
            status, output = copy.test(change.tests, SECONDS)
    finally:
        copies.put(copy)
    took = time.monotonic() - began
    if status is None:
        return Outcome(change, "killed: its tests did not end", took)
    if status == FAILED:
        wrong = f"a test notices it, but the table calls it a survivor: {change.survives}"
        return Outcome(change, "killed", took, wrong if change.survives else "")
    if status == PASSED:
        wrong = "" if change.survives else f"no test notices it: {' '.join(change.tests)}"
        return Outcome(change, "survived", took, wrong)
    return Outcome(change, "not tried", took, f"its tests cannot be run:\n{output[-2000:]}")


def stale(changes: Sequence[Change]) -> list[str]:
    """Return the problems of the table: changes that do not apply, tests that do not exist."""
    wrong = []
    for change in changes:
        try:
            change.planted(ROOT)
        except ValueError as error:
            wrong.append(f"{change}: {error}")
        wrong += [
            f"{change}: {test} does not exist" for test in change.tests if not _is_there(test)
        ]
        if not change.tests:
            wrong.append(f"{change}: it names no tests")
    return wrong


def _is_there(test: str) -> bool:
    """Return whether the file of tests exists, and has a test of this name."""
    file, _, name = test.partition("::")
    path = ROOT / file
    return path.is_file() and (not name or f"def {name.partition('[')[0]}(" in path.read_text())


def run(changes: Sequence[Change], jobs: int) -> list[str]:
    """Try all changes and print the outcome of each; return the problems."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="pgstash-mutants-") as folder:
        # Servers run as the user nobody, and read files of the copy.
        Path(folder).chmod(0o755)
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        first = Copy(Path(folder) / "0")
        copies.put(first)
        for number in range(1, jobs):
            copies.put(Copy(Path(folder) / str(number)))
        print("Running the tests without any change ...", flush=True)
        status, output = first.test(_together(changes, jobs), SECONDS * jobs * 4)
        if status != PASSED:
            return [f"they fail without any change:\n{output[-4000:]}"]
        lock = threading.Lock()
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(tried, change, copies) for change in changes]
            for future in as_completed(futures):
                outcome = future.result()
                with lock:
                    print(
                        f"{outcome.word:9} {outcome.seconds:5.1f} s  {outcome.change}", flush=True
                    )
                if outcome.wrong:
                    wrong.append(f"{outcome.change}: {outcome.wrong}")
    return wrong


def _together(changes: Sequence[Change], jobs: int) -> list[str]:
    """Return the arguments that run the tests of all changes once."""
    named = {test for change in changes for test in change.tests}
    return [f"--numprocesses={jobs}", *sorted(named)]


def read_table(words: Sequence[str]) -> list[Change]:
    """Return the changes of the table; with words those that have one of them."""
    changes = [Change(**each) for each in tomllib.loads(TABLE.read_text())["change"]]
    return [each for each in changes if not words or any(word in str(each) for word in words)]


def main() -> int:
    """Return the exit status: 1 for a survivor without a reason, or a change that cannot be."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only changes with one of these in file or reason")
    parser.add_argument("--check", action="store_true", help="only see whether each still applies")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    asked = parser.parse_args()
    changes = read_table(asked.words)
    wrong = stale(changes)
    if not (wrong or asked.check):
        wrong = run(changes, asked.jobs)
    for each in wrong:
        print(f"\n{each}", file=sys.stderr)
    print(f"\n{len(changes)} changes, wrong: {len(wrong)}")
    return 1 if wrong or not changes else 0


if __name__ == "__main__":
    sys.exit(main())
