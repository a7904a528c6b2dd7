"""The user's own commands around a backup, through the installed command."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from faults.scene import (
    NAME,
    Folder,
    Scene,
    assert_failed,
    assert_nothing_left,
    complete_archives,
    wait_until,
)
from support.backups import PASSPHRASE, stored
from support.hooks import Receiver, receiving
from support.postgres import PASSWORD
from support.tiers import later

if TYPE_CHECKING:
    from support.postgres import Cluster, Clusters, MakeDatabase

SECONDS_TO_END = 5.0


@pytest.fixture
def scene(make_database: MakeDatabase, tmp_path: Path) -> Scene:
    root = tmp_path / "storage"
    root.mkdir()
    database = make_database()
    database.run_sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
    return Scene(database, Folder(root, {"STORAGE_URL": root.as_uri()}), database.bin_dir)


def shell(script: str) -> str:
    return shlex.join(["sh", "-c", script])


def told(folder: Path, name: str) -> tuple[str, Path]:
    """Return a hook that writes its environment into a file, and the file."""
    path = folder / name
    script = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    return shlex.join([sys.executable, "-c", script, str(path)]), path


def test_each_is_told_what_it_needs(scene: Scene, tmp_path: Path) -> None:
    names = ("before", "after", "verify")
    commands, files = zip(*(told(tmp_path, name) for name in names), strict=True)
    done = scene.once(
        HOOK_BEFORE_BACKUP=commands[0], HOOK_AFTER_BACKUP=commands[1], HOOK_VERIFY=commands[2]
    )
    assert done.returncode == 0, done.stderr
    [backup] = stored(tmp_path / "storage")
    facts = [
        {key: value for key, value in json.loads(file.read_text()).items() if key[:2] == "PG"}
        for file in files
    ]
    before, after, verify = facts
    source = {"PGSTASH_HOST": "127.0.0.1", "PGSTASH_DATABASE": scene.database.name}
    archive = {
        "PGSTASH_BACKUP": backup.archive.name,
        "PGSTASH_LOCATION": backup.archive.as_uri(),
    }
    assert before == {"PGSTASH_HOOK": "before", **source}
    assert verify == {"PGSTASH_HOOK": "verify", **source, **archive}
    assert re.fullmatch(r"\d+\.\d", after.pop("PGSTASH_SECONDS"))
    assert after == {
        "PGSTASH_HOOK": "after",
        "PGSTASH_STATUS": "success",
        "PGSTASH_EXIT_CODE": "0",
        "PGSTASH_RAW_BYTES": str(backup.manifest["raw_bytes"]),
        "PGSTASH_STORED_BYTES": str(backup.manifest["stored_bytes"]),
        **source,
        **archive,
    }


def test_after_a_failure_it_is_told_that(scene: Scene, tmp_path: Path) -> None:
    command, file = told(tmp_path, "after")
    scene.settings["DATABASE_URL"] = "postgresql://127.0.0.1:1/gone"
    done = scene.once(HOOK_AFTER_BACKUP=command)
    assert_failed(done, 10, nothing_left=scene)
    facts = json.loads(file.read_text())
    assert facts["PGSTASH_STATUS"] == "failure"
    assert facts["PGSTASH_ERROR"] == "DatabaseUnreachableError"
    assert facts["PGSTASH_EXIT_CODE"] == "10"
    assert facts["PGSTASH_DATABASE"] == "gone"
    assert re.fullmatch(NAME, facts["PGSTASH_BACKUP"])


def test_no_secret_is_in_the_environment_of_a_hook(
    clusters: Clusters, newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database(on=clusters.get(newest_cluster.major, "scram-sha-256"))
    root = tmp_path / "storage"
    root.mkdir()
    scene = Scene(database, Folder(root, {"STORAGE_URL": root.as_uri()}), database.bin_dir)
    key_file = tmp_path / "key"
    key_file.write_text(PASSPHRASE)
    names = ("before", "after", "verify")
    commands, files = zip(*(told(tmp_path, name) for name in names), strict=True)
    with receiving(Receiver()) as receiver:
        done = scene.once(
            HOOK_BEFORE_BACKUP=commands[0],
            HOOK_AFTER_BACKUP=commands[1],
            HOOK_VERIFY=commands[2],
            BACKUP_ENCRYPTION="true",
            BACKUP_ENCRYPTION_KEY_FILE=str(key_file),
            S3_ACCESS_KEY_ID="planted-access-key",
            S3_SECRET_ACCESS_KEY="planted-secret-key",
            WEBHOOK_URL=receiver.url("/planted-webhook-token"),
            PGPASSWORD=PASSWORD,
            PGSSLKEY="/somewhere",
            A_COPY=f"postgresql://u:{quote(PASSWORD)}@h/d",
            ANOTHER_COPY="the planted-secret-key of S3",
            AND_THE_PASSPHRASE=PASSPHRASE,
            HARMLESS="stays",
        )
    assert done.returncode == 0, done.stderr
    for file in files:
        seen = json.loads(file.read_text())
        assert seen["HARMLESS"] == "stays"
        assert "PATH" in seen
        hidden = ("DATABASE_URL", "S3_", "WEBHOOK_URL", "BACKUP_ENCRYPTION_KEY", "PGP", "PGSSL")
        assert [name for name in seen if name.startswith(hidden)] == []
        text = json.dumps(seen, ensure_ascii=False)
        for secret in (PASSWORD, PASSPHRASE, "planted-", str(key_file)):
            assert secret not in text
        assert "COPY" not in text
        assert "PASSPHRASE" not in text


def test_nothing_is_begun_when_the_first_hook_fails(scene: Scene, tmp_path: Path) -> None:
    command, file = told(tmp_path, "after")
    # The database would refuse: it is not asked.
    done = scene.once(
        HOOK_BEFORE_BACKUP=shell("echo the lights are out; exit 9"),
        HOOK_AFTER_BACKUP=command,
        DATABASE_URL="postgresql://127.0.0.1:1/gone",
    )
    words = ("HOOK_BEFORE_BACKUP failed with exit status 9", "the lights are out", "by hand")
    assert_failed(done, 50, *words, nothing_left=scene)
    assert "INFO HOOK_BEFORE_BACKUP: the lights are out" in done.stdout
    after = json.loads(file.read_text())
    assert (after["PGSTASH_ERROR"], after["PGSTASH_REPEATED"]) == ("HookError", "false")
    assert "PGSTASH_NEXT_ATTEMPT" not in after  # nothing is planned after `pgstash once`


def test_a_hook_that_takes_too_long(scene: Scene) -> None:
    done = scene.once(HOOK_BEFORE_BACKUP="sleep 3600", HOOK_TIMEOUT="1")
    assert_failed(done, 50, "did not end within 1 s and was stopped", nothing_left=scene)


def test_the_last_hook_fails_and_the_backup_stays(scene: Scene) -> None:
    done = scene.once(HOOK_AFTER_BACKUP=shell("exit 4"))
    assert done.returncode == 0
    assert len(complete_archives(scene.place)) == 1
    assert "WARNING HOOK_AFTER_BACKUP failed with exit status 4" in done.stderr


def test_the_plain_sql_is_verified(scene: Scene, tmp_path: Path) -> None:
    seen = tmp_path / "seen.sql"
    done = scene.once(
        HOOK_VERIFY=shell(f"cat > {shlex.quote(str(seen))}"),
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
    )
    assert done.returncode == 0, done.stderr
    [backup] = stored(tmp_path / "storage")
    assert seen.read_bytes() == backup.script()


@pytest.mark.parametrize("script", ["head -1", "grep -q COPY", "true"])
def test_a_hook_that_has_seen_enough(script: str, scene: Scene) -> None:
    done = scene.once(HOOK_VERIFY=script)
    assert done.returncode == 0, done.stderr
    assert len(complete_archives(scene.place)) == 1


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("cat >/dev/null; echo no users; exit 3", ["exit status 3", "no users"]),
        ("head -c 100 >/dev/null; exit 3", ["exit status 3"]),
        ("sleep 3600", ["did not end within 1 s"]),
        ("cat >/dev/null; sleep 3600", ["did not end within 1 s"]),
    ],
)
def test_what_is_not_verified_is_not_stored(script: str, words: list[str], scene: Scene) -> None:
    done = scene.once(HOOK_VERIFY=shell(script), HOOK_TIMEOUT="1")
    assert_failed(done, 50, "HOOK_VERIFY", *words, nothing_left=scene)


def running(word: str) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().split(b"\0")
            state = (process / "stat").read_text().rpartition(")")[2].split()[0]
            if command[0] == b"sleep" and word.encode() in command and state != "Z":
                return True
    return False


HOOKS = ["HOOK_BEFORE_BACKUP", "HOOK_VERIFY", "HOOK_AFTER_BACKUP"]


@pytest.mark.parametrize("hook", later(HOOKS, "HOOK_VERIFY"))
@pytest.mark.parametrize("stubborn", [False, True], ids=["willing", "stubborn"])
def test_a_signal_ends_the_hook_too(
    hook: str,
    stubborn: bool,  # noqa: FBT001
    scene: Scene,
) -> None:
    nap = f"3600.{time.monotonic_ns()}"
    script = f"{'trap : TERM; ' if stubborn else ''}while :; do sleep {nap}; done"
    with scene.started(**{hook: shell(script)}) as process:
        wait_until(lambda: running(nap), "the hook runs")
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        took = time.monotonic() - sent
    assert process.returncode == -signal.SIGTERM, out + err
    assert took < SECONDS_TO_END
    wait_until(lambda: not running(nap), "the hook has ended")
    if hook == "HOOK_AFTER_BACKUP":
        assert len(complete_archives(scene.place)) == 1
        assert "SUCCESS" in out
        assert "FAILURE" not in err
    else:
        assert_nothing_left(scene)
        assert "interrupted by SIGTERM" in err


def test_a_signal_runs_no_further_hook(scene: Scene, tmp_path: Path) -> None:
    command, file = told(tmp_path, "after")
    nap = f"3600.{time.monotonic_ns()}"
    with scene.started(HOOK_BEFORE_BACKUP=f"sleep {nap}", HOOK_AFTER_BACKUP=command) as process:
        wait_until(lambda: running(nap), "the hook runs")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert not file.exists()


def test_what_a_hook_says_is_scrubbed(scene: Scene) -> None:
    done = scene.once(
        HOOK_BEFORE_BACKUP=shell("echo planted passphrase of thirty-two letters; exit 1"),
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY="planted passphrase of thirty-two letters",
        DEBUG="true",
    )
    assert done.returncode == 50
    assert "planted passphrase" not in done.stdout + done.stderr
    assert "***" in done.stdout


def test_a_hook_that_cannot_be_is_a_problem_of_the_configuration(scene: Scene) -> None:
    done: subprocess.CompletedProcess[str] = scene.once(
        HOOK_BEFORE_BACKUP="no-such-program --now", HOOK_VERIFY="sh -c 'unclosed"
    )
    assert done.returncode == 1
    assert "HOOK_BEFORE_BACKUP names no-such-program, which is not on PATH" in done.stderr
    assert "HOOK_VERIFY lacks a closing quote" in done.stderr
    assert "Backup failed" not in done.stderr
