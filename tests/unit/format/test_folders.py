"""Every name of a database has a folder of its own, on every store."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.format.folders import database_of, folder_of

NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63
).filter(lambda name: len(name.encode()) < 64)
SAFE = re.compile(r"[a-z0-9_=-]{1,189}", re.ASCII)


@pytest.mark.parametrize(
    ("database", "folder"),
    [
        ("shop", "shop"),
        ("shop_2-eu", "shop_2-eu"),
        ("Shop", "=53hop"),
        ("a/b", "a=2fb"),
        ("..", "=2e=2e"),
        ("a=2fb", "a=3d2fb"),
        ("müller", "m=c3=bcller"),
    ],
)
def test_the_folder_of_a_database(database: str, folder: str) -> None:
    assert folder_of(database) == folder
    assert database_of(folder) == database


@given(NAMES, NAMES)
def test_no_two_names_share_a_folder_even_if_case_is_ignored(one: str, other: str) -> None:
    first, second = folder_of(one), folder_of(other)
    assert (first.lower() == second.lower()) == (one == other)


@given(NAMES)
def test_the_name_can_be_read_from_the_folder(database: str) -> None:
    assert SAFE.fullmatch(folder_of(database))
    assert database_of(folder_of(database)) == database


@pytest.mark.parametrize(
    "other", ["", "Shop", "a.b", "=", "=4", "=4G", "=61", "=2F", "=ff", "shop\n", "a=00b"]
)
def test_what_is_no_folder_of_a_database(other: str) -> None:
    assert database_of(other) is None
