"""Which backups a recovery takes, and what it reports of each database."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pgstash import events, settings
from pgstash.commands import recovery_results as results
from pgstash.commands.recovery_choice import Chosen, Unusable, Wish, choose
from pgstash.commands.storage import open_storage
from pgstash.format.folders import folder_of
from pgstash.postgres.restore.present import Present
from pgstash.postgres.server import marks
from pgstash.processes.children import Ended
from pgstash.repository.catalog import Backup
from pgstash.settings import databases
from support.postgres import REPOSITORY
from vectors.make import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

VECTORS = REPOSITORY / "tests" / "vectors"
STARTED = datetime(2026, 1, 31, 2, tzinfo=UTC)
NAME = "backup_20260131_020000.sql.gz"
CHOSEN = Chosen(
    "shop",
    "shop",
    Backup(NAME, f"p/shop/{NAME}", STARTED, 7, ()),
    rows=5,
    source_bytes=9,
    is_empty=False,
    has_settings=False,
    roles=None,
)
ALL = Wish()
NOTHING: Mapping[str, str] = {}


def place(folder: Path, where: str, kind: str = "1.3/plain") -> None:
    shutil.copytree(VECTORS / kind, folder / "p" / where, dirs_exist_ok=True)


def chosen(
    folder: Path, wish: Wish = ALL, environ: Mapping[str, str] = NOTHING
) -> dict[str, Chosen | Unusable]:
    values = settings.load(
        {"STORAGE_URL": folder.as_uri(), "BACKUP_PREFIX": "p", **environ},
        Path("/none"),
        needs=["storage"],
        only_reads=True,
    )
    found = choose(values, open_storage(values, events.ignore), wish, events.ignore)
    return {each.database: each for each in found}


def test_one_backup_of_each_database(tmp_path: Path) -> None:
    place(tmp_path, "shop")
    place(tmp_path, folder_of("Ü b"), "2.1/encrypted")
    place(tmp_path, "x/y")  # not of a database
    found = chosen(tmp_path, environ=KEY)
    assert [*found] == ["shop", "Ü b"]
    shop, other = found["shop"], found["Ü b"]
    assert isinstance(shop, Chosen)
    assert isinstance(other, Chosen)
    assert (shop.job, other.job) == ("shop", "Ü b")
    assert other.backup.name == "backup_20261130_123311.sql.gz.enc"
    assert shop.rows > 0
    assert shop.roles
    assert not shop.is_empty

    at = chosen(tmp_path, Wish(at=datetime(2026, 11, 30, 12, 33, 10, tzinfo=UTC)), environ=KEY)[
        "Ü b"
    ]
    assert isinstance(at, Chosen)
    assert at.backup.name == "backup_20261130_123308.sql.gz.enc"

    only = chosen(tmp_path, Wish(only=databases.parse("s*,gone")), environ=KEY)
    assert isinstance(only["shop"], Chosen)
    assert only["gone"] == Unusable("gone", "it has no backup", only["gone"].hint, 25)  # type: ignore[union-attr]

    without = chosen(tmp_path)
    assert isinstance(without["shop"], Chosen)
    assert isinstance(without["Ü b"], Unusable)
    assert "BACKUP_ENCRYPTION_KEY" in without["Ü b"].message + without["Ü b"].hint


def test_a_drill_estimates_the_time(tmp_path: Path) -> None:
    """A restore takes as long as that of the last drill, in proportion to the size."""
    place(tmp_path, "shop", "2.1/encrypted")
    found = chosen(tmp_path, Wish(estimates=True), environ=KEY)["shop"]
    assert isinstance(found, Chosen)
    proofs = (tmp_path / "p/shop").glob(".backup_20261130_123311.*.proof_*.metadata.json")
    [seconds] = [float(json.loads(each.read_text())["restore-seconds"]) for each in proofs]
    assert found.estimate == seconds
    for each in (tmp_path / "p/shop").glob("*123311*proof*"):
        each.unlink()
    [older] = (tmp_path / "p/shop").glob(".backup_20261130_123308.*.proof_*.metadata.json")
    older.write_text(older.read_text().replace('"restore-seconds": "', '"restore-seconds": "9'))
    found = chosen(tmp_path, Wish(estimates=True), environ=KEY)["shop"]
    assert isinstance(found, Chosen)
    smaller = (tmp_path / "p/shop/backup_20261130_123308.sql.gz.enc").stat().st_size
    seconds = float(json.loads(older.read_text())["restore-seconds"])
    assert found.estimate == seconds * found.backup.size / smaller
    assert chosen(tmp_path, environ=KEY)["shop"] != found


def test_backups_directly_under_the_prefix(tmp_path: Path) -> None:
    """They are of one more database; with DATABASES, from before it was set."""
    place(tmp_path, "")
    [name] = chosen(tmp_path)
    alone = chosen(tmp_path)[name]
    assert isinstance(alone, Chosen)
    assert alone.job is None
    place(tmp_path, "shop")
    assert {*chosen(tmp_path)} == {name, "shop"}
    old = chosen(tmp_path, environ={"DATABASES": "*"})[name]
    assert isinstance(old, Unusable)
    assert "unset DATABASES" in old.hint
    assert [*chosen(tmp_path, Wish(only=databases.parse("shop")))] == ["shop"]
    place(tmp_path, folder_of(name), "1.3/plain")
    same = chosen(tmp_path)[name]
    assert isinstance(same, Chosen)
    assert same.job == name


def test_newer_backups_directly_under_the_prefix_are_not_left_for_older_ones(
    tmp_path: Path,
) -> None:
    place(tmp_path, "vectors", "1.3/encrypted")
    place(tmp_path, "", "2.1/encrypted")
    found = chosen(tmp_path, environ={**KEY, "DATABASES": "*"})["vectors"]
    assert isinstance(found, Unusable)
    assert "newest backups are directly under p" in found.message
    newest = chosen(tmp_path, environ=KEY)["vectors"]
    assert isinstance(newest, Chosen)
    assert newest.job is None


def test_a_folder_with_backups_of_no_database_is_reported(tmp_path: Path) -> None:
    place(tmp_path, "vectors")
    place(tmp_path, "Shop")
    place(tmp_path, "a=00b")
    found = chosen(tmp_path)
    assert isinstance(found["vectors"], Chosen)
    for folder in ("Shop", "a=00b"):
        other = found[folder]
        assert isinstance(other, Unusable)
        assert f"BACKUP_PREFIX=p/{folder}" in other.hint
    assert [*chosen(tmp_path, Wish(only=databases.parse("!Shop,!a=*")))] == ["vectors"]


def test_backups_of_a_database_of_another_name_are_reported(tmp_path: Path) -> None:
    place(tmp_path, "shop")
    place(tmp_path, "vectors")
    found = chosen(tmp_path)
    assert isinstance(found["shop"], Chosen)
    assert "a database called vectors" in found["shop"].notes[0]
    assert results.of(found["shop"], "restored", to_do=["d"]).to_do == [*found["shop"].notes, "d"]
    assert isinstance(found["vectors"], Chosen)
    assert found["vectors"].notes == ()


def test_a_database_that_has_moved_comes_back_from_its_last_server(tmp_path: Path) -> None:
    place(tmp_path, "vectors", "1.3/encrypted")
    place(tmp_path, "vectors", "2.1/encrypted")
    found = chosen(tmp_path, environ=KEY)["vectors"]
    assert isinstance(found, Chosen), found
    assert found.backup.name == "backup_20261130_123311.sql.gz.enc"
    at = datetime(2026, 11, 30, 12, 33, tzinfo=UTC)
    before = chosen(tmp_path, Wish(at=at), environ=KEY)["vectors"]
    assert isinstance(before, Chosen), before
    assert before.system != found.system

    # Two servers that were backed up at the same time: one may be for tests.
    assert before.system
    assert found.system
    other = tmp_path / "other"
    place(other, "vectors", "1.3/encrypted")
    place(other, "vectors", "2.1/encrypted")
    last = other / "p/vectors/.backup_20261130_123311.sql.gz.enc.metadata.json"
    last.write_text(last.read_text().replace(found.system, before.system))
    unclear = chosen(other, environ=KEY)["vectors"]
    assert isinstance(unclear, Unusable)
    assert unclear.exit_code == 27
    assert "DATABASES='*' pgstash restore latest --job vectors --source SOURCE" in unclear.hint


def test_a_newer_backup_of_another_source_is_reported(tmp_path: Path) -> None:
    """The settings name a server that the database has left since."""
    place(tmp_path, "vectors", "1.3/encrypted")
    place(tmp_path, "vectors", "2.1/encrypted")
    stale = json.loads(
        next((tmp_path / "p/vectors").glob(".*20261129*.enc.metadata.json")).read_text()
    )
    source = f"postgresql://{stale['host']}:{stale['port']}/postgres"
    found = chosen(tmp_path, environ={**KEY, "DATABASE_URL": source, "DATABASES": "*"})["vectors"]
    assert isinstance(found, Chosen), found
    assert found.backup.name.startswith("backup_20261129")
    assert "backup_20261130_123311.sql.gz.enc is newer" in found.notes[0]


PRESENT = Present({"postgres": None, "template1": None}, [], 40)


@pytest.mark.parametrize(
    ("changes", "there", "any_time", "state", "words"),
    [
        ({}, {}, True, None, ""),
        ({}, {"shop": None}, True, "failed", "no recovery has made"),
        ({}, {"shop": NAME}, True, "there", ""),
        ({}, {"shop": NAME}, False, "there", ""),
        ({}, {"shop": "backup_other.sql.gz"}, True, "there", ""),
        ({}, {"shop": "backup_other.sql.gz"}, False, "failed", "--at asks for"),
        ({}, {"running": "shop_pgstash_01234567"}, True, "failed", "is running"),
        ({}, {"running": "shopping_pgstash_01234567"}, True, None, ""),
        ({"source": "ab"}, {"shop": f"{NAME} ab"}, True, "there", ""),
        ({"source": "ab"}, {"shop": NAME}, True, "there", ""),
        ({"source": "cd"}, {"shop": f"{NAME} ab"}, True, "failed", "of another server"),
        ({"source": "cd"}, {"shop": f"{NAME} ab"}, False, "failed", "of another server"),
        ({"source": "cd", "system": "7"}, {"shop": f"{NAME} ab"}, True, "there", ""),
        ({"source": "cd", "system": "7"}, {"shop": None}, True, "failed", "the target itself"),
        ({"source": "ab"}, {"shop": f"{NAME} ab refused"}, True, "incomplete", "lacks owners"),
        ({}, {"shop": f"{NAME} refused"}, False, "incomplete", "lacks owners"),
        ({"database": "postgres"}, {}, True, None, ""),
        ({"database": "postgres", "is_empty": True}, {}, True, "empty", ""),
        ({"database": "postgres"}, {"postgres": NAME}, True, "there", ""),
    ],
)
def test_what_needs_no_restore(
    changes: dict[str, Any],
    there: dict[str, str | None],
    any_time: bool,  # noqa: FBT001 - a parameter of the test
    state: str | None,
    words: str,
) -> None:
    running = [name for name in [there.get("running")] if name]
    databases_ = {
        name: marks.read(mark) if mark else None
        for name, mark in there.items()
        if name != "running"
    }
    present = Present({**PRESENT.databases, **databases_}, running, 40, "7")
    found = results.settled(replace(CHOSEN, **changes), present, any_time=any_time)
    assert (found.state if found else None) == state
    assert words in (found.message if found else "")
    if state == "failed" and found:
        assert found.exit_code == 61
        assert found.hint


def test_an_older_backup_is_not_passed_off_as_the_newest() -> None:
    """A backup was made after the database was restored: the report has the time of the older."""
    older = "backup_20251231_230000.sql.gz"
    present = replace(PRESENT, databases={"shop": marks.Mark(older)})
    found = results.settled(CHOSEN, present, any_time=True)
    assert found
    assert (found.backup, found.started) == (older, datetime(2025, 12, 31, 23, tzinfo=UTC))
    assert (found.stored_bytes, found.rows) == (None, None)
    assert NAME in found.to_do[0]
    own = replace(CHOSEN, system="7"), replace(present, system="7")
    alive = results.settled(*own, any_time=True)
    assert alive
    assert (alive.state, alive.to_do) == ("there", [])


def test_what_the_target_refused_is_missing_until_somebody_has_given_it() -> None:
    mark = marks.read(marks.refused(f"{NAME} ab"))
    found = results.incomplete(results.of(CHOSEN, "restored"), mark)
    assert not results.Report([found], []).is_whole
    assert f"SET application_name TO 'pgstash restored {NAME} ab'" in found.hint
    assert found.exit_code == 56


def test_settings_of_the_maintenance_database_are_reported() -> None:
    kept = replace(CHOSEN, database="postgres", is_empty=True, has_settings=True)
    found = results.settled(kept, PRESENT, any_time=True)
    assert found
    assert "are not restored" in found.warnings[0]


def ended(status: int, output: object = "", *lines: str) -> Ended[str]:
    text = output if isinstance(output, str) else json.dumps(output)
    return Ended("shop", status, None, output=text, last_lines=lines, seconds=3.0)


def test_the_outcome_of_a_restore() -> None:
    facts = {"seconds": 1.5, "warnings": ["w"], "to_do": ["d"]}
    good = results.after(ended(0, facts), CHOSEN, dry_run=False)
    assert (good.state, good.seconds, good.warnings, good.to_do) == ("restored", 1.5, ["w"], ["d"])
    planned = results.after(ended(0, facts), replace(CHOSEN, estimate=60.0), dry_run=True)
    assert (planned.state, planned.seconds) == ("planned", 60.0)
    facts = {"message": "no", "hint": "do", "target": "nothing was changed", "exit_code": 62}
    failed = results.after(ended(62, facts), CHOSEN, dry_run=False)
    assert (failed.state, failed.message, failed.hint, failed.exit_code) == (
        "failed",
        "no (nothing was changed)",
        "do",
        62,
    )
    # Without an outcome: the settings are wrong, or it was killed.
    wrong = results.after(ended(1, "", "a", "b"), CHOSEN, dry_run=False)
    assert (wrong.message, wrong.exit_code) == ("a\nb", 1)
    killed = results.after(ended(-9), CHOSEN, dry_run=False)
    assert (killed.message, killed.exit_code) == ("its restore was ended by signal 9", 70)
    assert results.after(ended(3, "[]"), CHOSEN, dry_run=False).message == "its restore failed"


def test_each_result_is_logged() -> None:
    seen: list[events.Event] = []
    for state in ("restored", "there", "failed"):
        results.report(results.of(CHOSEN, state, message="why", warnings=["w"]), seen.append)
    said = [each.message for each in seen if isinstance(each, events.Warned | events.Informed)]
    assert said[0].startswith(f"shop is restored from {NAME}")
    assert said.count("shop: w") == 3
    assert "shop is not restored: why" in said
