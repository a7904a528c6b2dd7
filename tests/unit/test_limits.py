"""A module fits in one reading, and a function does not take many arguments."""

from __future__ import annotations

from pathlib import Path

SOURCES = Path(__file__).parents[2] / "src" / "pgstash"
MOST_LINES = 300
# Tables: one class after the other, each on its own.
TABLES = {"errors.py"}
MOST_LINES_OF_A_TABLE = 400


def test_no_module_is_longer_than_one_reads_at_once() -> None:
    lines = {
        path.relative_to(SOURCES).as_posix(): len(path.read_text().splitlines())
        for path in SOURCES.rglob("*.py")
    }
    assert lines.keys() >= TABLES
    limits = {name: MOST_LINES_OF_A_TABLE if name in TABLES else MOST_LINES for name in lines}
    assert {name: count for name, count in lines.items() if count > limits[name]} == {}


def test_only_a_command_with_many_options_has_many_arguments() -> None:
    many = {
        path.relative_to(SOURCES).parts[0]
        for path in SOURCES.rglob("*.py")
        if "noqa: PLR0913" in path.read_text() or "PLR0917" in path.read_text()
    }
    assert many <= {"cli"}
