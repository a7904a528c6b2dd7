"""The demo: back up a sample database, restore it without pgstash, compare every row."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests"))

from support import databases  # noqa: E402 - the tests' own servers and sample databases
from support.cli import COMMAND, environment  # noqa: E402
from support.compare import compare, read_contents  # noqa: E402
from support.postgres import Cluster, Database, bin_dir  # noqa: E402

MAJOR = 18
KEY = secrets.token_hex(32)
SHOP_SCALE = 0.05  # about 50 MB as a plain dump


def show(text: str) -> None:
    """Print at once, before what a child process prints."""
    print(text, flush=True)


def show_and_run(command: str, env: dict[str, str]) -> None:
    """Print a shell command and run it; a failure of any of its parts is a failure."""
    show("   $ " + command.replace("\n", "\n   "))
    subprocess.run(["bash", "-o", "pipefail", "-c", command], env=env, check=True)


def make_source(cluster: Cluster) -> Database:
    """Create a shop with a history, and the hard cases of the tests."""
    source = cluster.create_database("shop")
    source.run_sql(databases.big(SHOP_SCALE))
    # The hard cases, too: every type, large objects, text that looks like a dump.
    for sample in ("mixed", "large_objects", "nasty_text"):
        schema = f"CREATE SCHEMA {sample}; SET search_path = {sample};\n"
        source.run_sql(schema.encode() + databases.path(sample).read_bytes())
    return source


def back_up(source: Database, folder: Path) -> Path:
    """Run pgstash as a user would; return the archive."""
    settings = {
        "DATABASE_URL": source.uri,
        "STORAGE_URL": folder.as_uri(),
        "BACKUP_PREFIX": "demo",
        "BACKUP_ENCRYPTION": "true",
        "BACKUP_ENCRYPTION_KEY": KEY,
    }
    for name, value in settings.items():
        show(f"   $ export {name}={shlex.quote(value)}")
    show("   $ pgstash once")
    env = environment(bin_dir(MAJOR), **settings)
    subprocess.run([COMMAND, "once"], env=env, cwd=folder, check=True)
    (archive,) = (folder / "demo").glob("backup_????????_??????.sql.gz.enc")
    return archive


def restore(archive: Path, target: Database) -> None:
    """Restore with standard tools alone."""
    env = environment(
        bin_dir(MAJOR), BACKUP_ENCRYPTION_KEY=KEY, PGOPTIONS="-c client_min_messages=warning"
    )
    show_and_run(
        "openssl enc -d -aes-256-cbc -pbkdf2 -pass env:BACKUP_ENCRYPTION_KEY \\\n"
        f"     -in {shlex.quote(str(archive))} |\n"
        "     gunzip |\n"
        f"     psql -X -q -v ON_ERROR_STOP=1 -d {shlex.quote(target.uri)} >/dev/null",
        env,
    )


def main() -> int:
    """Run the demo; return the exit status."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pgstash-demo-") as name, Cluster(MAJOR) as cluster:
        show(f"1. A throwaway PostgreSQL {MAJOR} with a sample database: {cluster.folder}")
        source = make_source(cluster)
        before = read_contents(source.conninfo)
        show(f"   {len(before.tables)} tables, {before.rows:,} rows")

        show("\n2. An encrypted backup into a directory")
        archive = back_up(source, Path(name))
        show(f"   {archive.name}: {archive.stat().st_size:,} bytes")

        show("\n3. Back again, without pgstash: openssl, gunzip and psql into an empty database")
        target = cluster.create_database("restored")
        restore(archive, target)

        show("\n4. Every table, row, sequence, large object and definition of both, compared")
        differences = compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir)
    for difference in differences:
        show(f"   {difference}")
    if differences:
        show(f"\nDIFFERENT: {len(differences)} differences, listed above")
        return 1
    took = time.monotonic() - began
    show(f"\nOK: {len(before.tables)} tables, {before.rows:,} rows identical ({took:.0f} seconds)")
    return 0


def stop(signum: int, _: object) -> None:
    """Leave through the ``with`` blocks above, which clean up."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    os.chdir(REPOSITORY)
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        command = error.cmd if isinstance(error.cmd, str) else Path(error.cmd[0]).name
        sys.exit(f"FAILED: {command} ended with status {error.returncode}")
