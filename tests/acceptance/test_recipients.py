"""Backups for recipients: the host that makes them cannot read them, and each recipient can."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from acceptance.test_documents import BLOCK, RECIPE
from acceptance.test_loading import BY_SESSIONS, PLAIN_WAY, WITH_PASSPHRASE, drilled
from pgstash import events
from pgstash.errors import UnverifiedError
from pgstash.format import manifest as manifests
from support.age_keys import Person, opened_by_age, person, ssh_person
from support.backups import PASSPHRASE, PREFIX, settings
from support.cli import environment, run_pgstash
from support.compare import compare
from support.postgres import Cluster, Database, MakeDatabase, clean_environment
from support.tiers import later

ANN, EVE = person("ann"), person("eve")
KEY = re.compile(r"pgstash-key-[0-9a-f]{64}")


@dataclass(frozen=True)
class Scene:
    """A source with backups for Ann and the holder of an SSH key, all in one folder."""

    source: Database
    folder: Path
    ben: Person
    hook: Path
    output: str

    def settings(self, **more: str) -> dict[str, str]:
        return environment(self.source.bin_dir, STORAGE_URL=self.folder.as_uri(), **more)

    @property
    def key(self) -> Path:
        [path] = (self.folder / PREFIX).glob("backup_*.key.age")
        return path

    @property
    def archive(self) -> Path:
        return self.key.with_name(f"{self.key.name.partition('.')[0]}.sql.gz.enc")


def once(env: dict[str, str]) -> str:
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def scene(newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """An older backup with a passphrase, then one for two recipients."""
    folder = tmp_path_factory.mktemp("recipients")
    stored, mine = folder / "stored", folder / "keys"
    stored.mkdir()
    mine.mkdir()
    ben = ssh_person(mine)
    source = newest_cluster.load_sample("mixed", "for_recipients")
    source.run_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO pg_monitor")
    env = environment(source.bin_dir, **settings(source, stored, encrypted=True))
    once(env)
    script = "import json, os, sys; json.dump(dict(os.environ), open(sys.argv[1], 'w'))"
    hook = folder / "hook.json"
    env |= {
        "BACKUP_ENCRYPTION_RECIPIENTS": f"{ANN.recipient}\n{ben.recipient}",
        "HOOK_AFTER_BACKUP": shlex.join([sys.executable, "-c", script, str(hook)]),
        "DEBUG": "true",
    }
    yield Scene(source, stored, ben, hook, once(env))
    source.drop()


def read(scene: Scene, arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return run_pgstash(arguments, scene.settings(**more))


def test_the_passphrase_is_nowhere_but_wrapped(scene: Scene, tmp_path: Path) -> None:
    [passphrase] = KEY.findall(opened_by_age(scene.key, ANN.file(tmp_path)))
    said = scene.output + scene.hook.read_text()
    assert "pgstash-key" not in said
    for path in scene.folder.rglob("*"):
        if path.is_file():
            assert passphrase.encode() not in path.read_bytes()


def test_the_metadata_say_who_can_read_it(scene: Scene) -> None:
    sidecar = scene.key.with_name(f".{scene.key.name}.metadata.json")
    metadata = json.loads(sidecar.read_text())
    assert metadata["recipients"].startswith(f"{ANN.recipient[:20]}, ssh-ed25519:SHA256:")
    assert metadata["recipient-count"] == "2"
    archive = json.loads(
        scene.archive.with_name(f".{scene.archive.name}.metadata.json").read_text()
    )
    assert archive["id"] == metadata["id"]
    assert (archive["format"], archive["reader"]) == ("2", "0.3.0")
    assert archive["key-wrap"] == "age"
    assert "key-id" not in archive


def test_backups_are_listed_and_pruned_without_any_key(scene: Scene) -> None:
    listed = read(scene, ["list", "--json"])
    assert listed.returncode == 0, listed.stderr
    assert [each["encrypted"] for each in json.loads(listed.stdout)] == [True, True]
    pruned = read(scene, ["prune", "--dry-run"])
    assert pruned.returncode == 0, pruned.stderr


@pytest.mark.parametrize("key", ["", PASSPHRASE], ids=["no key", "the host's key"])
@pytest.mark.parametrize("command", [["show"], ["cat"], ["drill"]], ids=lambda each: each[0])
def test_the_host_cannot_read_them(scene: Scene, command: list[str], key: str) -> None:
    done = read(scene, command, BACKUP_ENCRYPTION_KEY=key)
    assert done.returncode == 30, done.stdout + done.stderr
    assert "is encrypted for recipients, and there is no identity to read it with" in done.stderr
    assert "BACKUP_DECRYPTION_IDENTITY" in done.stderr


def test_somebody_else_cannot_read_them(scene: Scene) -> None:
    done = read(scene, ["show"], BACKUP_DECRYPTION_IDENTITY=EVE.identity)
    assert done.returncode == 31, done.stdout + done.stderr
    assert "does not open with the identity" in done.stderr


def test_where_new_backups_have_a_passphrase_these_may_be_planted(scene: Scene) -> None:
    both = {"BACKUP_ENCRYPTION_KEY": PASSPHRASE, "BACKUP_DECRYPTION_IDENTITY": ANN.identity}
    on = both | {"BACKUP_ENCRYPTION": "true"}
    refused = read(scene, ["cat"], **on)
    assert refused.returncode == UnverifiedError.exit_code, refused.stderr
    assert "may have put it there" in refused.stderr
    assert refused.stdout == ""
    for arguments, env in (
        (["cat", "--unverified"], on),
        (["cat"], on | {"BACKUP_ENCRYPTION_RECIPIENTS": ANN.recipient}),
        (["cat"], both),
    ):
        done = read(scene, arguments, **env)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "-- PostgreSQL database dump complete" in done.stdout


def test_the_service_refuses_drills_that_it_could_not_do(scene: Scene) -> None:
    done = read(
        scene,
        ["backup"],
        DATABASE_URL=scene.source.uri,
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_RECIPIENTS=ANN.recipient,
        VERIFY_INTERVAL="after-backup",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "VERIFY_INTERVAL is set, but a drill could not read the backups" in done.stderr


def test_each_recipient_reads_old_and_new_ones(scene: Scene) -> None:
    texts = set()
    for who in (ANN, scene.ben):
        env = {"BACKUP_DECRYPTION_IDENTITY": who.identity, "BACKUP_ENCRYPTION_KEY": PASSPHRASE}
        shown = json.loads(read(scene, ["show", "--json"], **env).stdout)
        assert (shown["format"], shown["reader"]) == (manifests.NEWEST, manifests.NEWEST_READER)
        for archive in (scene.folder / PREFIX).glob("backup_*.sql.gz.enc"):
            if "privileges" not in archive.name:
                done = read(scene, ["cat", archive.name], **env)
                assert done.returncode == 0, done.stderr
                texts.add((archive.name, done.stdout))
    assert len(texts) == 2


def test_a_recipient_restores(scene: Scene, make_database: MakeDatabase) -> None:
    target = make_database()
    done = read(
        scene,
        ["restore", "--to", target.uri],
        BACKUP_DECRYPTION_IDENTITY=scene.ben.identity,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert compare(scene.source.conninfo, target.conninfo, bin_dir=scene.source.bin_dir) == []


@pytest.mark.parametrize(
    "chance", later([PLAIN_WAY, BY_SESSIONS], PLAIN_WAY), ids=["plain way", "by sessions"]
)
def test_a_recipient_drills(
    scene: Scene, newest_cluster: Cluster, tmp_path: Path, chance: int
) -> None:
    said: list[events.Event] = []
    access = replace(WITH_PASSPHRASE, passphrase=None, identity=ANN.identity)
    proof = drilled(scene.folder, newest_cluster, chance, emit=said.append, access=access)
    found = {check.name: check.found for check in proof.checks}
    assert all(check.passed for check in proof.checks)
    assert ("standard tools" in found) == (chance == PLAIN_WAY)
    assert found.get("standard tools", "openssl").startswith("openssl")
    assert not KEY.search(repr(said))
    # The proof is encrypted with the passphrase of the backup.
    *_, stored = sorted((scene.folder / PREFIX).glob("backup_*.proof_*.json.gz.enc"))
    text = run_shell(
        scene,
        f'{PASSPHRASE_OF_KEY}; openssl enc -d -aes-256-cbc -pbkdf2 -pass "env:KEY" -in "$PROOF"'
        " | gunzip",
        IDENTITY=str(ANN.file(tmp_path)),
        PROOF=str(stored),
    )
    assert json.loads(text)["archive"] == scene.archive.name


PASSPHRASE_OF_KEY = 'export KEY="$(age -d -i "$IDENTITY" "$WRAPPED" | head -n 1)"'


def run_shell(scene: Scene, script: str, **env: str) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=clean_environment() | {"WRAPPED": str(scene.key)} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("who", ["ann", "ben"])
def test_the_printed_page_restores_for_each_recipient(
    scene: Scene, who: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """Step by step as printed, by Debian's age, openssl, gunzip and psql."""
    target = make_database()
    identity = ANN.file(tmp_path) if who == "ann" else scene.ben.file(tmp_path)
    if who == "ben":
        identity.write_text(scene.ben.identity)
    base = scene.key.name.partition(".")[0]
    blocks = [
        block.replace("backup_20260131_020000", base).replace("identity.txt", str(identity))
        for kind, block in BLOCK.findall(RECIPE.read_text())
        if kind in ("names", "recipients", "encrypted", "privileges-encrypted")
    ]
    assert len(blocks) == 5
    text = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(blocks)],
        env=clean_environment(target.bin_dir) | {"TARGET": target.conninfo},
        cwd=scene.key.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (text.returncode, text.stderr) == (0, ""), text.stdout
    digests = re.findall(r"\b[0-9a-f]{64}\b", text.stdout)
    assert digests[0] == digests[1]
    assert compare(scene.source.conninfo, target.conninfo, bin_dir=scene.source.bin_dir) == []


def test_check_names_the_recipients(scene: Scene) -> None:
    done = read(
        scene,
        ["check"],
        DATABASE_URL=scene.source.uri,
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_RECIPIENTS=ANN.recipient,
    )
    assert f"for {ANN.recipient[:20]}" in done.stdout, done.stderr
