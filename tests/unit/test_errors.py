"""The tree at the top of errors is the tree of the classes."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from pgstash import errors
from pgstash.errors import (
    EXIT_UNEXPECTED,
    EXIT_USAGE,
    ConfigurationError,
    Interrupted,
    PgstashError,
)

_LINE = re.compile(r"^    ((?:│   |    )*)(?:[├└]── )?(\w+)(?: +(\d+) |$)")


def drawn() -> list[tuple[str, str, int]]:
    """Return parent, name and exit status of each class in the drawing, in its order."""
    found: list[tuple[str, str, int]] = []
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = _LINE.match(line)
        if not match or not match[2].endswith("Error"):
            continue
        depth = len(match[1]) // 4 + ("── " in line)
        path[depth:] = [match[2]]
        parent = path[depth - 1] if depth else "Exception"
        found.append((parent, match[2], int(match[3] or EXIT_UNEXPECTED)))
    return found


def tree(kind: type[PgstashError] = PgstashError) -> Iterator[type[PgstashError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


# Classes that a package derives for itself are no branches of the tree.
LEAVES = [kind for kind in tree() if len(list(tree(kind))) == 1]


def test_the_drawing_is_the_tree() -> None:
    built = [(kind.__bases__[0].__name__, kind.__name__, kind.exit_code) for kind in tree()]
    assert drawn() == built
    assert len(built) > 15


def test_each_failure_has_an_exit_status_of_its_own() -> None:
    codes = [kind.exit_code for kind in LEAVES]
    assert len(set(codes)) == len(codes)
    assert not {0, EXIT_USAGE, EXIT_UNEXPECTED} & set(codes)
    assert all(code < 64 for code in codes)  # those of sysexits.h and of signals begin there
    assert [kind for kind in tree() if kind.exit_code == 1] == [ConfigurationError]


def test_what_is_not_a_leaf_is_unforeseen() -> None:
    assert {kind.exit_code for kind in tree() if kind not in LEAVES} == {EXIT_UNEXPECTED}


@pytest.mark.parametrize("kind", [kind for kind in LEAVES if kind is not ConfigurationError])
def test_a_hint_of_its_own_wins_over_that_of_the_class(kind: type[PgstashError]) -> None:
    error = kind("what is wrong")
    assert (str(error), error.message, error.hint) == (
        "what is wrong",
        "what is wrong",
        kind.default_hint,
    )
    assert kind("what is wrong", hint="do this").hint == "do this"


def test_a_configuration_error_keeps_every_problem() -> None:
    error = ConfigurationError(["A is missing", "B is wrong"])
    assert error.problems == ["A is missing", "B is wrong"]
    assert str(error) == "A is missing\nB is wrong"


def test_an_interruption_is_no_failure() -> None:
    interrupted = Interrupted(signal.SIGTERM)
    assert not isinstance(interrupted, Exception)
    assert interrupted.signum == signal.SIGTERM
    assert str(interrupted) == "interrupted by SIGTERM"
