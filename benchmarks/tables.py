"""Compares backup and restore of many small tables with what PostgreSQL's own tools take for them.

The tables hold a few rows each, so what is measured is the cost of a table: pg_dump, and pg_restore
of a local folder by two sessions, are the least that it can be. A backup by several sessions has
two pg_dumps, one for what there is and one for the rows, and ``DUMP_JOBS=1`` one.

    scripts/setup --postgresql 18 --swift && .venv/bin/python benchmarks/tables.py

The runs alternate, so that whatever else the machine does hits all alike. What counts are the
ratios of the medians.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from runs import Runs, report
from support.cli import COMMAND, environment, run_pgstash
from support.postgres import Cluster
from support.swift import SwiftServer

DUMP = "pg_dump -f /dev/null"
BACKUPS = {"pgstash once": {}, "  DUMP_JOBS=1": {"DUMP_JOBS": "1"}}
RESTORE = "pg_restore -j2 of a local folder"
AGAIN = "pgstash restore --create"
TABLES = """
    DO $$ BEGIN FOR n IN 1..{} LOOP
        EXECUTE format('CREATE TABLE t%s (id serial PRIMARY KEY, name text, at timestamptz)', n);
        EXECUTE format('INSERT INTO t%s (name, at) SELECT ''row '' || g, now()
                        FROM generate_series(1, 10) g', n);
        IF n % 100 = 0 THEN COMMIT; END IF;
    END LOOP; END $$
"""


def main() -> None:
    """Measure, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tables", type=int, default=3000)
    arguments = parser.parse_args()

    with (
        tempfile.TemporaryDirectory() as folder,
        Cluster(18, settings={"max_locks_per_transaction": "512"}) as cluster,
        SwiftServer(Path(folder) / "swift") as swift,
    ):
        source = cluster.create_database("many")
        source.run_sql(TABLES.format(arguments.tables))
        source.run_sql("VACUUM ANALYZE")
        parts = Path(folder) / "dump.dir"
        source.plain_dump("-Fd", "--no-owner", "--no-acl", f"--file={parts}")
        tools = environment(source.bin_dir)
        settings = environment(
            source.bin_dir,
            DATABASE_URL=source.uri,
            S3_ENDPOINT=swift.endpoint,
            S3_BUCKET=swift.create_bucket(),
            S3_ACCESS_KEY_ID=swift.access_key_id,
            S3_SECRET_ACCESS_KEY=swift.secret_access_key,
            RESTORE_URL=cluster.maintenance.uri,
        )
        # To be restored: by several sessions, whatever the last of the measured ones is.
        restored = settings | {"BACKUP_PREFIX": "restored"}
        if (done := run_pgstash(["once"], restored)).returncode:
            raise SystemExit(done.stderr)
        backups = {name: Runs() for name in (DUMP, *BACKUPS)}
        restores = {name: Runs() for name in (RESTORE, AGAIN)}
        for number in range(arguments.rounds):
            pg_dump = [str(source.bin_dir / "pg_dump"), "-f", "/dev/null", "-d", source.conninfo]
            backups[DUMP].add(pg_dump, tools)
            for name, more in BACKUPS.items():
                backups[name].add([str(COMMAND), "once"], settings | more)
            target = cluster.create_database(f"target_{number}")
            own = ["--no-owner", "--no-acl", "-j2", "-d", target.conninfo, str(parts)]
            restores[RESTORE].add([str(source.bin_dir / "pg_restore"), *own], tools)
            target.drop()
            restores[AGAIN].add(
                [str(COMMAND), "restore", "--no-analyze", "--create", target.name], restored
            )
            target.drop()
            cluster.maintenance.run_sql("CHECKPOINT")
    report(backups, DUMP)
    report(restores, RESTORE)


if __name__ == "__main__":
    main()
