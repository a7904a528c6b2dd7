"""Makes a set of backups whose bytes are kept for ever: see the README of this folder.

    .venv/bin/python tests/vectors/make.py NAME

The set must be new. One that was committed is never made again: a later pgstash has to read what an
earlier one wrote, and not what it would write itself.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pyrage.x25519 import Identity

VECTORS = Path(__file__).parent
sys.path.insert(0, str(VECTORS.parent))

from support.backups import PASSPHRASE  # noqa: E402 - the tests' folder was not known before
from support.cli import environment, run_pgstash  # noqa: E402 - as above
from support.postgres import Cluster, clean_environment  # noqa: E402 - as above

if TYPE_CHECKING:
    from collections.abc import Mapping

    from support.postgres import Database

ENCRYPTION_ROUNDS = 10_000  # openssl's own
MAJOR = 14  # an archive restores to servers from that of its pg_dump on

KEY = {"BACKUP_ENCRYPTION_KEY": PASSPHRASE}
# Of nobody: it reads the backups for recipients in these sets.
IDENTITY = "AGE-SECRET-KEY-12L38M42SZX0W9WW4QEAG893W99LHTWH9PH6SM22DP3VRWZDVAP6SW58TQY"
READING: Mapping[str, Mapping[str, str]] = {
    "plain": {},
    "encrypted": KEY,
    "recipients": {"BACKUP_DECRYPTION_IDENTITY": IDENTITY},
}
ROUNDS = 20_000
PREFIXES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "1": {
        "plain": {},
        "encrypted": {"BACKUP_ENCRYPTION": "true", **KEY},
    },
    "2": {
        "encrypted": {
            "BACKUP_ENCRYPTION": "true",
            "BACKUP_ENCRYPTION_ITERATIONS": str(ROUNDS),
            **KEY,
        },
        "recipients": {
            "BACKUP_ENCRYPTION": "true",
            "BACKUP_ENCRYPTION_RECIPIENTS": str(Identity.from_str(IDENTITY).to_public()),
            **READING["recipients"],
        },
    },
}
SUMS = "SHA256SUMS"
SHELL = "shell"
SHELL_SCRIPT = r"""
pg_dump --no-owner --no-acl --clean --if-exists -d "$DATABASE" |
    gzip > backup_20200102_030405.sql.gz
openssl enc -aes-256-cbc -salt -pbkdf2 -pass env:KEY -in backup_20200102_030405.sql.gz \
    -out backup_20210102_030405.sql.gz.enc
"""


def main() -> None:
    """Make it."""
    [name] = sys.argv[1:]
    folder = VECTORS / name
    folder.mkdir()
    prefixes = PREFIXES[name.partition(".")[0]]
    with Cluster(MAJOR) as cluster:
        source = cluster.create_database("vectors")
        cluster.maintenance.run_sql("CREATE ROLE vectors_reader; CREATE ROLE vectors_other")
        cluster.maintenance.run_sql("ALTER DATABASE vectors SET DateStyle = 'ISO, DMY'")
        source.run_sql(VECTORS / "source.sql")
        for prefix, settings in prefixes.items():
            for jobs in (1, 2):
                back_up(source, folder, BACKUP_PREFIX=prefix, DUMP_JOBS=str(jobs), **settings)
        if "plain" in prefixes:
            back_up_by_the_shell(source, folder / SHELL)
        for script in ("source.sql", "contents.sql"):
            (folder / script).write_bytes((VECTORS / script).read_bytes())
        (folder / "contents.txt").write_text(source.run_sql(folder / "contents.sql"))
    expected = {prefix: described(folder, prefix) for prefix in prefixes}
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (folder / "expected.json").write_text(text + "\n")
    (folder / ".pgstash.lock").unlink()
    sums = "".join(f"{digest}  {path}\n" for path, digest in digests(folder).items())
    (folder / SUMS).write_text(sums)


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a set, but for the list of them, by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {str(each.relative_to(folder)): each.read_bytes() for each in files}
    found.pop(SUMS, None)
    return {path: hashlib.sha256(data).hexdigest() for path, data in found.items()}


def run(arguments: list[str], folder: Path, *tools: Path, **settings: str) -> str:
    """Run pgstash on the set, and return what it printed."""
    env = environment(*tools, STORAGE_URL=folder.absolute().as_uri(), **settings)
    done = run_pgstash(arguments, env)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout


def back_up(source: Database, folder: Path, **settings: str) -> None:
    """Make one backup, and prove it."""
    run(["once"], folder, source.bin_dir, DATABASE_URL=source.uri, **settings)
    url = source.cluster.maintenance.uri
    run(["drill"], folder, source.bin_dir, VERIFY_DATABASE_URL=url, **settings)


def back_up_by_the_shell(source: Database, folder: Path) -> None:
    """Make backups as the earlier shell service did: without a manifest, with metadata or none."""
    folder.mkdir()
    env = clean_environment(source.bin_dir) | {"DATABASE": source.conninfo, "KEY": PASSPHRASE}
    command = ["bash", "-euo", "pipefail", "-c", SHELL_SCRIPT]
    subprocess.run(command, cwd=folder, env=env, check=True)
    metadata = {"timestamp": "2020-01-02T03:04:05Z", "database": source.name}
    sidecar = folder / ".backup_20200102_030405.sql.gz.metadata.json"
    sidecar.write_text(json.dumps(metadata))


def described(folder: Path, prefix: str) -> dict[str, object]:
    """Return what the commands say of the backups under a prefix."""
    settings = {"BACKUP_PREFIX": prefix, **READING[prefix]}
    listed = json.loads(run(["list", "--json"], folder, **settings))
    shown = {}
    scripts = {}
    for each in listed:
        name = each["name"]
        shown[name] = json.loads(run(["show", name, "--json"], folder, **settings))
        data = (folder / prefix / name).read_bytes()
        if name.endswith(".enc"):
            command = ["openssl", "enc", "-d", "-aes-256-cbc", "-pbkdf2", "-pass", "env:KEY"]
            rounds = shown[name]["encryption"]["rounds"]
            command += [] if rounds == ENCRYPTION_ROUNDS else ["-iter", str(rounds)]
            env = clean_environment() | {"KEY": passphrase_of(folder / prefix, name)}
            data = subprocess.run(
                command, env=env, input=data, stdout=subprocess.PIPE, check=True
            ).stdout
        scripts[name] = hashlib.sha256(gzip.decompress(data)).hexdigest()
    return {"list": listed, "show": shown, "script_sha256": scripts}


def passphrase_of(folder: Path, archive: str) -> str:
    """Return the passphrase of a backup, unwrapped by ``age`` if it is wrapped."""
    for wrapped in folder.glob(f"{archive.partition('.')[0]}.*.key.age"):
        command = ["age", "-d", "-i", "-", str(wrapped)]
        text = subprocess.run(command, input=IDENTITY.encode(), stdout=subprocess.PIPE, check=True)
        return text.stdout.decode().splitlines()[0]
    return PASSPHRASE


if __name__ == "__main__":
    main()
