"""The command at a shell: short help, completion, how fast it starts, and its man pages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.cli import COMMAND, environment, run_pgstash

REPOSITORY = Path(__file__).resolve().parents[2]

# Three quarters of the time of a start. What only shows a text, or completes a line, needs none.
OF_THE_SETTINGS = {
    "pgstash.settings",
    "asyncio",
    "botocore",
    "cryptography",
    "psycopg",
    "pydantic",
    "rich",
    "tenacity",
    "urllib3",
}


@pytest.mark.parametrize("command", [[], ["restore"], ["keys"], ["keys", "list"]])
def test_short_help(command: list[str]) -> None:
    short = run_pgstash([*command, "-h"], environment())
    long = run_pgstash([*command, "--help"], environment())
    assert short.returncode == 0
    assert short.stdout.startswith(" ".join(["Usage: pgstash", *command]))
    assert (short.stdout, short.stderr) == (long.stdout, long.stderr)


def completed(line: str, **variables: str) -> list[str]:
    """Return what bash offers at the end of this line."""
    words = line.split(" ")
    # As an installed file of completion does: complete calls the function with the command.
    script = (
        f'source <(env _PGSTASH_COMPLETE=source_bash "{COMMAND}")\n'
        f"COMP_WORDS=({line})\n"
        f"COMP_CWORD={len(words) - 1}\n"
        f'_pgstash_completion "{COMMAND}"\n'
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment(**variables),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("pgstash rec", ["recover"]),
        ("pgstash restore --cr", ["--create", "--create-roles"]),
        ("pgstash --version drill --js", ["--json"]),
        ("pgstash --config /nowhere.toml keys rem", ["remove"]),
    ],
)
def test_bash_completes(line: str, offered: list[str]) -> None:
    assert completed(line) == offered


def test_completion_reads_no_settings() -> None:
    assert completed("pgstash rec", DATABASE_URL="oracle://somewhere") == ["recover"]


def test_completion_is_installed_and_shown(tmp_path: Path) -> None:
    def by_bash(option: str) -> subprocess.CompletedProcess[str]:
        # A command behind it keeps bash from replacing itself: pgstash asks for its parent's name.
        command = ["bash", "-c", f'"{COMMAND}" {option}; exit $?']
        env = environment(HOME=str(tmp_path))
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True)

    shown = by_bash("--show-completion")
    assert "_PGSTASH_COMPLETE=complete_bash" in shown.stdout
    assert list(tmp_path.iterdir()) == []
    by_bash("--install-completion")
    installed = tmp_path / ".bash_completions" / "pgstash.sh"
    assert installed.read_text().strip() == shown.stdout.strip()
    assert str(installed) in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize(
    ("arguments", "of_typer"),
    [
        (["--version"], set()),
        (["--help"], set()),
        (["restore", "-h"], {"pydantic"}),  # Typer checks the defaults of options with it
    ],
)
def test_a_text_is_shown_without_the_settings(arguments: list[str], of_typer: set[str]) -> None:
    program = (
        f"import sys; sys.argv = {['pgstash', *arguments]!r}\n"
        "from pgstash.cli import main\n"
        "try: main()\n"
        "finally: print('loaded:', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.rpartition("loaded:")[2].split())
    assert "pgstash.cli" in loaded
    assert loaded & OF_THE_SETTINGS <= of_typer


@pytest.mark.skipif(not os.access("/usr/bin/groff", os.X_OK), reason="needs groff")
def test_man_pages_have_no_warnings() -> None:
    pages = sorted((REPOSITORY / "docs" / "reference" / "man").iterdir())
    command = ["groff", "-man", "-Tutf8", "-ww", "-b", "-z", *map(str, pages)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
