"""Single tables come back with all that is theirs, and little more is fetched for them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from faults.scene import archives_in
from support import backups, pieces
from support.backups import PASSPHRASE, PREFIX, StoredBackup
from support.cli import environment, restore_to, run_pgstash
from support.postgres import Cluster, Database, temporary_database
from support.proxy import TcpProxy
from support.swift import SwiftServer
from support.tiers import ENCRYPTED_FIRST

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

pytestmark = pytest.mark.newest_first

# A name that a shell, psql, a list of pg_restore or a pattern could take for something else.
ODD = "Odd \"one\".with\nlines; and 'quotes' \\ ü*"
PATTERN = '"' + ODD.replace('"', '""') + '"'

SHOP = f"""
    CREATE SCHEMA extra;
    CREATE FUNCTION stamped() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.note := NEW.note || ''!''; RETURN NEW; END';
    CREATE TABLE customers (id int PRIMARY KEY, name text);
    CREATE TABLE orders (id serial PRIMARY KEY, customer int REFERENCES customers,
                         note text CONSTRAINT said CHECK (note <> ''));
    CREATE INDEX orders_by_note ON orders (note) WHERE customer > 3;
    COMMENT ON INDEX orders_by_note IS 'a comment';
    CREATE TRIGGER stamp BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION stamped();
    CREATE TABLE books (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, title text UNIQUE,
                        writer int CONSTRAINT by_customer REFERENCES customers);
    CREATE TABLE extra.bills (order_id int REFERENCES public.orders, book_id int,
                              CONSTRAINT of_book FOREIGN KEY (book_id) REFERENCES public.books);
    CREATE VIEW named AS SELECT name, note FROM customers JOIN orders ON customer = customers.id;
    CREATE TABLE events (id int, at int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (1) TO (2);
    CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (2) TO (3) PARTITION BY LIST (id);
    CREATE TABLE events_rest PARTITION OF events_2 DEFAULT;
    CREATE INDEX events_by_id ON events (id);
    CREATE TABLE {PATTERN} (id int PRIMARY KEY, "Up" text);
    CREATE TABLE odd (id int);
    CREATE TABLE hollow (id int PRIMARY KEY);

    INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 300) n;
    INSERT INTO orders (customer, note)
        SELECT n % 300 + 1, repeat('note ' || n, 5) FROM generate_series(1, 3000) n;
    INSERT INTO books (title, writer) SELECT 'title ' || n, n FROM generate_series(1, 200) n;
    INSERT INTO extra.bills SELECT n, n FROM generate_series(1, 100) n;
    INSERT INTO events SELECT n, 1 + n % 2 FROM generate_series(1, 1000) n;
    INSERT INTO {PATTERN} SELECT n, 'row ' || n FROM generate_series(1, 50) n;
    INSERT INTO odd VALUES (1);
"""


@dataclass(frozen=True)
class Shop:
    """A database, and its backup in one folder for each way to store it."""

    source: Database
    folders: Mapping[bool, Path]
    by_one: Path

    def restore(
        self, target: Database, *arguments: str, encrypted: bool = False, **more: str
    ) -> subprocess.CompletedProcess[str]:
        return restore(self.folders[encrypted], target, *arguments, **more)


def restore(
    folder: Path, target: Database, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    given = {
        "STORAGE_URL": folder.as_uri(),
        "RESTORE_URL": target.uri,
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
    }
    env = environment(target.bin_dir, **(given | more))
    return run_pgstash(restore_to(env, *arguments), env)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Cluster], Shop]]:
    """Of the plain one all tables are read in pieces, of the encrypted one pg_dump reads all."""
    shops: dict[int, Shop] = {}
    with ExitStack() as stack:

        def on(cluster: Cluster) -> Shop:
            if cluster.major in shops:
                return shops[cluster.major]
            source = stack.enter_context(temporary_database(cluster))
            source.run_sql(SHOP)
            plain, encrypted, by_one = (tmp_path_factory.mktemp("shop") for _ in range(3))
            pieces.back_up(source, plain)
            backups.back_up(source, encrypted, encrypted=True)
            backups.back_up(source, by_one, DUMP_JOBS="1")
            shops[cluster.major] = Shop(source, {False: plain, True: encrypted}, by_one)
            return shops[cluster.major]

        yield on


@pytest.fixture
def each_shop(opened: Callable[[Cluster], Shop], cluster: Cluster) -> Shop:
    """On each major."""
    return opened(cluster)


@pytest.fixture
def shop(opened: Callable[[Cluster], Shop], newest_cluster: Cluster) -> Shop:
    """On the newest major alone."""
    return opened(newest_cluster)


@pytest.fixture
def new_database(cluster: Cluster) -> Iterator[Database]:
    """A name that nobody has, dropped afterwards."""
    made = Database(cluster, "one table of it")
    yield made
    cluster.drop_database(made.name)


def assert_failed(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """The restore failed with this status, changed nothing, and says these words and a hint."""
    assert done.returncode == status, done.stdout + done.stderr
    message = re.search(r"FAILURE Restore failed after [\d.]+s, and (.+)", done.stderr, re.DOTALL)
    assert message, done.stderr
    assert message[1].startswith("nothing was changed in the target: "), done.stderr
    assert [word for word in words if word not in message[1]] == [], done.stderr
    assert "\n  " in message[1]
    assert "SUCCESS" not in done.stdout
    assert "Traceback" not in done.stderr


def assert_restored(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "SUCCESS Restore completed successfully in " in done.stdout


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def counts(database: Database) -> dict[str, int]:
    """Return how many rows each table has; of a partitioned one its partitions tell."""
    with database.connect() as session:
        tables = session.execute(
            "SELECT nspname, relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE relkind = 'r' AND nspname IN ('public', 'extra')"
        ).fetchall()
        found = {}
        for schema, name in tables:
            statement = f"SELECT count(*) FROM {quoted(schema)}.{quoted(name)}"
            row = session.execute(statement.encode()).fetchone()
            found[name] = row[0] if row else -1
    return found


def belongings(database: Database, *tables: str) -> set[tuple[str, str]]:
    """Return indexes, constraints, triggers and comments of tables, as the server words them."""
    with database.connect() as session:
        session.execute("SET search_path = ''")
        rows = session.execute(
            "WITH wanted AS (SELECT oid FROM pg_class WHERE relname = ANY (%s))"
            "SELECT 'index', pg_get_indexdef(indexrelid)"
            "  || coalesce(obj_description(indexrelid, 'pg_class'), '')"
            "  FROM pg_index WHERE indrelid IN (SELECT oid FROM wanted) "
            "UNION ALL SELECT conname, pg_get_constraintdef(oid)"
            "  FROM pg_constraint WHERE conrelid IN (SELECT oid FROM wanted) AND contype <> 'n' "
            "UNION ALL SELECT tgname, pg_get_triggerdef(oid)"
            "  FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM wanted) AND NOT tgisinternal",
            [list(tables)],
        ).fetchall()
    return {(name, text) for name, text in rows}


def ordered(database: Database, table: str) -> str:
    return database.run_sql(f"SELECT * FROM {table} ORDER BY 1, 2")


def held(database: Database) -> str:
    return database.run_sql(
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    )


both = pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])


@pytest.mark.parametrize("encrypted", ENCRYPTED_FIRST)
def test_into_a_new_database(each_shop: Shop, new_database: Database, *, encrypted: bool) -> None:
    arguments = ["--create", new_database.name, "--table", "orders", "--table", "b*"]
    maintenance = new_database.cluster.maintenance
    done = each_shop.restore(maintenance, *arguments, encrypted=encrypted, DEBUG="true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS Restore completed successfully in " in done.stdout
    wanted = {"orders", "books", "bills"}
    before = counts(each_shop.source)
    assert counts(new_database) == {name: before[name] * (name in wanted) for name in before}
    for table in ("orders", "books", "extra.bills"):
        assert ordered(new_database, table) == ordered(each_shop.source, table)

    left = {"orders_customer_fkey", "by_customer"}
    expected = belongings(each_shop.source, *wanted)
    assert belongings(new_database, *wanted) == {each for each in expected if each[0] not in left}
    assert left < {name for name, _ in expected}
    [said] = re.findall(r"WARNING Skipped, because they depend on tables .*?: (.*)", done.stderr)
    assert sorted(said.split(", ")) == [
        "foreign key books by_customer",
        "foreign key orders orders_customer_fkey",
    ]

    # Definitions of all, but no index and no key of what was not asked for.
    assert belongings(new_database, "customers", "hollow") == set()
    assert new_database.run_sql("SELECT count(*) FROM named") == "0\n"
    for sequence in ("orders_id_seq", "books_id_seq"):
        asked = f"SELECT last_value, is_called FROM {sequence}"
        assert new_database.run_sql(asked) == each_shop.source.run_sql(asked)
    added = "INSERT INTO orders (note) VALUES ('x') RETURNING id, note"
    assert new_database.run_sql(added) == "3001|x!\n"


def test_a_partitioned_table_stands_for_its_partitions(
    each_shop: Shop, new_database: Database
) -> None:
    arguments = ["--create", new_database.name, "--table", "public.events"]
    assert_restored(each_shop.restore(new_database.cluster.maintenance, *arguments))
    of_it = ["events", "events_1", "events_2", "events_rest"]
    found = {name for name, rows in counts(new_database).items() if rows}
    assert found == {"events_1", "events_rest"}
    assert ordered(new_database, "events") == ordered(each_shop.source, "events")
    assert belongings(new_database, *of_it) == belongings(each_shop.source, *of_it)


def test_one_partition_alone(each_shop: Shop, new_database: Database) -> None:
    arguments = ["--create", new_database.name, "--table", "events_1"]
    assert_restored(each_shop.restore(new_database.cluster.maintenance, *arguments))
    assert {name for name, rows in counts(new_database).items() if rows} == {"events_1"}
    assert belongings(new_database, "events_1") == belongings(each_shop.source, "events_1")


@both
def test_an_odd_name(each_shop: Shop, new_database: Database, *, encrypted: bool) -> None:
    arguments = ["--create", new_database.name, "--table", PATTERN]
    maintenance = new_database.cluster.maintenance
    assert_restored(each_shop.restore(maintenance, *arguments, encrypted=encrypted))
    assert {name for name, rows in counts(new_database).items() if rows} == {ODD}
    assert ordered(new_database, PATTERN) == ordered(each_shop.source, PATTERN)
    assert belongings(new_database, ODD) == belongings(each_shop.source, ODD) != set()


@pytest.mark.long
def test_into_an_empty_database(shop: Shop, make_database: MakeDatabase) -> None:
    target = make_database()
    assert_restored(shop.restore(target, "--table", "customers", "--table", "orders"))
    assert ordered(target, "orders") == ordered(shop.source, "orders")
    both_tables = ("orders", "customers")
    assert belongings(target, *both_tables) == belongings(shop.source, *both_tables)
    before = target.plain_dump("--data-only")
    done = shop.restore(target, "--table", "customers")
    assert_failed(done, 60, "is not empty", "--create", "--data-only")
    assert "--overwrite" not in done.stderr
    assert rows_of(target.plain_dump("--data-only")) == rows_of(before)


def rows_of(dump: bytes) -> bytes:
    """Return a dump without the key that each has of its own."""
    return re.sub(rb"^\\(?:un)?restrict .*$", b"", dump, flags=re.MULTILINE)


@both
def test_rows_alone(shop: Shop, make_database: MakeDatabase, *, encrypted: bool) -> None:
    target = make_database()
    target.run_sql(
        "CREATE TABLE customers (id int PRIMARY KEY, name text, more int DEFAULT 7);"
        "INSERT INTO customers VALUES (1000, 'here before', 0);"
    )
    arguments = ["--data-only", "--table", "public.customers"]
    assert_restored(shop.restore(target, *arguments, encrypted=encrypted))
    kept = "SELECT count(*), count(DISTINCT xmin::text), sum(more) FROM customers WHERE id < 1000"
    assert target.run_sql(kept) == "300|1|2100\n"  # one transaction for all of them
    assert target.run_sql("SELECT name FROM customers WHERE id = 1000") == "here before\n"
    assert target.run_sql("SELECT relname FROM pg_class WHERE relname = 'orders'") == ""
    again = shop.restore(target, *arguments, encrypted=encrypted)
    assert_failed(again, 62, "customers_pkey", "COPY", "The table already has such rows")
    assert target.run_sql(kept) == "300|1|2100\n"


def test_rows_of_several_tables_are_one_transaction(
    shop: Shop, make_database: MakeDatabase
) -> None:
    """The rows of the first are there already when those of the second are refused."""
    target = make_database()
    target.run_sql(
        "CREATE TABLE customers (id int, name text);"
        "CREATE TABLE odd (id int CHECK (id > 1));"
        "CREATE TABLE books (id int, title text, writer int);"
    )
    tables = ["--table", "customers", "--table", "odd", "--table", "books"]
    assert_failed(shop.restore(target, "--data-only", *tables), 62, "odd_id_check")
    assert set(counts(target).values()) == {0}
    target.run_sql("ALTER TABLE odd DROP CONSTRAINT odd_id_check")
    assert_restored(shop.restore(target, "--data-only", *tables))
    assert counts(target) == {"customers": 300, "odd": 1, "books": 200}


FAMILY = """
    CREATE TABLE a_child (id int PRIMARY KEY, of int);
    CREATE TABLE staff (id int PRIMARY KEY, boss int REFERENCES staff, about text);
    CREATE TABLE z_parent (id int, at int, PRIMARY KEY (id, at)) PARTITION BY LIST (at);
    CREATE TABLE z_parent_1 PARTITION OF z_parent FOR VALUES IN (1);
    CREATE TABLE z_parent_2 PARTITION OF z_parent FOR VALUES IN (2);
    ALTER TABLE z_parent ADD FOREIGN KEY (id) REFERENCES staff;
    ALTER TABLE a_child ADD at int, ADD FOREIGN KEY (of, at) REFERENCES z_parent;
    INSERT INTO staff SELECT n, 5001 - n, E'\\\\.\\n' || repeat('x', 40)
        FROM generate_series(1, 5000) n;
    INSERT INTO z_parent SELECT n, 1 + n % 2 FROM generate_series(1, 3000) n;
    INSERT INTO a_child SELECT n, n, 1 + n % 2 FROM generate_series(1, 3000) n;
"""
SUMS = "SELECT count(*), sum(hashtext(t::text)) FROM {} t"


@pytest.mark.parametrize(
    "in_pieces",
    [
        pytest.param(True, id="in pieces"),
        pytest.param(False, id="by pg_dump", marks=pytest.mark.long),
    ],
)
def test_rows_of_tables_that_refer_to_each_other(
    make_database: MakeDatabase, tmp_path: Path, *, in_pieces: bool
) -> None:
    """A key is checked at the end of each COPY: by then the row that it refers to is there."""
    source = make_database()
    source.run_sql(FAMILY)
    (pieces if in_pieces else backups).back_up(source, tmp_path)
    tables = ("a_child", "staff", "z_parent")
    before = [source.run_sql(SUMS.format(table)) for table in tables]
    source.run_sql("TRUNCATE a_child, staff, z_parent")
    arguments = [part for table in tables for part in ("--table", table)]
    assert_restored(restore(tmp_path, source, "--data-only", *arguments))
    assert [source.run_sql(SUMS.format(table)) for table in tables] == before


def test_rows_through_the_root_keep_the_columns_of_each_partition(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """pg_dump lists the columns in the order that each partition has them in."""
    source = make_database()
    source.run_sql(
        """
        CREATE TABLE root (id int, a text, b text) PARTITION BY RANGE (id);
        CREATE TABLE root_1 PARTITION OF root FOR VALUES FROM (0) TO (10);
        CREATE TABLE root_2 (id int, b text, a text);
        ALTER TABLE root ATTACH PARTITION root_2 FOR VALUES FROM (10) TO (20);
        INSERT INTO root SELECT n, 'a' || n, 'b' || n FROM generate_series(1, 19) n;
        """
    )
    backups.back_up(source, tmp_path, PG_DUMP_EXTRA_ARGS="--load-via-partition-root")
    source.run_sql("TRUNCATE root")
    assert_restored(restore(tmp_path, source, "--data-only", "--table", "root"))
    wrong = "SELECT count(*) FROM root WHERE a <> 'a' || id OR b <> 'b' || id"
    assert source.run_sql(wrong) == "0\n"
    assert source.run_sql("SELECT count(*) FROM root") == "19\n"


PARTS = """
    CREATE TABLE root (id int PRIMARY KEY, t text) PARTITION BY HASH (id);
    CREATE TABLE root_0 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE root_1 PARTITION OF root FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO root SELECT n, 'row ' || n FROM generate_series(1, 100) n;
"""
OF_PARTS = "SELECT tableoid::regclass, count(*) FROM root GROUP BY 1 ORDER BY 1"


def test_the_rows_of_one_partition_that_are_stored_with_those_of_others(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """As they are without any option where partitions go by the hash of an enum."""
    source = make_database()
    source.run_sql(PARTS)
    backups.back_up(source, tmp_path, PG_DUMP_EXTRA_ARGS="--load-via-partition-root")
    before = source.run_sql(OF_PARTS)
    source.run_sql("ALTER TABLE root DROP CONSTRAINT root_pkey; TRUNCATE root_0")
    left = source.run_sql(OF_PARTS)
    done = restore(tmp_path, source, "--data-only", "--table", "root_0")
    assert_failed(done, 58, "stored together with those of public.root_1", "--create")
    assert source.run_sql(OF_PARTS) == left

    target = make_database()
    done = restore(tmp_path, target, "--table", "root_0")
    assert done.returncode == 0
    assert "rows are stored together: public.root_1" in done.stderr
    assert target.run_sql(OF_PARTS) == before
    assert target.run_sql("SELECT to_regclass('root_0_pkey'), to_regclass('root_1_pkey')") == (
        "root_0_pkey|root_1_pkey\n"
    )


def test_rows_alone_into_a_table_that_is_missing(shop: Shop, make_database: MakeDatabase) -> None:
    target = make_database()
    done = shop.restore(target, "--data-only", "--table", "customers")
    assert_failed(done, 62, 'relation "public.customers" does not exist')
    assert held(target) == "0\n"


def test_no_such_table(shop: Shop, make_database: MakeDatabase) -> None:
    target = make_database()
    done = shop.restore(target, "--table", "odd", "--table", "extra.orders")
    assert_failed(done, 58, "has no table extra.orders", "extra.bills", "public.books")
    # Without quotes it is the lower case that is looked for.
    assert_failed(shop.restore(target, "--table", ODD.partition(".")[0]), 58, "has no table Odd")
    assert held(target) == "0\n"


def test_a_backup_by_one_pg_dump(shop: Shop, make_database: MakeDatabase) -> None:
    target = make_database()
    for arguments in (["--create", "never_made"], [], ["--data-only"]):
        done = restore(shop.by_one, target, "--table", "orders", *arguments)
        assert_failed(done, 58, "cannot be read table by table", "DUMP_JOBS=1", "--create")
    assert held(target) == "0\n"
    assert "never_made" not in target.run_sql("SELECT datname FROM pg_database")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data-only"],
        ["--data-only", "--table", "orders", "--create", "new"],
        ["--data-only", "--table", "orders", "--overwrite"],
        ["--table", "orders", "--overwrite"],
    ],
    ids=["no table", "create", "overwrite", "overwrite by more than rows"],
)
def test_a_wrong_command_line(arguments: list[str], tmp_path: Path) -> None:
    env = environment(STORAGE_URL=tmp_path.as_uri(), RESTORE_URL="postgresql://127.0.0.1:1/x")
    done = run_pgstash(["restore", *arguments], env)
    assert done.returncode == 2
    assert "--data-only" in done.stderr or "--table" in done.stderr


@both
def test_a_dry_run_tells_of_the_selection_alone(
    shop: Shop, make_database: MakeDatabase, *, encrypted: bool
) -> None:
    target = make_database()
    arguments = ["--dry-run", "--table", "books", "--table", "odd"]
    done = shop.restore(target, *arguments, encrypted=encrypted)
    assert done.returncode == 0
    [said] = done.stderr.splitlines()
    assert "it depends on tables that were not restored: foreign key books by_customer" in said
    assert "201 rows in 2 tables" in done.stdout
    assert "SUCCESS" not in done.stdout
    assert held(target) == "0\n"


def test_damage_of_another_table_does_not_matter(
    shop: Shop, make_database: MakeDatabase, tmp_path: Path
) -> None:
    folder = tmp_path / PREFIX
    folder.mkdir()
    for file in (shop.folders[False] / PREFIX).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    [backup] = backups.stored(tmp_path)
    orders = members(backup.manifest, "orders")
    data = bytearray(backup.archive.read_bytes())
    data[orders[0]["offset"] + orders[0]["stored"] // 2] ^= 1
    backup.archive.write_bytes(data)
    target = make_database()
    assert_failed(restore(tmp_path, target, "--table", "orders"), 31)
    assert held(target) == "0\n"
    assert_restored(restore(tmp_path, target, "--table", "customers"))
    assert ordered(target, "customers") == ordered(shop.source, "customers")


def members(manifest: Mapping[str, Any], *tables: str) -> list[dict[str, Any]]:
    """Return the members that hold rows of these tables."""
    listed = manifest["members"]
    found = [dict(zip(listed["columns"], row, strict=True)) for row in listed["rows"]]
    names = [name for _, name, _ in manifest["tables"]["rows"]]
    wanted = {names.index(table) for table in tables}
    return [each for each in found if each["section"] == "data" and each["table"] in wanted]


def fixed(manifest: Mapping[str, Any]) -> int:
    """Return the stored bytes of what every selection takes."""
    listed = manifest["members"]
    found = [dict(zip(listed["columns"], row, strict=True)) for row in listed["rows"]]
    always = ("header", "pre-data", "sequences")
    return sum(each["stored"] for each in found if each["section"] in always)


BIG = """
    CREATE TABLE part_{number} AS SELECT n, md5(n::text) || md5((-n)::text) AS line
        FROM generate_series(1, {rows}) n;
    ALTER TABLE part_{number} ADD PRIMARY KEY (n);
"""
ROWS_OF_TEN_MB = 100_000


@pytest.mark.long
@pytest.mark.parametrize(
    ("tables", "encrypted"),
    [
        pytest.param(6, True, id="60 MB, encrypted"),
        pytest.param(6, False, id="60 MB, plain", marks=pytest.mark.long),
        pytest.param(100, True, id="1 GB, encrypted", marks=pytest.mark.long),
        pytest.param(100, False, id="1 GB, plain", marks=pytest.mark.long),
    ],
)
def test_little_more_is_fetched_than_the_table(
    make_database: MakeDatabase,
    swift_server: SwiftServer,
    s3_bucket: str,
    tmp_path: Path,
    *,
    tables: int,
    encrypted: bool,
) -> None:
    source, target = make_database(), make_database()
    for number in range(tables):
        source.run_sql(BIG.format(number=number, rows=ROWS_OF_TEN_MB))
    env = environment(
        source.bin_dir,
        DATABASE_URL=source.uri,
        RESTORE_URL=target.uri,
        S3_ENDPOINT=swift_server.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
        BACKUP_ENCRYPTION=str(encrypted).lower(),
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        COMPRESSION_LEVEL="1",
    )
    done = run_pgstash(["once"], env, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    listed = swift_server.client.list_objects_v2(Bucket=s3_bucket)["Contents"]
    sizes = {each["Key"]: each["Size"] for each in listed}
    [archive] = archives_in(sizes)
    [manifest_key] = [key for key in sizes if ".manifest." in key]
    [schema] = [key for key in sizes if ".schema." in key]
    file = tmp_path / Path(manifest_key).name
    answer = swift_server.client.get_object(Bucket=s3_bucket, Key=manifest_key)
    file.write_bytes(answer["Body"].read())
    manifest = StoredBackup(tmp_path / Path(archive).name, file).manifest
    needed = (
        sum(each["stored"] for each in members(manifest, "part_3"))
        + fixed(manifest)
        + sizes[manifest_key]
        + sizes[schema]
    )
    assert needed * (tables - 2) < sizes[archive]
    with TcpProxy(swift_server.port) as proxy:
        done = run_pgstash(
            restore_to(env, "--table", "part_3"), env | {"S3_ENDPOINT": proxy.endpoint}
        )
        fetched = proxy.received_bytes
    assert_restored(done)
    # All that the store sends is counted: listings and the headers of answers too.
    assert needed < fetched <= 1.1 * needed
    assert (
        target.run_sql("SELECT count(*), max(n) FROM part_3")
        == f"{ROWS_OF_TEN_MB}|{ROWS_OF_TEN_MB}\n"
    )
    assert target.run_sql("SELECT count(*) FROM part_2") == "0\n"
    target.run_sql("DROP TABLE part_3")
    with TcpProxy(swift_server.port) as proxy:
        done = run_pgstash(
            restore_to(env, "--table", "part_3", "--into-existing"),
            env | {"S3_ENDPOINT": proxy.endpoint},
        )
        fetched = proxy.received_bytes
    assert_restored(done)
    assert fetched <= 1.1 * needed
