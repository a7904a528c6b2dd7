"""The constant text of pgstash's own messages, in which an everyday word is not a secret.

A password or key id may be a word such as "test", which pgstash uses too. A message consists of
constants of this package and of values. The constants are found in its source; anything that is
not certainly one of them is treated as a value.
"""

from __future__ import annotations

import ast
import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]

# In characters, between two constants of one message.
_LONGEST_VALUE = 500

_PLACEHOLDER = re.compile(r"\{\w*\}|%[sdr]|%\.\df")
_WORD = re.compile(r"[^\W\d_]{2,}")
_NUMBER = re.compile(r"(?:^|[\s(])\d[\d,]* \Z")
_LONGEST_NUMBER = 20


@dataclass(frozen=True, slots=True)
class Phrase:
    """A constant that contains a word at ``offset``, and the constants around it in its message.

    If it is ``counted``, the constant is a noun, and its number comes before it.
    """

    text: str
    offset: int
    before: str = ""
    after: str = ""
    counted: bool = False

    def is_at(self, text: str, word_at: int) -> bool:
        """Return whether a text that has the word at ``word_at`` has the whole phrase there."""
        start = word_at - self.offset
        if start < 0 or not text.startswith(self.text, start):
            return False
        if self.counted:
            return bool(_NUMBER.search(text, max(0, start - _LONGEST_NUMBER), start))
        if not (self.before or self.after):
            return True
        end = start + len(self.text)
        return bool(
            self.before and self.before in text[max(0, start - _LONGEST_VALUE) : start]
        ) or (bool(self.after and self.after in text[end : end + _LONGEST_VALUE]))


def holding(word: re.Pattern[str]) -> list[Phrase]:
    """Return all phrases in which the pattern of a word is found.

    Each has a second word, or is identified by the constants around it, or is a counted noun.
    """
    nouns = [Phrase(noun, 0, counted=True) for noun in _nouns() if word.fullmatch(noun)]
    return nouns + [
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
        yield Phrase(part, match.start())
        return
    before = next(filter(_WORD.search, reversed(parts[:number])), "")
    after = next(filter(_WORD.search, parts[number + 1 :]), "")
    if before or after:
        yield Phrase(part, match.start(), before, after)


@functools.cache
def _nouns() -> set[str]:
    """Return the nouns of :func:`pgstash.counting.counted` in the package, in both numbers."""
    found: set[str] = set()
    for node in itertools.chain.from_iterable(map(ast.walk, _trees())):
        match node:
            case ast.Call(func=ast.Name(id="counted"), args=[_, ast.Constant(str(noun))]):
                found |= {noun, f"{noun}s"}
            case ast.Call(
                func=ast.Name(id="counted"),
                args=[_, ast.Constant(str(noun)), ast.Constant(str(plural))],
            ):
                found |= {noun, plural}
            case _:
                pass
    return found


@functools.cache
def _messages() -> tuple[list[str], ...]:
    """Return the constants of each text in the package."""
    found: list[list[str]] = []
    for tree in _trees():
        inner: set[int] = set()
        for node in ast.walk(tree):
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


def _trees() -> Iterator[ast.Module]:
    for file in sorted(_PACKAGE.rglob("*.py")):
        yield ast.parse(file.read_text(encoding="utf-8"))


def _constants(message: ast.JoinedStr) -> list[str]:
    return [
        part.value
        for part in message.values
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
