"""What import-linter and ruff forbid in this project, they find wherever it is planted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS: list[dict[str, Any]] = PROJECT["tool"]["importlinter"]["contracts"]
LAYERED = [each for each in CONTRACTS if each["type"] == "layers"]
WITH_NEIGHBOURS = [each for each in LAYERED if any("|" in layer for layer in each["layers"])]
# Where each library may be imported at most, as ARCHITECTURE.md says.
PACKAGES = {
    "azure": r"pgstash\.storage\.azure\..+",
    "boto3": "none",
    "botocore": r"pgstash\.(storage\.s3|kms)\..+",
    "google": r"pgstash\.storage\.gcs\..+",
    "google_crc32c": r"pgstash\.storage\.gcs\..+",
    "multiprocessing": "none",
    "procrastinate": r"pgstash\.fleet\.[a-z_]+",
    "prometheus_client": r"pgstash\.monitoring\.metrics(_file)?",
    "psycopg": r"pgstash\.(postgres\..+|fleet\.connector)",
    "psycopg_pool": "none",
    "pty": "none",
    "apprise": r"pgstash\.monitoring\.notify",
    "pyrage": r"pgstash\.pipeline\.age",
    "requests": r"pgstash\.storage\.gcs\..+",
    "subprocess": r"pgstash\.(postgres\..+|processes\.[a-z_]+)",
    "urllib3": r"pgstash\.(monitoring\.http_delivery|storage\.s3\..+)",
}


class Tree:
    """A copy of the sources in which to plant what is forbidden."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copy(ROOT / "pyproject.toml", root)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "src", root / "src", ignore=ignored)

    @cached_property
    def modules(self) -> dict[str, Path]:
        """The files of the modules, as the sources have them."""
        found = {}
        for path in (self.root / "src").rglob("*.py"):
            parts = path.relative_to(self.root / "src").with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
        return found

    def plant(self, module: str, line: str) -> None:
        with self.modules[module].open("a") as file:
            file.write(f"\n{line}\n")

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        tool = Path(sys.executable).with_name(command[0])
        return subprocess.run(
            [tool, *command[1:]],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": str(self.root / "src")},
            capture_output=True,
            text=True,
            check=False,
        )

    def broken(self, *options: str) -> set[tuple[str, str]]:
        """Return the forbidden imports that lint-imports finds: who imports what."""
        done = self.run("lint-imports", "--no-cache", *options)
        found = set(re.findall(r"^- +(\S+) -> (\S+) \(l\.\d+\)$", done.stdout, re.MULTILINE))
        assert done.returncode == (1 if found else 0), done.stdout + done.stderr
        return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_nothing_forbidden_is_imported(tree: Tree) -> None:
    assert not tree.broken()


@pytest.mark.parametrize(
    "module",
    [
        "pgstash.commands.backup",
        "pgstash.repository.archive",
        "pgstash.drill.run",
        "pgstash.repository.catalog",
    ],
)
def test_one_forbidden_import_is_enough(tree: Tree, module: str) -> None:
    tree.plant(module, "from psycopg import conninfo")
    assert tree.broken() == {(module, "psycopg")}


def test_what_is_forbidden_is_found_in_every_module_outside_its_package(tree: Tree) -> None:
    expected = set()
    for module in tree.modules:
        for library, allowed in PACKAGES.items():
            tree.plant(module, f"import {library}")
            if not re.fullmatch(allowed, module):
                expected.add((module, library))
    found = {(who, what) for who, what in tree.broken() if not re.fullmatch(PACKAGES[what], who)}
    assert found == expected


def test_each_forbidden_library_is_one_that_was_planted() -> None:
    named = [each for each in CONTRACTS if "forbidden_modules" in each]
    assert {library for each in named for library in each["forbidden_modules"]} == set(PACKAGES)


def layers(contract: dict[str, Any]) -> list[list[str]]:
    [container] = contract["containers"]
    return [
        [f"{container}.{name.strip()}" for name in layer.split("|")] for layer in contract["layers"]
    ]


@pytest.mark.parametrize("contract", LAYERED, ids=lambda each: each["id"])
def test_an_import_upwards_is_found_from_each_layer(tree: Tree, contract: dict[str, Any]) -> None:
    expected = set()
    for above, below in pairwise(layers(contract)):
        for module in below:
            tree.plant(module, f"import {above[0]}")
            expected.add((module, above[0]))
    assert tree.broken("--contract", contract["id"]) == expected


@pytest.mark.parametrize("contract", WITH_NEIGHBOURS, ids=lambda each: each["id"])
def test_an_import_of_a_neighbour_is_found_in_each_layer(
    tree: Tree, contract: dict[str, Any]
) -> None:
    expected = set()
    for layer in layers(contract):
        for one, other in pairwise(layer):
            tree.plant(one, f"import {other}")
            expected.add((one, other))
    assert tree.broken("--contract", contract["id"]) == expected


def test_a_module_that_no_layer_names_is_found(tree: Tree) -> None:
    (tree.modules["pgstash"].with_name("extra.py")).write_text('"""A module of no layer."""\n')
    done = tree.run("lint-imports", "--no-cache")
    assert done.returncode == 1
    assert "extra" in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "import os; os.environ",
        "from os import environ",
        "from os import environ as e",
        "import os as o; o.getenv('A')",
    ],
)
def test_only_settings_may_read_the_environment(tree: Tree, line: str) -> None:
    modules = sorted(tree.modules)
    for module in modules:
        tree.plant(module, line)
    done = tree.run(
        "ruff", "check", "--no-cache", "--select", "TID251", "--output-format", "concise"
    )
    found = set(re.findall(r"^(src/\S+?\.py):\d+:\d+: TID251 ", done.stdout, re.MULTILINE))
    paths = {str(path.relative_to(tree.root)) for path in tree.modules.values()}
    assert found == {path for path in paths if not path.startswith("src/pgstash/settings/")}
