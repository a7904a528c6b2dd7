"""The commands of the runbooks bring back what the pages promise."""

from __future__ import annotations

import gzip
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from support.backups import PASSPHRASE, back_up
from support.cli import COMMAND
from support.compare import compare
from support.postgres import REPOSITORY, Cluster, Database, MakeDatabase, clean_environment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOW_TO = REPOSITORY / "docs" / "how-to"
BLOCK = re.compile(r"<!-- test: ([\w ]+) -->\n```sh\n(.*?)```", re.DOTALL)

CREATE = """
CREATE SCHEMA billing;
CREATE TABLE billing.customers (id int PRIMARY KEY);
CREATE TABLE billing.invoices (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer int NOT NULL REFERENCES billing.customers,
    amount numeric NOT NULL CHECK (amount > 0),
    details json
);
CREATE TABLE billing.payments (invoice int REFERENCES billing.invoices);
CREATE INDEX ON billing.invoices (customer);
INSERT INTO billing.customers SELECT generate_series(1, 10);
INSERT INTO billing.invoices (customer, amount, details)
    SELECT 1 + i % 10, i, '{"a": 1}' FROM generate_series(1, 100) AS i;
INSERT INTO billing.payments SELECT generate_series(1, 50);
"""
ROWS = "SELECT id, customer, amount, details::text FROM billing.invoices ORDER BY id"
# Keys, checks and indexes of the table, and the keys of others that point to it.
PARTS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE 'billing.invoices'::regclass IN (conrelid, confrelid)
UNION ALL SELECT indexrelid::regclass::text, '', pg_get_indexdef(indexrelid) FROM pg_index
    WHERE indrelid = 'billing.invoices'::regclass
ORDER BY 1, 2, 3
"""


@pytest.fixture
def source(newest_cluster: Cluster, make_database: MakeDatabase) -> Database:
    database = make_database(on=newest_cluster)
    database.run_sql(CREATE)
    return database


def blocks_of(page: str) -> dict[str, str]:
    """Return the commands of a page by the names of their blocks."""
    return dict(BLOCK.findall((HOW_TO / page).read_text()))


def follow(wanted: list[str], database: Database, folder: Path) -> Iterator[str]:
    """Run these blocks of the page as they are printed there; yield the output of each."""
    environment = clean_environment(COMMAND.parent, database.bin_dir) | {
        "STORAGE_URL": folder.as_uri(),
        "BACKUP_ENCRYPTION": "true",
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
        "RESTORE_URL": database.uri,
    }
    blocks = blocks_of("a-table-is-gone.md")
    for name in wanted:
        done = subprocess.run(
            ["bash", "-e", "-c", blocks[name]],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (name, done.stdout, done.stderr)
        yield done.stdout


def test_a_table_that_was_dropped(source: Database, tmp_path: Path) -> None:
    before = source.run_sql(ROWS), source.run_sql(PARTS)
    back_up(source, tmp_path, encrypted=True)
    source.run_sql("DROP TABLE billing.invoices CASCADE")
    chosen, _ = follow(["choose", "dropped"], source, tmp_path)
    assert "billing.invoices" in chosen
    assert (source.run_sql(ROWS), source.run_sql(PARTS)) == before
    assert source.run_sql("SELECT count(*) FROM billing.payments") == "50\n"


def test_a_table_that_was_damaged(source: Database, tmp_path: Path) -> None:
    before = source.run_sql(ROWS)
    parts = source.run_sql(PARTS)
    back_up(source, tmp_path, encrypted=True)
    source.run_sql(
        "DELETE FROM billing.invoices WHERE id > 90;"
        " UPDATE billing.invoices SET amount = 1 WHERE id BETWEEN 11 AND 15;"
        " INSERT INTO billing.invoices (customer, amount) VALUES (1, 7)"
    )
    _, compared, _, _ = follow(["copy", "compare", "put back", "clean up"], source, tmp_path)
    assert re.search(r"^ +10 \| +1 \| +5$", compared, re.MULTILINE), compared
    assert source.run_sql(ROWS) == f"{before}101|1|7|\n"
    assert source.run_sql(PARTS) == parts
    assert source.run_sql("SELECT to_regclass('billing.invoices_restored') IS NULL") == "t\n"


@pytest.fixture
def moving(newest_cluster: Cluster, make_database: MakeDatabase) -> Iterator[Database]:
    yield make_database("mixed", on=newest_cluster)
    newest_cluster.drop_database("shop_old")


def restore_file(on: Cluster, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of the page for a file of another tool, without any setting of a store."""
    return subprocess.run(
        ["bash", "-e", "-c", blocks_of("move-to-pgstash.md")["plain file"]],
        env=clean_environment(COMMAND.parent, on.bin_dir) | {"RESTORE_URL": on.maintenance.uri},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kind", ["plain", "gzip"])
def test_a_plain_dump_of_pg_dump(moving: Database, tmp_path: Path, kind: str) -> None:
    dump = moving.plain_dump()
    (tmp_path / "shop.sql.gz").write_bytes(gzip.compress(dump, 1) if kind == "gzip" else dump)
    done = restore_file(moving.cluster, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    target = Database(moving.cluster, "shop_old")
    assert compare(moving.conninfo, target.conninfo, bin_dir=moving.bin_dir) == []


@pytest.mark.parametrize(("form", "status"), [("custom", "31"), ("tar", "31"), ("directory", "24")])
def test_other_formats_are_refused(
    moving: Database, tmp_path: Path, form: str, status: str
) -> None:
    file = tmp_path / "shop.sql.gz"
    subprocess.run(
        [moving.bin_dir / "pg_dump", f"--format={form}", "-d", moving.conninfo, "-f", file],
        env=clean_environment(),
        check=True,
    )
    done = restore_file(moving.cluster, tmp_path)
    assert str(done.returncode) == status, done.stdout + done.stderr
    assert "nothing was changed in the target" in done.stderr
    found = "SELECT count(*) FROM pg_database WHERE datname LIKE 'shop_old%'"
    assert moving.cluster.maintenance.run_sql(found) == "0\n"
    [row] = re.findall(
        rf"(?m)^\| [^|]*\(`-F{form[0]}`.*$", (HOW_TO / "move-to-pgstash.md").read_text()
    )
    assert f"| {status} |" in row


def test_a_dump_of_a_whole_server_is_refused(moving: Database, tmp_path: Path) -> None:
    with (tmp_path / "shop.sql.gz").open("wb") as file:
        subprocess.run(
            [
                moving.bin_dir / "pg_dumpall",
                "--schema-only",
                "-d",
                moving.cluster.maintenance.conninfo,
            ],
            env=clean_environment(),
            stdout=file,
            check=True,
        )
    done = restore_file(moving.cluster, tmp_path)
    assert done.returncode == 31, done.stdout + done.stderr
    assert "it is the output of pg_dumpall" in done.stderr
