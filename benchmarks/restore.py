"""Compares a restore from S3 with ``psql -f`` of the same plain dump on local disk.

Into an empty database, in one transaction; and into a new one by two sessions, which is compared
with ``pg_restore --jobs=2`` of a directory dump on local disk too.

    scripts/setup --postgresql 18 --swift && .venv/bin/python benchmarks/restore.py

The runs alternate, so that whatever else the machine does hits all alike. Each fills an empty
database, which is made before the clock starts. What counts are the ratios of the medians. The
memory is that of pgstash and not that of its psql. WAL is written as by default: with
``wal_level=minimal`` a restore in one transaction would be spared what ``psql -f`` writes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from runs import Runs, report
from support import databases
from support.cli import COMMAND, environment, run_pgstash
from support.postgres import Cluster
from support.swift import SwiftServer

FLOOR = "psql -f of a local file"
TOGETHER = ("pgstash restore --create, 2 jobs", "  encrypted ")
DIRECTORY = "pg_restore -j2 of a local folder"
SETTINGS = {"shared_buffers": "512MB", "autovacuum": "off", "wal_level": "replica"}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is a dump of about 950 MB")
    arguments = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(18, settings=SETTINGS) as cluster,
        SwiftServer(Path(folder) / "swift") as swift,
    ):
        source = cluster.create_database("big")
        source.run_sql(databases.big(arguments.scale))
        plain = Path(folder) / "dump.sql"
        source.plain_dump("--no-owner", "--no-acl", f"--file={plain}")
        parts = Path(folder) / "dump.dir"
        source.plain_dump("-Fd", "-j2", "--no-owner", "--no-acl", f"--file={parts}")
        encryption = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_KEY": "k" * 32}
        stores = {
            "pgstash restore": {},
            "  encrypted": encryption,
            "pgstash restore --create, 2 jobs": {},
            "  encrypted ": encryption,
        }
        runs = {name: Runs() for name in (FLOOR, DIRECTORY, *stores)}
        settings = {}
        for name, more in stores.items():
            settings[name] = environment(
                source.bin_dir,
                DATABASE_URL=source.uri,
                S3_ENDPOINT=swift.endpoint,
                S3_BUCKET=swift.create_bucket(),
                S3_ACCESS_KEY_ID=swift.access_key_id,
                S3_SECRET_ACCESS_KEY=swift.secret_access_key,
                **more,
            )
            done = run_pgstash(["once"], settings[name])
            if done.returncode:
                raise SystemExit(done.stderr)
        for number in range(arguments.rounds):
            for name, each in runs.items():
                target = cluster.create_database(f"target_{number}")
                psql = ["-XqAt", "-v", "ON_ERROR_STOP=1", "-f", str(plain), "-d", target.conninfo]
                env = environment(source.bin_dir)
                if name == FLOOR:
                    command = [str(source.bin_dir / "psql"), *psql]
                elif name == DIRECTORY:
                    into = ["--no-owner", "--no-acl", "-j2", "-d", target.conninfo, str(parts)]
                    command = [str(source.bin_dir / "pg_restore"), *into]
                else:
                    command = [str(COMMAND), "restore", "--no-analyze", "--to", target.uri]
                    env = settings[name]
                    if name in TOGETHER:
                        target.drop()
                        command[4:] = [cluster.maintenance.uri, "--create", target.name]
                each.add(command, env)
                target.drop()
                cluster.maintenance.run_sql("CHECKPOINT")
    report(runs, FLOOR)


if __name__ == "__main__":
    main()
