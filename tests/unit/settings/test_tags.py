"""The tags of stored objects, by the rules of S3."""

from __future__ import annotations

import pytest

from pgstash.settings import tags


def test_pairs() -> None:
    assert tags.parse("team=data, cost centre=4/2 ,empty=,url=a=b:c@d") == [
        ("team", "data"),
        ("cost centre", "4/2"),
        ("empty", ""),
        ("url", "a=b:c@d"),
    ]
    assert len(tags.parse(",".join(f"{number}=x" for number in range(10)))) == 10


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("team", "must be pairs"),
        ("=data", "must be pairs"),
        ("team=data,", "must be pairs"),
        ("team=a;b", "may only contain"),
        ("team=a\nb", "may only contain"),
        ("a" * 129 + "=x", "128"),
        ("a=" + "x" * 257, "256"),
        ("AWS:x=y", "begins with aws:"),
        ("a=x,a=y", "the key a more than once"),
        (",".join(f"{number}=x" for number in range(11)), "more than 10"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        tags.parse(text)
