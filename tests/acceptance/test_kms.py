"""Backups for keys of AWS KMS, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from acceptance.test_documents import BLOCK, RECIPE
from acceptance.test_recipients import KEY as PASSPHRASE
from support.age_keys import opened_by_age, person
from support.backups import PREFIX
from support.cli import environment, run_pgstash
from support.compare import compare
from support.kms import ALIAS, FAR, IDENTITY, KEY, OTHER, Kms, Refusal
from support.postgres import Cluster, Database, MakeDatabase, clean_environment

ANN = person("ann")

# What the printed pages need of the command of AWS, with its options; boto3 does the rest.
AWS = f"""#!{sys.executable}
import argparse, base64, boto3, pathlib, sys
assert sys.argv[1:3] == ["kms", "decrypt"]
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("region", "ciphertext-blob", "encryption-context", "query", "output"):
    parser.add_argument(f"--{{name}}", required=True)
given = parser.parse_args(sys.argv[3:])
assert (given.query, given.output) == ("Plaintext", "text")
blob = pathlib.Path(given.ciphertext_blob.removeprefix("fileb://")).read_bytes()
context = dict([given.encryption_context.split("=")])
client = boto3.client("kms", region_name=given.region)
answer = client.decrypt(CiphertextBlob=blob, EncryptionContext=context)
print(base64.b64encode(answer["Plaintext"]).decode())
"""


@dataclass(frozen=True)
class Scene:
    """A source with one backup for two keys of KMS, in a folder."""

    source: Database
    folder: Path
    service: Kms
    output: str

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment of a host that may use KMS, and knows no secret key."""
        given = {"STORAGE_URL": self.folder.as_uri(), **self.service.variables, **more}
        return environment(self.source.bin_dir, HOME=str(self.folder), **given)

    def writing(self, folder: Path, **more: str) -> dict[str, str]:
        given = {
            "DATABASE_URL": self.source.uri,
            "BACKUP_ENCRYPTION": "true",
            "BACKUP_ENCRYPTION_RECIPIENTS": f"{ALIAS},{FAR}",
            "RETRY_ATTEMPTS": "0",
        }
        return self.env(**given) | {"STORAGE_URL": folder.as_uri()} | more

    @property
    def key(self) -> Path:
        [path] = (self.folder / PREFIX).glob("backup_*.key.kms")
        return path

    @property
    def archive(self) -> Path:
        return self.key.with_name(f"{self.key.name.partition('.')[0]}.sql.gz.enc")


@pytest.fixture(scope="module")
def scene(newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("kms")
    source = newest_cluster.load_sample("mixed", "for_kms")
    source.run_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO pg_monitor")
    with Kms() as service:
        made = Scene(source, folder, service, "")
        done = run_pgstash(["once"], made.writing(folder, DEBUG="true"))
        assert done.returncode == 0, done.stdout + done.stderr
        yield Scene(source, folder, service, done.stdout + done.stderr)
    source.drop()


@pytest.fixture(autouse=True)
def _as_it_was(scene: Scene) -> Iterator[None]:
    yield
    scene.service.reset()


def aws_on_path(folder: Path) -> Path:
    """Write the command of AWS into a folder."""
    folder.mkdir()
    command = folder / "aws"
    command.write_text(AWS)
    command.chmod(0o755)
    return folder


def test_the_passphrase_is_nowhere_but_wrapped(scene: Scene) -> None:
    assert not PASSPHRASE.search(scene.output)
    assert "cGdzdGFzaC1rZXkt" not in scene.output  # the same in Base64
    assert IDENTITY["AWS_SECRET_ACCESS_KEY"] not in scene.output
    found = json.loads(scene.key.read_text())
    backup_id = scene.key.name.split(".")[1]
    assert found["context"] == {"pgstash-backup": backup_id}
    assert [each["recipient"] for each in found["keys"]] == [ALIAS, FAR]
    assert [each["key"] for each in found["keys"]] == [KEY, FAR]
    sidecar = scene.archive.with_name(f".{scene.archive.name}.metadata.json")
    metadata = json.loads(sidecar.read_text())
    assert (metadata["key-wrap"], metadata["format"], metadata["reader"]) == ("kms", "2", "0.3.0")


def test_it_is_restored_by_kms_alone(scene: Scene, make_database: MakeDatabase) -> None:
    target = make_database()
    done = run_pgstash(["restore", "--to", target.uri], scene.env())
    assert done.returncode == 0, done.stdout + done.stderr
    assert compare(scene.source.conninfo, target.conninfo, bin_dir=scene.source.bin_dir) == []


@pytest.mark.parametrize("command", [["show"], ["cat"]], ids=lambda each: each[0])
def test_who_may_not_use_the_keys_reads_nothing(scene: Scene, command: list[str]) -> None:
    scene.service.refusals = [Refusal(400, "AccessDeniedException", "Decrypt")]
    done = run_pgstash(command, scene.env())
    assert done.returncode == 30, done.stdout + done.stderr
    assert "none of 2 keys opens" in done.stderr
    assert "kms:Decrypt" in done.stderr
    assert done.stdout == ""
    nobody = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    done = run_pgstash(command, scene.env(**nobody))
    assert done.returncode == 30, done.stdout + done.stderr
    assert "no credentials of AWS were found" in done.stderr


def test_what_show_prints_opens_the_passphrase(scene: Scene, tmp_path: Path) -> None:
    done = run_pgstash(["show"], scene.env())
    assert done.returncode == 0, done.stderr
    lines = [line.partition(" ") for line in done.stdout.splitlines()]
    assert [rest.strip() for word, _, rest in lines if word == "kms"] == [
        f"key     {KEY}",
        f"key     {FAR}",
    ]
    commands = [rest.removeprefix("hand").strip() for word, _, rest in lines if word == "by"]
    text = run_shell(scene, "\n".join(commands), tmp_path)
    assert PASSPHRASE.fullmatch(text)


def run_shell(scene: Scene, script: str, tmp_path: Path, **more: str) -> str:
    path = f"{aws_on_path(tmp_path / 'bin')}:{clean_environment(scene.source.bin_dir)['PATH']}"
    for name in (scene.key.name, *(each.name for each in scene.folder.glob(f"{PREFIX}/*"))):
        link = tmp_path / name
        if not link.exists():
            link.symlink_to(scene.folder / PREFIX / name)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=scene.env(**more) | {"PATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_printed_page_restores(
    scene: Scene, make_database: MakeDatabase, tmp_path: Path
) -> None:
    target = make_database()
    base = scene.key.name.partition(".")[0]
    blocks = [
        block.replace("backup_20260131_020000", base)
        for kind, block in BLOCK.findall(RECIPE.read_text())
        if kind in ("names", "kms", "encrypted", "privileges-encrypted")
    ]
    assert len(blocks) == 5
    run_shell(scene, "\n".join(blocks), tmp_path, TARGET=target.conninfo)
    assert compare(scene.source.conninfo, target.conninfo, bin_dir=scene.source.bin_dir) == []


@pytest.mark.parametrize("refusal", ["AccessDeniedException", "DisabledException"])
def test_a_key_that_does_not_wrap_fails_before_the_dump(
    scene: Scene, tmp_path: Path, refusal: str
) -> None:
    scene.service.refusals = [Refusal(400, refusal, arn=FAR)]
    done = run_pgstash(["once"], scene.writing(tmp_path))
    assert done.returncode == 30, done.stdout + done.stderr
    assert f"cannot encrypt the passphrase of a backup with {FAR}" in done.stderr
    assert "Creating database dump" not in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_check_tries_each_key(scene: Scene, tmp_path: Path) -> None:
    env = scene.writing(tmp_path)
    done = run_pgstash(["check"], env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{ALIAS} encrypts" in done.stdout
    assert f"{FAR} encrypts" in done.stdout
    scene.service.refusals = [Refusal(400, "KMSInvalidStateException", arn=FAR)]
    done = run_pgstash(["check"], env)
    assert done.returncode == 40, done.stdout + done.stderr
    assert "the state of the key does not allow it" in done.stdout
    assert not list(tmp_path.rglob("*.key.kms"))


def listed(scene: Scene, folder: Path) -> Any:
    done = run_pgstash(["keys", "list", "--json"], scene.env() | {"STORAGE_URL": folder.as_uri()})
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    return found["recipients"], found["recipient_count"]


def test_recipients_are_changed_by_kms(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", scene.folder, folder], check=True)
    env = scene.env() | {"STORAGE_URL": folder.as_uri()}

    def keys(*arguments: str, status: int = 0, **more: str) -> str:
        done = run_pgstash(["keys", *arguments], env | more)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    assert listed(scene, folder) == ([ALIAS, FAR], 2)
    assert f"{OTHER} was added to the recipients" in keys("add", OTHER)
    assert "1 had it already" in keys("add", OTHER)
    keys("remove", ALIAS)
    keys("remove", FAR)
    assert "nobody could read it any more" in keys("remove", OTHER, status=30)
    keys("add", ANN.recipient)
    assert listed(scene, folder) == ([ANN.recipient[:20], OTHER], 2)
    [wrapped] = folder.rglob("backup_*.key.age")
    assert PASSPHRASE.match(opened_by_age(wrapped, ANN.file(tmp_path)))
    assert "there is no identity" in keys("remove", OTHER, status=30)
    keys("remove", OTHER, BACKUP_DECRYPTION_IDENTITY=ANN.identity)
    assert list(folder.rglob("*.key.kms")) == []
    scene.service.arns = ()
    done = run_pgstash(["cat"], env | {"BACKUP_DECRYPTION_IDENTITY": ANN.identity})
    assert done.returncode == 0, done.stderr
    assert "PostgreSQL database dump complete" in done.stdout


def test_an_alias_that_leads_to_another_key_by_now(scene: Scene, tmp_path: Path) -> None:
    """The user is about to delete the key that it led to before."""
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", scene.folder, folder], check=True)
    env = scene.env() | {"STORAGE_URL": folder.as_uri()}
    done = run_pgstash(["keys", "add", ALIAS], env)
    assert "1 had it already" in done.stdout + done.stderr
    scene.service.aliases = {ALIAS: OTHER}
    done = run_pgstash(["keys", "add", ALIAS], env)
    assert f"{ALIAS} was added to the recipients" in done.stdout + done.stderr
    assert listed(scene, folder) == ([FAR, KEY, ALIAS], 3)
    [wrapped] = folder.rglob("*.key.kms")
    assert json.loads(wrapped.read_text())["keys"][-1]["key"] == OTHER
    scene.service.arns = (OTHER,)
    done = run_pgstash(["cat"], env)
    assert done.returncode == 0, done.stderr
    done = run_pgstash(["keys", "remove", KEY], env)
    assert done.returncode == 0, done.stderr
    done = run_pgstash(["keys", "add", ALIAS], env)
    assert "1 had it already" in done.stdout + done.stderr


def test_a_drill_where_kms_may_be_used(scene: Scene, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", scene.folder, folder], check=True)
    maintenance = scene.source.cluster.maintenance.uri
    env = scene.env(VERIFY_DATABASE_URL=maintenance) | {"STORAGE_URL": folder.as_uri()}
    scene.service.refusals = [Refusal(400, "DisabledException", arn=KEY)]  # the other one opens it
    done = run_pgstash(["drill"], env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(folder.rglob("backup_*.proof_*"))) == 1
    scene.service.refusals = [Refusal(400, "KMSInvalidStateException")]
    done = run_pgstash(["drill"], env)
    assert done.returncode == 30, done.stdout + done.stderr
    assert "aws kms cancel-key-deletion" in done.stderr


def test_pruning_removes_the_wrapped_passphrase_of_a_failed_backup(
    scene: Scene, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    subprocess.run(["cp", "-a", scene.folder, folder], check=True)
    [key] = folder.rglob("backup_*.key.kms")
    left = key.with_name(key.name.replace(key.name[:22], "backup_20260101_020000"))
    key.rename(left)
    sidecar = key.with_name(f".{key.name}.metadata.json")
    sidecar.rename(sidecar.with_name(f".{left.name}.metadata.json"))
    old = left.stat().st_mtime - 3 * 86400
    os.utime(left, (old, old))
    env = scene.writing(folder, BACKUP_RETENTION_DAYS="7")
    done = run_pgstash(["prune"], env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not left.exists()


def test_the_policy_names_the_keys(scene: Scene) -> None:
    env = scene.writing(scene.folder) | {"STORAGE_URL": "", "S3_BUCKET": "b", "S3_REGION": "r-1"}
    for role, action in (("writer", "kms:Encrypt"), ("reader", "kms:Decrypt")):
        done = run_pgstash(["policy", role], env)
        assert done.returncode == 0, done.stderr
        found = [
            each for each in json.loads(done.stdout)["Statement"] if each["Action"] == [action]
        ]
        assert [each["Resource"] for each in found] == [KEY.rpartition("/")[0] + "/*", FAR]
