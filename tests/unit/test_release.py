"""scripts/release refuses what is not ready, changes nothing then, and uploads nothing ever."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pgstash import __version__

REPOSITORY = Path(__file__).parents[2]
PARTS = ["pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", ".gitignore"]
MAN_PAGES = "docs/reference/man"
CHANGELOG = "# Changelog\n\n## Unreleased\n\n## 7.8.9 - 2026-01-31\n\n### Added\n\n- A thing.\n"


class Clone:
    """A repository of its own, ready for the release 7.8.9."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "scripts").mkdir()
        shutil.copy(REPOSITORY / "scripts" / "release.py", root / "scripts")
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "src", root / "src", ignore=ignored)
        shutil.copytree(REPOSITORY / MAN_PAGES, root / MAN_PAGES)
        for name in PARTS:
            shutil.copy(REPOSITORY / name, root)
        self.write("src/pgstash/__init__.py", '"""The package."""\n\n__version__ = "7.8.9"\n')
        self.write("CHANGELOG.md", CHANGELOG)
        self.git("init", "--quiet", "--initial-branch=main")
        self.commit()

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def git(self, *arguments: str) -> str:
        command = ["git", *arguments]
        env = self.environment()
        done = subprocess.run(command, cwd=self.root, env=env, stdout=subprocess.PIPE, check=True)
        return done.stdout.decode().strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "Change something")

    def environment(self) -> dict[str, str]:
        someone = {"NAME": "Someone", "EMAIL": "someone@example.com"}
        who = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in someone.items()
        }
        unset = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        return unset | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    @property
    def head(self) -> str:
        return self.git("rev-parse", "HEAD")

    def release(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, self.root / "scripts" / "release.py", *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def refusals(self, version: str = "7.8.9", *arguments: str) -> list[str]:
        """Return why a release is refused, and see that nothing is changed."""
        before = self.git("tag"), self.git("status", "--porcelain")
        done = self.release(version, *(arguments or ("--tested", self.head)))
        assert done.returncode == 1
        assert (self.git("tag"), self.git("status", "--porcelain")) == before
        assert not (self.root / "dist").exists()
        return re.findall(r"(?m)^- (.*)$", done.stderr)


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_a_release_is_built_and_tagged_and_what_to_upload_is_named(clone: Clone) -> None:
    checked = clone.release("7.8.9", "--tested", clone.head, "--check")
    assert (checked.returncode, checked.stdout) == (0, "7.8.9 can be released.\n")
    assert (clone.git("tag"), (clone.root / "dist").exists()) == ("", False)

    done = clone.release("7.8.9", "--tested", clone.head)
    assert done.returncode == 0, done.stderr
    built = sorted(path.name for path in (clone.root / "dist").iterdir())
    assert built == ["pgstash-7.8.9-py3-none-any.whl", "pgstash-7.8.9.tar.gz"]
    assert all(name in done.stdout for name in built)
    with zipfile.ZipFile(clone.root / "dist" / built[0]) as wheel:
        man = {Path(name).name for name in wheel.namelist() if "/share/man/man1/" in name}
    assert man == {page.name for page in (REPOSITORY / MAN_PAGES).iterdir()}
    assert "Nothing was uploaded." in done.stdout
    assert clone.git("tag", "--list", "--format=%(contents)").split("\n\n") == [
        "pgstash 7.8.9",
        "### Added",
        "- A thing.",
    ]
    assert clone.git("rev-parse", "v7.8.9^{commit}") == clone.head
    assert clone.git("status", "--porcelain") == ""


def test_the_same_commit_makes_the_same_files(clone: Clone) -> None:
    digests = []
    for _ in range(2):
        done = clone.release("7.8.9", "--tested", clone.head)
        digests.append(re.findall(r"\b[0-9a-f]{64}\b", done.stdout))
        clone.git("tag", "--delete", "v7.8.9")
        shutil.rmtree(clone.root / "dist")
    assert len(digests[0]) == 2
    assert digests[0] == digests[1]


def test_a_tree_that_is_not_clean_is_refused(clone: Clone) -> None:
    clone.write("notes.txt", "not committed\n")
    assert clone.refusals() == ["The work tree is not clean:"]
    (clone.root / "notes.txt").unlink()
    clone.write("README.md", "changed\n")
    assert clone.refusals() == ["The work tree is not clean:"]


def test_another_version_is_refused(clone: Clone) -> None:
    assert clone.refusals("7.9.0") == [
        "src/pgstash/__init__.py has the version 7.8.9, not 7.9.0.",
        "CHANGELOG.md has no section 7.9.0.",
    ]
    assert "v7.8.9 is not a version such as 1.2.3." in clone.refusals("v7.8.9")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (" - 2026-01-31", "", "The section 7.8.9 of CHANGELOG.md has no date."),
        ("2026-01-31", "January", "The section 7.8.9 of CHANGELOG.md has no date."),
        ("2026-01-31", "9999-01-31", "is dated 9999-01-31, in the future."),
        ("### Added\n\n- A thing.", "", "The section 7.8.9 of CHANGELOG.md is empty."),
        ("Unreleased\n", "Unreleased\n\n- A thing.\n", 'has entries under "Unreleased".'),
    ],
)
def test_a_changelog_that_is_not_ready_is_refused(
    clone: Clone, old: str, new: str, reason: str
) -> None:
    clone.write("CHANGELOG.md", CHANGELOG.replace(old, new))
    clone.commit()
    [refusal] = clone.refusals()
    assert reason in refusal


def test_another_branch_is_refused(clone: Clone) -> None:
    clone.git("checkout", "--quiet", "-b", "other")
    assert clone.refusals() == ["The branch is other. Release from main."]
    clone.git("checkout", "--quiet", "--detach", "main")
    assert clone.refusals() == ["The branch is unknown. Release from main."]


def test_a_version_that_is_tagged_is_refused(clone: Clone) -> None:
    clone.git("tag", "v7.8.9")
    assert clone.refusals() == ["The tag v7.8.9 exists already."]


def test_a_commit_that_was_not_tested_is_refused(clone: Clone) -> None:
    tested = clone.head
    clone.write("README.md", "changed\n")
    clone.commit()
    [refusal] = clone.refusals("7.8.9", "--tested", tested)
    assert refusal == f"The tests passed on {tested}, but the commit to release is {clone.head}."
    [refusal] = clone.refusals("7.8.9", "--check")
    assert refusal == f"Run scripts/test --all, then add --tested {clone.head}"


def test_the_changelog_has_a_dated_section_for_this_version() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()
    dated = re.findall(r"(?m)^## (\d+\.\d+\.\d+) - \d{4}-\d{2}-\d{2}$", text)
    assert __version__ in dated
