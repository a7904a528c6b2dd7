"""Findings as lines of text: one for each, followed by indented lines with what to do."""

from __future__ import annotations

from pgstash.check.finding import Finding

_SHOWN = {"ok": "ok", "warning": "warning", "failure": "FAILED", "skipped": "skipped"}
_COLOURS = {
    "ok": "\033[32m",
    "warning": "\033[33m",
    "failure": "\033[1;31m",
    "skipped": "\033[2m",
}
_RESET = "\033[0m"
_STATE_WIDTH = 7
_TOPIC_WIDTH = 18


def lines(finding: Finding, *, colour: bool = False) -> list[str]:
    """Return the lines of one finding, not wrapped; its columns align with those of others."""
    state = f"{_SHOWN[finding.state]:{_STATE_WIDTH}}"
    if colour:
        state = f"{_COLOURS[finding.state]}{state}{_RESET}"
    indent = " " * (_STATE_WIDTH + _TOPIC_WIDTH + 4)
    first, *more = finding.found.split("\n")
    return [
        f"{state}  {finding.topic:{_TOPIC_WIDTH}}  {_printable(first)}".rstrip(),
        *(indent + _printable(line) for line in more),
        *(f"{indent}{_printable(line)}" for line in finding.remedy.split("\n") if line),
    ]


def _printable(text: str) -> str:
    """Show control characters as escapes: a name must not be able to forge a line."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
