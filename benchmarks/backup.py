"""Compares a whole backup with ``pg_dump -f /dev/null``, the least that one stream can take.

    scripts/setup --postgresql 18 --swift && .venv/bin/python benchmarks/backup.py

The runs alternate, so that whatever else the machine does hits all alike. What counts are the
ratios of the medians. All settings have their defaults, but encryption where it is named.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from runs import Runs, report
from support import databases
from support.cli import COMMAND, environment
from support.postgres import Cluster
from support.swift import SwiftServer


@contextlib.contextmanager
def counting_sink() -> Iterator[str]:
    """Run the sink as a process of its own, and yield its endpoint."""
    command = [sys.executable, str(Path(__file__).with_name("counting_sink.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise AssertionError("a pipe was asked for")
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="1 is a dump of about 950 MB")
    arguments = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(18, settings={"shared_buffers": "512MB", "autovacuum": "off"}) as cluster,
        SwiftServer(Path(folder) / "swift") as swift,
        counting_sink() as sink,
    ):
        database = cluster.create_database("big")
        database.run_sql(databases.big(arguments.scale))
        encryption = {"BACKUP_ENCRYPTION": "true", "BACKUP_ENCRYPTION_KEY": "k" * 32}
        stores = {
            "pgstash to a counting sink": (sink, {}),
            "  the same, encrypted": (sink, encryption),
            "pgstash to Swift on this machine": (swift.endpoint, {}),
            "  the same, encrypted ": (swift.endpoint, encryption),
        }
        bucket = swift.create_bucket()
        runs = {name: Runs() for name in ("pg_dump -f /dev/null", *stores)}
        for _ in range(arguments.rounds):
            floor = [str(database.bin_dir / "pg_dump"), "-f", "/dev/null", "-d", database.conninfo]
            runs["pg_dump -f /dev/null"].add(floor, environment(database.bin_dir))
            for name, (endpoint, more) in stores.items():
                env = environment(
                    database.bin_dir,
                    DATABASE_URL=database.uri,
                    S3_ENDPOINT=endpoint,
                    S3_BUCKET=bucket,
                    S3_ACCESS_KEY_ID=swift.access_key_id,
                    S3_SECRET_ACCESS_KEY=swift.secret_access_key,
                    **more,
                )
                runs[name].add([str(COMMAND), "once"], env)

    report(runs, "pg_dump -f /dev/null")


if __name__ == "__main__":
    main()
