"""Memory does not grow with the database, nor with its rows, and no backup writes to local disk."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pgstash.storage.directory.storage import DirectoryStorage
from support import databases
from support.cli import COMMAND, environment, restore_to
from support.fake_tools import GIB, MIB, install_pg_dump, writes_much
from support.postgres import Database, MakeDatabase
from support.stored import CLOSING, make
from support.swift import SwiftServer
from support.tiers import ENCRYPTED_FIRST

CEILING = 128 * MIB
# It took 123 to 128 MiB when each thread had its own arena of malloc, and takes 105 since.
CEILING_OF_RESTORE = 118 * MIB
CEILING_OF_TWO = 256 * MIB
MORE_FOR_EACH = 64 * MIB


def to_swift(
    database: Database, tools: Path, server: SwiftServer, bucket: str, **more: str
) -> dict[str, str]:
    return environment(
        tools,
        DATABASE_URL=database.uri,
        S3_ENDPOINT=server.endpoint,
        S3_BUCKET=bucket,
        S3_ACCESS_KEY_ID=server.access_key_id,
        S3_SECRET_ACCESS_KEY=server.secret_access_key,
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY="k" * 32,
        **more,
    )


# A small process starts the backup: the kernel counts what its parent held before the exec.
MEASURE = """
import os, sys
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_memory(env: dict[str, str], command: str = "once", *options: str) -> int:
    """Run a command and return the largest resident set of its process, in bytes."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MEASURE, COMMAND, command, *options],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stderr)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1 * GIB // 2, id="500 MB"),
        pytest.param(10 * GIB, id="10 GB", marks=pytest.mark.long),
    ],
)
def test_memory_does_not_grow_with_the_dump(
    size: int,
    make_database: MakeDatabase,
    swift_server: SwiftServer,
    s3_bucket: str,
    tmp_path: Path,
) -> None:
    database = make_database()
    tools = install_pg_dump(tmp_path / "bin", writes_much(size), real=database.bin_dir)
    env = to_swift(database, tools, swift_server, s3_bucket, DUMP_JOBS="1")
    assert peak_memory(env) <= CEILING


def test_memory_does_not_grow_with_a_copy(
    swift_server: SwiftServer, s3_bucket: str, tmp_path: Path
) -> None:
    """The copy is the same for any content: most of this archive is a hole in its file."""
    made = make(CLOSING)
    made.store_as_backup(tmp_path)
    archive = tmp_path / made.key.replace("p/", "postgres-backups/")
    os.truncate(archive, GIB // 4)
    with archive.open("rb") as file:
        facts = {"id": made.manifest.id, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    manifest = made.manifest_key.replace("p/", "postgres-backups/")
    DirectoryStorage(tmp_path).put(manifest, made.packed_manifest(), facts)
    env = environment(
        STORAGE_URL=tmp_path.as_uri(),
        COPY_TO="offsite",
        COPY_OFFSITE_S3_ENDPOINT=swift_server.endpoint,
        COPY_OFFSITE_S3_BUCKET=s3_bucket,
        COPY_OFFSITE_S3_ACCESS_KEY_ID=swift_server.access_key_id,
        COPY_OFFSITE_S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
    )
    assert peak_memory(env, "copy") <= CEILING
    stored = swift_server.client.list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert GIB // 4 in [each["Size"] for each in stored]


# Rows as wide as a member of the archive, and wider; hexadecimal digits get half as small.
WIDE_ROWS = (8 * MIB, 24 * MIB, 48 * MIB)


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
def test_memory_of_a_restore_does_not_grow_with_rows(
    make_database: MakeDatabase, tmp_path: Path, *, encrypted: bool
) -> None:
    rows = b"".join(os.urandom(length // 2).hex().encode() + b"\n" for length in WIDE_ROWS)
    script = b"CREATE TABLE public.a (line text);\n\nCOPY public.a (line) FROM stdin;\n"
    passphrase = "k" * 32 if encrypted else None
    make(
        script + rows + b"\\.\n\n" + CLOSING, passphrase=passphrase, member_bytes=16 * MIB
    ).store_as_backup(tmp_path)
    target = make_database()
    env = environment(
        target.bin_dir,
        STORAGE_URL=tmp_path.as_uri(),
        RESTORE_URL=target.uri,
        BACKUP_ENCRYPTION_KEY="k" * 32,
    )
    assert peak_memory(env, *restore_to(env)) <= CEILING_OF_RESTORE
    lengths = target.run_sql("SELECT length(line) FROM a ORDER BY 1").split()
    assert lengths == [str(length) for length in WIDE_ROWS]


@pytest.mark.long
def test_memory_on_a_real_database_of_1_gb(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    database = make_database()
    database.run_sql(databases.big(1.0))
    env = to_swift(database, database.bin_dir, swift_server, s3_bucket)
    assert peak_memory(env | {"DUMP_JOBS": "1"}) <= CEILING
    assert peak_memory(env) <= CEILING_OF_TWO
    assert peak_memory(env | {"DUMP_JOBS": "4"}) <= CEILING_OF_TWO + 2 * MORE_FOR_EACH
    target = make_database()
    assert peak_memory(env, "restore", "--to", target.uri) <= CEILING
    count = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace > 16383"
    assert target.run_sql(count) == database.run_sql(count)


@pytest.mark.parametrize("jobs", [2, pytest.param(4, marks=pytest.mark.long)])
def test_memory_of_several_sessions_does_not_grow_with_rows(
    jobs: int,
    make_database: MakeDatabase,
    swift_server: SwiftServer,
    s3_bucket: str,
) -> None:
    """Of what no engine shrinks much, in every session at once."""
    database = make_database()
    database.run_sql(
        "CREATE TABLE wide (content text); ALTER TABLE wide ALTER content SET STORAGE EXTERNAL;"
        "INSERT INTO wide SELECT repeat(noise, 200) FROM generate_series(1, 6),"
        " (SELECT string_agg(md5(random()::text), '') AS noise FROM generate_series(1, 4000)) AS _"
    )
    env = to_swift(
        database, database.bin_dir, swift_server, s3_bucket, DUMP_JOBS=str(jobs), S3_PART_SIZE="8"
    )
    assert peak_memory(env) <= CEILING_OF_TWO + (jobs - 2) * MORE_FOR_EACH


def test_not_a_byte_is_written_to_any_file(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str
) -> None:
    """The kernel refuses every write to a file, to pgstash and to all that it starts."""
    database = make_database("mixed")
    env = to_swift(database, database.bin_dir, swift_server, s3_bucket)

    def forbid_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    done = subprocess.run(
        [COMMAND, "once"],
        env=env,
        preexec_fn=forbid_files,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("File too large|File size limit", done.stdout + done.stderr)


def test_the_limit_on_files_works(tmp_path: Path) -> None:
    """Without this the test above could pass for nothing."""
    script = f"echo something > {tmp_path / 'file'}"
    done = subprocess.run(
        ["sh", "-c", f"ulimit -f 0; {script}"], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0


@pytest.mark.long
def test_no_file_is_opened_for_writing(
    make_database: MakeDatabase, swift_server: SwiftServer, s3_bucket: str, tmp_path: Path
) -> None:
    """Seen by strace, so that empty files and files without a name count too."""
    database = make_database("mixed")
    env = to_swift(database, database.bin_dir, swift_server, s3_bucket)
    env["PYTHONDONTWRITEBYTECODE"] = "1"  # the interpreter's cache is not the backup's doing
    trace = tmp_path / "trace"
    calls = "open,openat,openat2,creat,mkdir,mkdirat,memfd_create,rename,renameat2,link,linkat"
    watch = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-o", str(trace)]
    subprocess.run([*watch, str(COMMAND), "once"], env=env, check=True, stdout=subprocess.DEVNULL)
    lines = trace.read_text(errors="replace").splitlines()
    assert len(lines) > 100
    writing = re.compile(r"O_WRONLY|O_RDWR|O_TMPFILE|creat\(|mkdir|memfd|rename|link")
    # psql opens its standard output by name (\g /dev/stdout), which is a pipe to pgstash.
    devices = re.compile(r'"/dev/(null|stdout|tty|pts/|ptmx)')
    offending = [
        line
        for line in lines
        if writing.search(line) and not devices.search(line) and "ENOENT" not in line
    ]
    assert offending == []
