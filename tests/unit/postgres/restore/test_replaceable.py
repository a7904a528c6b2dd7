"""What a replaced database is called."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgstash.postgres.restore.replaceable import kept_names

AT = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
SUFFIX = "_before_20260131_020000"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("shop", "shop"),
        ("n" * 40, "n" * 40),
        ("n" * 63, "n" * 40),
        ("ä" * 20, "ä" * 20),
        ("n" + "ä" * 31, "n" + "ä" * 19),  # the fortieth byte is half of a character
        ("€" * 21, "€" * 13),
        ("nn" + "🐘" * 15, "nn" + "🐘" * 9),
    ],
)
def test_a_name_is_shortened_between_characters(name: str, kept: str) -> None:
    first, second, *_ = kept_names(name, AT)
    assert first == kept + SUFFIX
    assert second.endswith(f"{SUFFIX}_2")
    assert all(len(each.encode()) <= 63 for each in kept_names(name, AT))
