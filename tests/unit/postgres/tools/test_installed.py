"""The client tools that fit a server are found among many that do not."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pgstash.errors import ClientToolsError
from pgstash.postgres.server.connection import Connection
from pgstash.postgres.tools import installed
from pgstash.postgres.tools.process import Child, Command

# Majors that no machine has, so that what is installed here does not matter.
OLD, MAJOR, NEW, NEWER = 900, 901, 902, 903


def install(folder: Path, answer: str, *, script: str = 'echo "$answer"') -> Path:
    folder.mkdir(parents=True)
    program = folder / "pg_dump"
    program.write_text(f"#!/bin/sh\nanswer='{answer}'\n{script}\n")
    program.chmod(0o755)
    return folder


def version(major: int, rest: str = ".3") -> str:
    return f"pg_dump (PostgreSQL) {major}{rest}"


def search_path(*folders: Path) -> str:
    return os.pathsep.join(map(str, folders))


def test_the_servers_own_major_wins(tmp_path: Path) -> None:
    folders = [install(tmp_path / str(major), version(major)) for major in (NEWER, OLD, MAJOR, NEW)]
    found = installed.find(MAJOR, search_path(*folders))
    assert (found.major, found.version, found.folder) == (MAJOR, f"{MAJOR}.3", folders[2])
    assert found.pg_dump == folders[2] / "pg_dump"


def test_the_next_newer_comes_second(tmp_path: Path) -> None:
    folders = [install(tmp_path / str(major), version(major)) for major in (OLD, NEWER, NEW)]
    assert installed.find(MAJOR, search_path(*folders)).major == NEW


def test_the_first_on_the_path_wins_among_equals(tmp_path: Path) -> None:
    folders = [install(tmp_path / name, version(MAJOR)) for name in ("b", "a")]
    assert installed.find(MAJOR, search_path(*folders)).folder == folders[0]


def test_the_latest_release_of_a_major_wins(tmp_path: Path) -> None:
    releases = ("beta2", ".9", ".10", ".8")
    folders = [install(tmp_path / f"r{rest}", version(MAJOR, rest)) for rest in releases]
    newer = install(tmp_path / "newer", version(NEW, ".11"))
    assert installed.find(MAJOR, search_path(newer, *folders)).version == f"{MAJOR}.10"


def test_none_that_fits(tmp_path: Path) -> None:
    folder = install(tmp_path / "old", version(OLD))
    with pytest.raises(
        ClientToolsError, match=rf"PostgreSQL {MAJOR} .*installed: .*{OLD}\.3"
    ) as caught:
        installed.find(MAJOR, search_path(folder))
    for package in (
        f"postgresql-client-{MAJOR}",
        f"postgresql{MAJOR} ",
        f"postgresql{MAJOR}-client",
    ):
        assert package in caught.value.hint
    assert "apt.postgresql.org" in caught.value.hint
    assert caught.value.exit_code == 12


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (version(MAJOR, ".5 (Debian 17.5-1.pgdg120+1)"), f"{MAJOR}.5"),
        (version(MAJOR, "beta1"), f"{MAJOR}beta1"),
        (version(MAJOR, "devel"), f"{MAJOR}devel"),
    ],
)
def test_versions_as_packages_write_them(tmp_path: Path, answer: str, expected: str) -> None:
    found = installed.find(MAJOR, search_path(install(tmp_path / "x", answer)))
    assert (found.major, found.version) == (MAJOR, expected)


def test_what_cannot_be_used_is_passed_over(tmp_path: Path) -> None:
    wrapper = install(tmp_path / "share", version(MAJOR)) / "pg_dump"
    wrapper.rename(tmp_path / "share" / "pg_wrapper")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pg_dump").symlink_to(tmp_path / "share" / "pg_wrapper")
    locked = install(tmp_path / "not executable", version(MAJOR))
    (locked / "pg_dump").chmod(0o644)
    (tmp_path / "folder" / "pg_dump").mkdir(parents=True)
    bad = [
        tmp_path / "bin",
        locked,
        tmp_path / "folder",
        tmp_path / "missing",
        install(tmp_path / "mute", ""),
        install(tmp_path / "other", "pg_dump (Something else) 901.3"),
        install(tmp_path / "broken", "", script="exit 3"),
        install(tmp_path / "binary", "", script="printf '\\377\\376'"),
    ]
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "pg_dump").write_bytes(b"\x7fELF not for this machine")
    (tmp_path / "alien" / "pg_dump").chmod(0o755)
    path = search_path(*bad, tmp_path / "alien")
    with pytest.raises(ClientToolsError):
        installed.find(MAJOR, path)
    good = install(tmp_path / "good", version(MAJOR))
    assert installed.find(MAJOR, f"{path}::{good}").folder == good


def test_a_folder_that_may_not_be_searched_is_passed_over() -> None:
    """PATH often holds a folder of root's, which others may not even look into."""
    with TemporaryDirectory() as name:  # all may look into it, which they may not into tmp_path
        folder = Path(name)
        folder.chmod(0o755)
        locked = install(folder / "locked" / "bin", version(MAJOR))
        good = install(folder / "good", version(MAJOR))
        (folder / "locked").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # permissions mean nothing to root
        try:
            found = installed.find(MAJOR, search_path(locked, good))
        finally:
            if user == 0:
                os.seteuid(0)
            (folder / "locked").chmod(0o700)
    assert found.folder == good


def test_nothing_installed_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClientToolsError) as caught:
        installed.find(MAJOR, str(tmp_path))
    assert re.search(r"installed: [^)]+\)", str(caught.value))


def test_a_tool_sees_the_allowed_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "a secret")
    script = 'if [ -z "$SECRET" ] && [ "$LC_ALL" = C ]; then echo "$answer$LD_LIBRARY_PATH"; fi'
    folder = install(tmp_path / "x", version(MAJOR), script=script)
    assert installed.find(MAJOR, str(folder)).version == f"{MAJOR}.3"
    given = {"LD_LIBRARY_PATH": "+libraries", "SECRET": "a secret", "LC_ALL": "de_DE"}
    assert installed.find(MAJOR, str(folder), given).version == f"{MAJOR}.3+libraries"


NOWHERE = Connection({"application_name": "pgstash"}, {})


def shell(script: str, *, connection: Connection = NOWHERE) -> Child:
    """Run a script of the shell as if it were a client tool."""
    return Child(Command(["/bin/sh", "-c", script, "sh"], {}), connection, lambda _line: None)


def test_a_group_is_ended_while_its_id_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As soon as nobody waits for a process any more, its id may be given to another."""
    ended = []
    really = os.killpg

    def killpg(group: int, signum: int) -> None:
        os.waitid(os.P_PID, group, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises once reaped
        ended.append(group)
        really(group, signum)

    monkeypatch.setattr(os, "killpg", killpg)
    with shell("exit 3") as child:
        assert list(child.read(10, silent_seconds=10, silent=lambda: None)) == []
        assert child.wait() == 3
        assert ended
        before = len(ended)
    assert len(ended) == before


def test_a_group_that_is_not_ours_to_end_harms_no_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    def killpg(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "killpg", killpg)
    with shell("echo whole") as child:
        assert list(child.read(10, silent_seconds=10, silent=lambda: None)) == [b"whole\n"]
        assert child.wait() == 0


def test_a_start_that_fails_halfway_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_thread: threading.Thread) -> None:
        while not (tmp_path / "pid").exists():
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(KeyboardInterrupt):
        shell(f"echo $$ > {tmp_path}/new && mv {tmp_path}/new {tmp_path}/pid; sleep 60")
    pid = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("at", range(4096 - 40, 4096, 3))
def test_half_a_secret_is_not_told(at: int) -> None:
    secret = "two words/and%more"
    told = "x" * 17 + " "
    script = f'printf "%s" "{told}"; head -c {at - len(told)} /dev/zero | tr "\\0" " "; '
    script += f"printf '%s and so on, {'y ' * 2000}' '{secret}'"
    connection = Connection(NOWHERE.parameters, {"password": secret})
    with shell(f"{{ {script}; }} >&2", connection=connection) as child:
        list(child.read(10, silent_seconds=10, silent=lambda: None))
        child.wait()
        [line] = child.last_lines
    assert line.startswith(told.strip())
    rest = line.replace(secret, "").removeprefix(told).removesuffix(" ...").split()
    assert set(rest) <= {"and", "so", "on,", "y"}
