"""Checks, builds and tags a release of the commit that is checked out. Uploads nothing.

All problems are reported at once, and then nothing is changed. The tag comes last, so a build that
fails leaves none.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = ROOT / "src" / "pgstash" / "__init__.py"
CHANGELOG = ROOT / "CHANGELOG.md"
DIST = ROOT / "dist"
BRANCH = "main"


@dataclass(frozen=True)
class Section:
    """One section of the changelog: ``date`` as it is written there, empty if there is none."""

    date: str
    text: str


def sections() -> dict[str, Section]:
    """Return the sections of the changelog by the version in their heading."""
    _, *parts = re.split(r"(?m)^## ", CHANGELOG.read_text(encoding="utf-8"))
    found = {}
    for part in parts:
        heading, _, text = part.partition("\n")
        version, _, written = heading.partition(" - ")
        found[version.strip()] = Section(written.strip(), text.strip())
    return found


def git(*arguments: str) -> str:
    """Return the output of git. Raises CalledProcessError if it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.strip()


def problems(version: str, tested: str | None, today: date) -> Iterator[str]:
    """Yield each reason why this commit cannot be released as ``version``."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"{version} is not a version such as 1.2.3."
    written = re.search(r'(?m)^__version__ = "(.*)"$', VERSION.read_text(encoding="utf-8"))
    if written is None or written[1] != version:
        found = written[1] if written else "none"
        yield f"{VERSION.relative_to(ROOT)} has the version {found}, not {version}."
    yield from _problems_of_changelog(version, today)
    if changed := git("status", "--porcelain"):
        yield f"The work tree is not clean:\n{changed}"
    if (branch := git("branch", "--show-current")) != BRANCH:
        yield f"The branch is {branch or 'unknown'}. Release from {BRANCH}."
    if git("tag", "--list", f"v{version}"):
        yield f"The tag v{version} exists already."
    head = git("rev-parse", "HEAD")
    if tested is None:
        yield f"Run scripts/test --all, then add --tested {head}"
    elif tested != head:
        yield f"The tests passed on {tested}, but the commit to release is {head}."


def _problems_of_changelog(version: str, today: date) -> Iterator[str]:
    found = sections()
    if "Unreleased" in found and found["Unreleased"].text:
        yield f'CHANGELOG.md has entries under "Unreleased". Move them to {version}.'
    section = found.get(version)
    if section is None:
        yield f"CHANGELOG.md has no section {version}."
        return
    if not section.text:
        yield f"The section {version} of CHANGELOG.md is empty."
    try:
        dated = date.fromisoformat(section.date)
    except ValueError:
        yield f"The section {version} of CHANGELOG.md has no date. Expected: ## {version} - {today}"
        return
    if dated > today:
        yield f"The section {version} of CHANGELOG.md is dated {dated}, in the future."


def build(version: str) -> list[Path]:
    """Build source distribution and wheel into dist/. Raises SystemExit if they lack a name."""
    environment = os.environ | {"SOURCE_DATE_EPOCH": git("log", "-1", "--format=%ct")}
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", DIST],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    files = [DIST / f"pgstash-{version}.tar.gz", DIST / f"pgstash-{version}-py3-none-any.whl"]
    if missing := [path.name for path in files if not path.is_file()]:
        raise SystemExit(f"The build did not make {', '.join(missing)}.")
    return files


def main() -> int:
    """Return 1 if the commit cannot be released."""
    parser = argparse.ArgumentParser(prog="scripts/release", description=__doc__)
    parser.add_argument("version", help="the version to release, such as 1.2.3")
    parser.add_argument("--tested", metavar="COMMIT", help="where scripts/test --all passed")
    parser.add_argument("--check", action="store_true", help="only check; change nothing")
    asked = parser.parse_args()
    version: str = asked.version
    found = list(problems(version, asked.tested, datetime.now(UTC).date()))
    if found:
        print(f"{version} cannot be released:", file=sys.stderr)
        for problem in found:
            print(f"- {problem}", file=sys.stderr)
        return 1
    if asked.check:
        print(f"{version} can be released.")
        return 0
    files = build(version)
    notes = f"pgstash {version}\n\n{sections()[version].text}\n"
    git("tag", "--annotate", "--cleanup=whitespace", "--message", notes, f"v{version}")
    print(f"\nTagged v{version}. Nothing was uploaded. To publish it:\n")
    print(f"    git push origin {BRANCH} v{version}")
    print(f"    twine upload {' '.join(str(path.relative_to(ROOT)) for path in files)}\n")
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        print(f"{digest}  {path.name}  ({path.stat().st_size:,} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
