"""Finds the words of ``words.toml`` in prose, and its names in Python code.

Prose is a text file as a whole, and the comments and strings of a Python file. A word counts in
prose, a name in code.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = "scripts/words.toml"


@dataclass(frozen=True)
class Rule:
    """A pattern for a word or a name, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


@dataclass(frozen=True)
class Idiom:
    """A phrase in which a word may be: in every file, or in one ``file``."""

    pattern: re.Pattern[str]
    text: str
    file: str | None = None


@dataclass(frozen=True)
class Table:
    """The contents of ``words.toml``."""

    covered: Sequence[str]
    unfinished: Sequence[str]
    words: Sequence[Rule]
    names: Sequence[Rule]
    idioms: Sequence[Idiom]

    @classmethod
    def read(cls, root: Path) -> Table:
        """Read the table of the tree below ``root``.

        Raises KeyError if an entry lacks something, ValueError if an exception lacks its reason.
        """
        parsed: dict[str, Any] = tomllib.loads((root / TABLE).read_text(encoding="utf-8"))
        allowed = [*parsed.get("idiom", []), *parsed.get("exception", [])]
        if lacking := [each for each in allowed if not each.get("why")]:
            raise ValueError(f"{TABLE}: no reason is given for {lacking}")
        return cls(
            covered=parsed["covered"],
            unfinished=parsed["unfinished"],
            words=[Rule(_whole(each["pattern"]), each["instead"]) for each in parsed["word"]],
            names=[Rule(re.compile(each["pattern"]), each["instead"]) for each in parsed["name"]],
            idioms=[
                *(Idiom(_whole(each["pattern"]), "") for each in parsed.get("idiom", [])),
                *(
                    Idiom(_whole(re.escape(each["text"])), each["text"], each["file"])
                    for each in parsed.get("exception", [])
                ),
            ],
        )


def _whole(pattern: str) -> re.Pattern[str]:
    """Return the pattern for whole words in any case; a space in it is any white space."""
    spaced = pattern.replace("\\ ", " ").replace(" ", r"\s+")
    return re.compile(rf"(?<!\w)(?:{spaced})(?!\w)", re.IGNORECASE)


def found_in(file: str, text: str, table: Table, needed: set[Idiom]) -> Iterator[str]:
    """Yield a line for each word or name that has to go; add to ``needed`` what lets one pass."""
    idioms = [each for each in table.idioms if each.file in {None, file}]
    is_python = file.endswith(".py")
    for first, prose in _prose_of(text) if is_python else [(1, text)]:
        passes = [(each, match.span()) for each in idioms for match in each.pattern.finditer(prose)]
        for rule in table.words:
            for match in rule.pattern.finditer(prose):
                start, end = match.span()
                around = {each for each, (begin, stop) in passes if begin <= start and end <= stop}
                needed |= around
                if not around:
                    number = first + prose.count("\n", 0, start)
                    near = " ".join(prose[max(0, start - 40) : end + 40].split())
                    yield f"{file}:{number}: {match[0]!r} (write: {rule.instead}): … {near} …"
    for number, name in _names_of(text) if is_python else []:
        for rule in table.names:
            if rule.pattern.fullmatch(name):
                around = {each for each in idioms if each.text == name}
                needed |= around
                if not around:
                    yield f"{file}:{number}: the name {name} (write: {rule.instead})"


def _prose_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the comments and strings of a Python file, each with the number of its first line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comment: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            number = token.start[0]
            if comment and number != last + 1:
                yield last - len(comment) + 1, "\n".join(comment)
                comment = []
            comment.append(token.string.lstrip("#"))
            last = number
    if comment:
        yield last - len(comment) + 1, "\n".join(comment)


def _names_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield the names that a Python file makes or uses, each with the number of its line."""
    for node in ast.walk(ast.parse(text)):
        for field in ("id", "attr", "name", "arg", "asname"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield getattr(node, "lineno", 1), name


def _files(root: Path, paths: Sequence[str]) -> list[str]:
    """Return the files below these paths, without what Python compiles."""
    found = [each for path in paths for each in ((root / path).rglob("*"), [root / path])]
    files = {path.relative_to(root).as_posix() for each in found for path in each if path.is_file()}
    return sorted(file for file in files - {TABLE} if "__pycache__" not in file)


def wrong(root: Path, table: Table, paths: Sequence[str] = ()) -> list[str]:
    """Return one line for each word that has to go, and for each exception that nothing needs.

    Without ``paths`` all that is covered is read, except what is unfinished.
    """
    files = _files(root, paths or table.covered)
    if not paths:
        files = [file for file in files if not _is_below(file, table.unfinished)]
    needed: set[Idiom] = set()
    problems = [
        problem
        for file in files
        for problem in found_in(file, (root / file).read_text(encoding="utf-8"), table, needed)
    ]
    if not paths:
        problems += [
            f"{TABLE}: the exception {each.text!r} is not needed in {each.file}"
            for each in table.idioms
            if each.file and each not in needed and not _is_below(each.file, table.unfinished)
        ]
        problems += [
            f"{TABLE}: {path} does not exist"
            for path in (*table.covered, *table.unfinished)
            if not (root / path).exists()
        ]
    return problems


def _is_below(file: str, paths: Sequence[str]) -> bool:
    return any(file == path or file.startswith(f"{path}/") for path in paths)


def main() -> int:
    """Print what is wrong; return 1 if anything is."""
    parser = argparse.ArgumentParser(prog="scripts/words", description=__doc__)
    parser.add_argument("paths", nargs="*", help="only these files and folders")
    paths: list[str] = parser.parse_args().paths
    table = Table.read(ROOT)
    problems = wrong(ROOT, table, paths)
    for problem in problems:
        print(problem)
    if table.unfinished and not paths:
        print(f"not rewritten yet, so not read: {', '.join(table.unfinished)}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
