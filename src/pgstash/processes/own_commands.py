"""Runs of pgstash itself in their order, some at a time; what each prints and logs is captured."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import replace
from functools import partial

from pgstash.errors import EXIT_UNEXPECTED
from pgstash.events import Emit, Informed, Notice
from pgstash.processes.children import Children, Command, Ended

_SECONDS_BETWEEN_REPORTS = 60.0
_SECONDS_TO_TIDY_UP = 30.0


def run(
    commands: Mapping[str, Command], at_a_time: int, emit: Emit
) -> Generator[Ended[str], None, None]:
    """Run the commands in their order, some at a time; yield each when it has ended.

    If the generator is left earlier, by a signal for example, the runs are ended by SIGTERM, and
    have the time to tidy up. One that cannot be started has ended with EXIT_UNEXPECTED.
    """
    waiting = list(commands)[::-1]
    reported = time.monotonic()
    children: Children[str] = Children({})
    with children.ending(_SECONDS_TO_TIDY_UP):
        while waiting or children:
            while waiting and len(children) < at_a_time:
                name = waiting.pop()
                command = replace(commands[name], on_line=partial(_report, name, emit))
                emit(Notice(f"Starting pgstash {command.arguments[0]} for {name}"))
                try:
                    children.start(name, command)
                except OSError as error:
                    reason = f"pgstash cannot be started: {error.strerror}"
                    yield Ended(name, EXIT_UNEXPECTED, None, last_lines=[reason])
            left = max(0.0, reported + _SECONDS_BETWEEN_REPORTS - time.monotonic())
            yield from children.wait(left if children else 0.0)
            if children and time.monotonic() - reported >= _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                still = [f"{name} ({age:.0f} s)" for name, age in children.ages().items()]
                emit(Informed(f"Still running: {', '.join(still)}"))


def _report(name: str, emit: Emit, line: str) -> None:
    emit(Notice(f"{name}: {line}"))
