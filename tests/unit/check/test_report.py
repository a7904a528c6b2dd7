"""How findings are shown."""

from __future__ import annotations

from collections.abc import Sequence

from pgstash.check.configuration import Plan, look
from pgstash.check.finding import Finding, clock
from pgstash.check.report import lines


def test_columns_line_up_and_what_to_do_is_indented() -> None:
    assert lines(Finding("login", "ok", "PostgreSQL 18.6", "")) == [
        "ok       login               PostgreSQL 18.6"
    ]
    assert lines(Finding("row security", "failure", "binds\napp", "DO this;\nand that;")) == [
        "FAILED   row security        binds",
        " " * 29 + "app",
        " " * 29 + "DO this;",
        " " * 29 + "and that;",
    ]


def test_a_name_forges_no_line_and_sends_no_escape() -> None:
    [line] = lines(Finding("tables", "warning", "a\x1b[2Jb\tok", ""))
    assert line.endswith("a\\x1b[2Jb\\tok")


def test_colour_changes_no_column() -> None:
    finding = Finding("login", "failure", "no")
    [plain], [coloured] = lines(finding), lines(finding, colour=True)
    assert coloured.replace("\033[1;31m", "").replace("\033[0m", "") == plain


def test_clocks_may_differ_a_little() -> None:
    assert clock("clock", 59.0, "it").state == "ok"
    assert clock("clock", -61.0, "it").found == "it is 61 s behind ours"


def test_what_is_said_of_the_configuration() -> None:
    def states(
        *, encrypted: bool, weak: str = "", misspelt: Sequence[str] = (), odd: Sequence[str] = ()
    ) -> list[str]:
        found = list(look(Plan(encrypted, weak, misspelt, odd, "remedy", notes=["note"])))
        assert ("ok", "note", "") in [(each.state, each.found, each.remedy) for each in found]
        return [finding.state for finding in found if finding.found != "note"]

    assert states(encrypted=True) == ["ok", "ok"]
    assert states(encrypted=False) == ["ok", "ok"]
    assert states(encrypted=True, weak="short") == ["ok", "warning"]
    assert states(encrypted=True, misspelt=["a", "b"]) == ["warning", "warning", "ok"]
    assert states(encrypted=True, odd=["a"]) == ["warning", "ok"]
