"""The constant text of pgstash's own messages, in which an everyday word is no secret.

A password or key id may be a word such as "test", which pgstash uses too. A message is put together
from constants of this package and from values. The constants are found in its source, so what is
not certainly one of them counts as a value.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# Between two constants of one message, in characters: what stands there is a value.
_LONGEST_VALUE = 500

_PLACEHOLDER = re.compile(r"\{\w*\}|%[sdr]|%\.\df")
_WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True, slots=True)
class Phrase:
    """A constant that holds a word at ``offset``, and the constants around it in its message."""

    text: str
    offset: int
    before: str
    after: str

    def is_at(self, text: str, word_at: int) -> bool:
        """Tell whether a text has the phrase where it has the word."""
        start = word_at - self.offset
        if start < 0 or not text.startswith(self.text, start):
            return False
        if not (self.before or self.after):
            return True
        end = start + len(self.text)
        return bool(
            self.before and self.before in text[max(0, start - _LONGEST_VALUE) : start]
        ) or (bool(self.after and self.after in text[end : end + _LONGEST_VALUE]))


def holding(word: re.Pattern[str]) -> list[Phrase]:
    """Return all phrases in which the pattern of a word is found.

    Each has another word beside it, or is told by the constants around it.
    """
    return [
        phrase
        for parts in _messages()
        for number, part in enumerate(parts)
        for match in word.finditer(part)
        for phrase in _phrases(parts, number, match)
    ]


def _phrases(parts: list[str], number: int, match: re.Match[str]) -> Iterator[Phrase]:
    part = parts[number]
    rest = part[: match.start()] + part[match.end() :]
    if _WORD.search(rest):
        yield Phrase(part, match.start(), "", "")
        return
    before = parts[number - 1] if number else ""
    after = parts[number + 1] if number + 1 < len(parts) else ""
    before, after = (text if _WORD.search(text) else "" for text in (before, after))
    if before or after:
        yield Phrase(part, match.start(), before, after)


@functools.cache
def _messages() -> tuple[list[str], ...]:
    """Return the constants of each text in the package."""
    found: list[list[str]] = []
    for file in sorted(_PACKAGE.rglob("*.py")):
        inner: set[int] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                inner.update(map(id, node.values))
                found.append(_constants(node))
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in inner
            ):
                found.append(_PLACEHOLDER.split(node.value))
    return tuple(found)


def _constants(message: ast.JoinedStr) -> list[str]:
    return [
        part.value
        for part in message.values
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
