"""The file for an administrator holds all statements, and nothing that a name smuggles in."""

from __future__ import annotations

import resource
import signal
import stat
from typing import TYPE_CHECKING

import pytest

from pgstash import events
from pgstash.postgres.restore.target import Outcome, TargetState
from pgstash.restore import administrator_file
from pgstash.restore.administrator_file import AdministratorFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKUP = "backup_20260131_020000.sql.gz.enc"
URL = "postgresql://admin:hunter2secret@db.example.com:5433/postgres"
SESSION = [b"SET client_encoding = 'UTF8';"]


@pytest.fixture
def emitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[events.Event]:
    monkeypatch.chdir(tmp_path)
    return []


@pytest.fixture
def file(emitted: list[events.Event]) -> AdministratorFile:
    return AdministratorFile(BACKUP, URL, "shop", emitted.append)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """A file cannot be larger than 2,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_statements_are_appended_in_their_order(file: AdministratorFile, tmp_path: Path) -> None:
    said = file.add("create extensions", SESSION, [b"CREATE EXTENSION a;"])
    assert file.add("give owners", SESSION, [b"ALTER\nTABLE t OWNER TO a;"]) == said
    path = tmp_path / "backup_20260131_020000.for_administrator.sql"
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said.endswith(f" psql -X -d postgresql://postgres@db.example.com:5433/shop -f {path}")
    text = path.read_text()
    assert f"psql -X -d postgresql://postgres@db.example.com:5433/shop -f {path.name}\n" in text
    assert "secret" not in text
    assert [line for line in text.splitlines() if not line.startswith("--") and line] == [
        "SET client_encoding = 'UTF8';",
        "CREATE EXTENSION a;",
        "SET client_encoding = 'UTF8';",
        "ALTER",
        "TABLE t OWNER TO a;",
    ]


@pytest.mark.parametrize("name", ["a\n\\! touch forged", "a\r;DROP TABLE t;", "ä\x00\u2028b"])
def test_a_name_does_not_end_a_comment(
    name: str, emitted: list[events.Event], tmp_path: Path
) -> None:
    file = AdministratorFile(f"{name}.sql.gz".replace("\0", ""), URL, name, emitted.append)
    file.add(f"do something to {name}", (), [b"SELECT 1;"])
    [path] = tmp_path.iterdir()
    assert path.read_bytes().isascii()
    lines = [line for line in path.read_text().splitlines() if line]
    assert [line for line in lines if not line.startswith("-- ")] == ["SELECT 1;"]


def test_no_file_is_overwritten(file: AdministratorFile, tmp_path: Path) -> None:
    base = tmp_path / "backup_20260131_020000"
    base.with_suffix(".for_administrator.sql").write_text("kept")
    (tmp_path / "elsewhere").write_text("kept")
    base.with_suffix(".for_administrator_2.sql").symlink_to(tmp_path / "elsewhere")
    assert "for_administrator_3.sql" in file.add("do something", (), [b"SELECT 1;"])
    assert base.with_suffix(".for_administrator.sql").read_text() == "kept"
    assert (tmp_path / "elsewhere").read_text() == "kept"


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_leaves_no_half_statement(
    file: AdministratorFile, emitted: list[events.Event], tmp_path: Path
) -> None:
    many = [b"ALTER TABLE t%d SET (a = E'it''s \\\\ hunter2');" % n for n in range(150)]
    said = file.add("do something", (), many)
    assert said.startswith("The file for an administrator cannot be written (File too large)")
    assert list(tmp_path.iterdir()) == []
    [logged] = emitted
    assert isinstance(logged, events.Informed)
    assert "ALTER TABLE t99 SET (a = '...');\nand 50 more statements" in logged.message
    assert "hunter2" not in logged.message
    file.add("do something", (), many[:1])
    [path] = tmp_path.iterdir()
    before = path.read_bytes()
    file.add("do more", (), many)
    assert path.read_bytes() == before


LOGGED = {
    b"""CREATE USER MAPPING FOR "o'brien" SERVER s OPTIONS (\n    password 'hunter2'\n);""": (
        """CREATE USER MAPPING FOR "o'brien" SERVER s OPTIONS (\n    password '...'\n);"""
    ),
    b"""CREATE FUNCTION "a""$$b"() AS $$ it's "hunter2" $$;""": (
        """CREATE FUNCTION "a""$$b"() AS '...';"""
    ),
    b"CREATE FUNCTION f() AS $_$ $$ hunter2 $$ $_$ SET a TO 'hunter2';": (
        "CREATE FUNCTION f() AS '...' SET a TO '...';"
    ),
}


@pytest.mark.parametrize("statement", LOGGED)
def test_the_log_gets_no_text_in_quotes(
    statement: bytes, file: AdministratorFile, emitted: list[events.Event], tmp_path: Path
) -> None:
    """If no file can be written, because the working directory is gone."""
    tmp_path.rmdir()
    file.add("do something", (), [statement])
    [logged] = emitted
    assert isinstance(logged, events.Informed)
    assert logged.message == f"For an administrator of shop:\n{LOGGED[statement]}"


@pytest.mark.parametrize("outcome", list(Outcome))
def test_it_goes_with_the_database(
    outcome: Outcome, emitted: list[events.Event], tmp_path: Path
) -> None:
    def interrupted() -> None:
        state = TargetState(outcome=outcome)
        with administrator_file.kept(BACKUP, URL, "shop", state, emitted.append) as file:
            file.warn(file.add("do something", (), [b"SELECT 1;"]))
            assert emitted == []
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    there = outcome is not Outcome.NOTHING
    assert len(list(tmp_path.iterdir())) == there
    assert len(emitted) == there


def test_its_warning_comes_at_the_end(emitted: list[events.Event]) -> None:
    with administrator_file.kept(BACKUP, URL, "shop", TargetState(), emitted.append) as file:
        file.warn("planted")
        assert emitted == []
    assert emitted == [events.Warned("planted", to_do=True)]
