"""Compares a whole backup with ``pg_dump -f /dev/null``, the least that one stream can take.

    scripts/setup --postgresql 18 --swift && .venv/bin/python benchmarks/backup.py

The runs alternate, so that whatever else the machine does hits all alike. What counts are the
ratios of the medians. All settings have their defaults, but encryption where it is named.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import databases
from support.cli import COMMAND, environment
from support.postgres import Cluster
from support.swift import SwiftServer


@dataclass
class Runs:
    """What was measured of one command: seconds of wall and of CPU, bytes of memory."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    memory: int = 0

    def add(self, command: list[str], env: dict[str, str]) -> None:
        """Run the command once."""
        started = time.monotonic()
        with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} failed with status {process.returncode}")
        self.wall.append(time.monotonic() - started)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.memory = max(self.memory, usage.ru_maxrss * 1024)


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

    least = statistics.median(runs["pg_dump -f /dev/null"].wall)
    print(f"{'':34}{'wall':>8}{'ratio':>8}{'CPU':>8}{'memory':>10}")
    for name, measured in runs.items():
        wall = statistics.median(measured.wall)
        cpu = statistics.median(measured.cpu)
        mib = measured.memory / 1024 / 1024
        print(f"{name:34}{wall:7.2f}s{wall / least:8.2f}{cpu:7.2f}s{mib:7.0f}MiB")
    for name, measured in runs.items():
        print(f"{name}: {' '.join(f'{wall:.2f}' for wall in measured.wall)}")


if __name__ == "__main__":
    main()
