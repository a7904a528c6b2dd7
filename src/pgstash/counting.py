"""Counts in messages: ``1 role``, ``2 roles``, ``7,000,000 rows``."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun; ``plural`` is for nouns that do not just add an "s".

    The noun has to be a constant: the redaction finds it in the source, and keeps it in messages
    even if a secret is the same word.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
