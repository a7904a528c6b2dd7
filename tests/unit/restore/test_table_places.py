"""The name in a hint is the one that the option takes."""

from __future__ import annotations

import shlex

import pytest

from pgstash.postgres.tools import patterns
from pgstash.restore.table_places import shown_for_shell


@pytest.mark.parametrize(
    "name",
    ["invoices", "Order Details", "UPPER", 'with "quotes"', "it's", "$HOME `id`", "a.b", "ü"],
)
def test_a_shell_passes_it_on_whole(name: str) -> None:
    [argument] = shlex.split(shown_for_shell("billing", name))
    assert patterns.name(argument) == ("billing", name)


def test_a_plain_name_is_not_quoted() -> None:
    assert shown_for_shell("billing", "invoices_restored") == "billing.invoices_restored"
