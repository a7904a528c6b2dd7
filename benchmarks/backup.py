"""Compares a whole backup with ``pg_dump -f /dev/null``, the least that one stream can take.

And with what people write themselves: pg_dump, gzip and openssl by way of a local disk, then
``aws s3 cp`` (left out where there is no ``aws``).

    scripts/setup --postgresql 18 --swift && .venv/bin/python benchmarks/backup.py

The runs alternate, so that whatever else the machine does hits all alike. What counts are the
ratios of the medians. All settings have their defaults, but what is named.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
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

FLOOR = "pg_dump -f /dev/null"
CLASSIC = "pg_dump | gzip -6; openssl; aws"
PIPELINE = """
pg_dump --no-owner --no-acl --clean --if-exists -d "$DATABASE" | gzip -6 > "$FOLDER/dump.gz"
openssl enc -aes-256-cbc -salt -pbkdf2 -pass env:KEY -in "$FOLDER/dump.gz" -out "$FOLDER/dump.enc"
aws --endpoint-url "$ENDPOINT" s3 cp "$FOLDER/dump.enc" "s3://$BUCKET/dump.enc"
rm "$FOLDER/dump.gz" "$FOLDER/dump.enc"
"""


@contextlib.contextmanager
def counting_sink() -> Iterator[str]:
    """Run the sink as a process of its own, and yield its endpoint."""
    command = [sys.executable, str(Path(__file__).with_name("counting_sink.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise AssertionError("a pipe was asked for")
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
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
        one = {"DUMP_JOBS": "1"}
        stores = {
            "pgstash to a counting sink": (sink, {}),
            "  encrypted": (sink, encryption),
            "  encrypted, DUMP_JOBS=1": (sink, encryption | one),
            "pgstash to Swift on this machine": (swift.endpoint, {}),
            "  encrypted ": (swift.endpoint, encryption),
        }
        bucket = swift.create_bucket()
        aws = shutil.which("aws")
        runs = {name: Runs() for name in (FLOOR, *stores, *([CLASSIC] if aws else []))}
        for _ in range(arguments.rounds):
            floor = [str(database.bin_dir / "pg_dump"), "-f", "/dev/null", "-d", database.conninfo]
            runs[FLOOR].add(floor, environment(database.bin_dir))
            if aws:
                env = environment(
                    database.bin_dir,
                    Path(aws).parent,
                    DATABASE=database.conninfo,
                    FOLDER=folder,
                    ENDPOINT=swift.endpoint,
                    BUCKET=bucket,
                    KEY="k" * 32,
                    HOME=folder,
                    AWS_ACCESS_KEY_ID=swift.access_key_id,
                    AWS_SECRET_ACCESS_KEY=swift.secret_access_key,
                    AWS_DEFAULT_REGION="us-east-1",
                )
                runs[CLASSIC].add(["/bin/bash", "-euo", "pipefail", "-c", PIPELINE], env)
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

    report(runs, FLOOR)


if __name__ == "__main__":
    main()
