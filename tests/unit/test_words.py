"""scripts/words finds words in prose and names in code, and only those."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "words.py"
TABLE = """
covered = ["src", "docs"]
unfinished = [{unfinished}]

[[word]]
pattern = "say|said"
instead = "print"

[[word]]
pattern = "nobody knows"
instead = "is unknown"

[[name]]
pattern = "told_\\\\w+"
instead = "a result"

[[idiom]]
pattern = "that is to say"
why = "an idiom"
{exceptions}
"""
EXCEPTION = """
[[exception]]
file = "{file}"
text = "{text}"
why = "{why}"
"""


class Tree:
    """A tree with a table of words."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scripts").mkdir()
        shutil.copy(SCRIPT, root / "scripts")
        self.write("docs/empty.md", "Nothing.\n")
        self.write("src/empty.py", "")
        self.table()

    def table(self, *, unfinished: str = "", exceptions: str = "") -> None:
        self.write("scripts/words.toml", TABLE.format(unfinished=unfinished, exceptions=exceptions))

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *paths: str) -> list[str]:
        """Return the lines that the script prints, and compare its status with them."""
        done = subprocess.run(
            [sys.executable, self.root / "scripts" / "words.py", *paths],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stderr == ""
        lines = [each for each in done.stdout.splitlines() if not each.startswith("not rewritten")]
        assert done.returncode == (1 if lines else 0)
        return lines


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def places(lines: list[str]) -> list[str]:
    return [":".join(line.split(":")[:2]) for line in lines]


def test_a_word_is_found_in_a_document_in_any_case_and_over_two_lines(tree: Tree) -> None:
    tree.write("docs/page.md", "Fine.\nPeople Say so, though\nnobody\nknows it.\nEssay.\n")
    assert sorted(places(tree.run())) == ["docs/page.md:2", "docs/page.md:3"]


def test_a_word_is_found_in_comments_and_strings(tree: Tree) -> None:
    code = (
        '"""Said of a module.\n\nIt is said twice."""\n'  # 1, 3
        "# What nobody\n# knows.\n"  # 4
        "say = 1\nsay_it = say\n"
        "text = f'they say {say} {say_it}'\n"  # 8
        "joined = 'nobody ' 'knows'\n"  # 9
    )
    tree.write("src/code.py", code)
    assert sorted(places(tree.run())) == [f"src/code.py:{line}" for line in (1, 3, 4, 8, 9)]


def test_a_name_is_found_where_it_is_made_and_used(tree: Tree) -> None:
    code = "def told_of(x):\n    return x\n\n\nprint(module.told_of(told_x=1), 'told_of')\n"
    tree.write("src/code.py", code)
    tree.write("docs/page.md", "told_of\n")
    assert sorted(set(places(tree.run()))) == ["src/code.py:1", "src/code.py:5"]


def test_an_idiom_passes_everywhere(tree: Tree) -> None:
    tree.write("docs/page.md", "That is to\nsay: fine.\n")
    assert tree.run() == []


def test_an_exception_passes_in_its_file_alone_and_in_its_phrase(tree: Tree) -> None:
    for page in ("docs/one.md", "docs/two.md"):
        tree.write(page, "some say so\nothers say no\n")
    tree.table(exceptions=EXCEPTION.format(file="docs/one.md", text="some say so", why="a quote"))
    assert sorted(places(tree.run())) == ["docs/one.md:2", "docs/two.md:1", "docs/two.md:2"]


def test_an_exception_for_a_name_passes(tree: Tree) -> None:
    tree.write("src/code.py", "told_of = 1\n")
    tree.table(exceptions=EXCEPTION.format(file="src/code.py", text="told_of", why="an API"))
    assert tree.run() == []


def test_an_exception_that_nothing_needs_is_wrong(tree: Tree) -> None:
    tree.table(exceptions=EXCEPTION.format(file="docs/empty.md", text="they say", why="a quote"))
    [line] = tree.run()
    assert "'they say' is not needed in docs/empty.md" in line


def test_an_exception_needs_a_reason(tree: Tree) -> None:
    tree.table(exceptions=EXCEPTION.format(file="docs/empty.md", text="they say", why=""))
    done = subprocess.run(
        [sys.executable, tree.root / "scripts" / "words.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "no reason is given" in done.stderr


def test_what_is_unfinished_is_read_only_by_name(tree: Tree) -> None:
    tree.write("docs/page.md", "They say.\n")
    tree.write("docs/page.md.txt", "They say.\n")
    tree.table(unfinished='"docs/page.md"')
    assert places(tree.run()) == ["docs/page.md.txt:1"]
    assert places(tree.run("docs/page.md")) == ["docs/page.md:1"]
    tree.table(unfinished='"docs/page.md", "docs/gone.md"')
    assert "docs/gone.md does not exist" in tree.run()[-1]


def test_what_is_not_covered_is_not_read(tree: Tree) -> None:
    tree.write("README.md", "They say.\n")
    tree.write("src/__pycache__/page.md", "They say.\n")
    assert tree.run() == []
