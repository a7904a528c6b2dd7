"""Connection strings as frameworks and platforms write them, and variables as files hold them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from psycopg import sql

from pgstash.postgres.server import foreign_parameters
from support.backups import settings, stored
from support.cli import environment, run_pgstash
from support.pgbouncer import PROGRAM, PgBouncer
from support.postgres import REPOSITORY, Cluster, Clusters, MakeDatabase
from support.tiers import later

if TYPE_CHECKING:
    import subprocess

LOGIN = "u:Planted1@127.0.0.1:1/shop"
# A string, and what is said of it: which part is wrong, and what to write.
REFUSED = [
    (f"postgresql://{LOGIN}?sslmode=no-verify", r"has sslmode=no-verify, .* Write sslmode=require"),
    (f"postgresql://{LOGIN}?ssl=0", r"has ssl=0, .* Write sslmode=disable"),
    (f"postgresql://{LOGIN}?ssl=no-verify", r"has ssl=no-verify, .* Write sslmode=require"),
    (f"postgresql://{LOGIN}?sslaccept=strict", r"has sslaccept=strict, .* sslmode=verify-full"),
    (f"postgresql://{LOGIN}?sslidentity=a.p12", r"parameter sslidentity, .* sslcert and sslkey"),
    (f"postgresql://{LOGIN}?sslmod=require", r"parameter sslmod, .* Did you mean sslmode\?"),
    (f"postgresql://{LOGIN}?currency=eur", r"parameter currency, .* Remove it"),
    (f"postgresql://{LOGIN}?sslmode=require?pgbouncer=true", r"second '\?'\. Separate .*'&'"),
    (f"postgresql+asyncpg://{LOGIN}", r"begins with postgresql\+asyncpg://\. Write postgresql://"),
    (f"postgis://{LOGIN}", r"begins with postgis://\. Write postgresql://"),
    (f"jdbc:postgresql://{LOGIN}", r"is a JDBC URL\. Write postgresql://user@host:5432/database"),
    ("prisma+postgres://accelerate.prisma-data.net/?api_key=Planted1", r"is the URL of Prisma's"),
    (f" postgresql://{LOGIN}", r"begins with a blank\. Remove it"),
    (f"postgresql://{LOGIN}?sslmode=require\r", r"ends in a carriage return .*\. Remove it"),
    (f"postgresql://{LOGIN}\n", r"ends in a line feed .*\. Remove it"),
    (f'"postgresql://{LOGIN}"', r"is wrapped in quotes, .* Remove them"),
    ("${{Postgres.DATABASE_URL}}", r"contains \$\{\{Postgres\.DATABASE_URL\}\}, a reference that"),
    ("postgresql://${{Postgres.PGUSER}}:Planted1@h/shop", r"contains \$\{\{…\}\}, a reference"),
    (
        "postgresql://${DB_USER}:Planted1@h/shop",
        r"reference such as \$\{NAME\}, .* Write the value",
    ),
    (
        "postgresql://postgres:[YOUR-PASSWORD]@h/shop",
        r"contains \[YOUR-PASSWORD\]\. Write the passw",
    ),
]


def said(done: subprocess.CompletedProcess[str], name: str) -> list[str]:
    """Return what is said of a variable; nothing else is wrong, and no secret is shown."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Planted1" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    found = re.findall(rf"ERROR {re.escape(name)} (.+)", done.stderr)
    assert len(found) == done.stderr.count(" ERROR ")
    return found


@pytest.mark.parametrize(("url", "expected"), later(REFUSED, *REFUSED[2::2]))
def test_a_string_that_libpq_cannot_use(url: str, expected: str, tmp_path: Path) -> None:
    """Each of the settings that hold a connection string says the same."""
    store = {"STORAGE_URL": tmp_path.as_uri()}
    good = store | {"DATABASE_URL": f"postgresql://{LOGIN}"}
    for name, arguments, env in (
        ("DATABASE_URL", ["once"], store | {"DATABASE_URL": url}),
        ("VERIFY_DATABASE_URL", ["drill"], good | {"VERIFY_DATABASE_URL": url}),
        ("RESTORE_URL", ["restore"], store | {"RESTORE_URL": url}),
        ("--to", ["restore", "--to", url], store),
    ):
        [problem] = said(run_pgstash(arguments, environment(**env)), name)
        assert re.search(expected, problem), name


def test_all_parameters_at_once(tmp_path: Path) -> None:
    url = f"postgresql://{LOGIN}?sslmode=no-verify&ssl=false&nonsense=1&sslmod=x&pgbouncer=true"
    env = environment(DATABASE_URL=url, STORAGE_URL=tmp_path.as_uri())
    found = said(run_pgstash(["once"], env), "DATABASE_URL")
    words = ["sslmode=no-verify", "ssl=false", "nonsense", "sslmod,"]
    assert [word in problem for word, problem in zip(words, found, strict=True)] == [True] * 4


def test_a_password_that_is_not_encoded_names_no_parameter(tmp_path: Path) -> None:
    """What follows a "?" or "&" may be a part of it."""
    for url in (
        "postgresql://u:x/y?Planted1=z@h/shop",
        "postgresql://u:5432/y?schema=Planted1@h/shop",
        "postgresql://h/shop?user=u&password=x&Planted1=y",
    ):
        env = environment(DATABASE_URL=url, STORAGE_URL=tmp_path.as_uri())
        [problem] = said(run_pgstash(["once"], env), "DATABASE_URL")
        assert "Percent-encode" in problem


def test_the_mode_of_tls_in_the_environment(tmp_path: Path) -> None:
    env = {"STORAGE_URL": tmp_path.as_uri(), "PGSSLMODE": "no-verify"}
    url = f"postgresql://{LOGIN}"
    done = run_pgstash(["once"], environment(**env, DATABASE_URL=url))
    assert "ERROR PGSSLMODE has a value that libpq does not know. Write PGSSLMODE=require" in (
        done.stderr
    )
    assert done.returncode == 1
    # A mode in the URL takes precedence: this one does not find the server.
    done = run_pgstash(["once"], environment(**env, DATABASE_URL=f"{url}?sslmode=disable"))
    assert done.returncode == 10


@pytest.mark.long
def test_parameters_of_frameworks_are_ignored(make_database: MakeDatabase, tmp_path: Path) -> None:
    """The backup has all schemas, whatever Prisma's ``schema`` is."""
    source, target = make_database(), make_database()
    source.run_sql("CREATE TABLE a (); CREATE SCHEMA other; CREATE TABLE other.b AS SELECT 1 n")
    foreign = (
        "schema=public&pgbouncer=true&connection_limit=1&pool=5&sslaccept=accept_invalid_certs"
    )
    env = environment(source.bin_dir, **settings(source, tmp_path))
    env["DATABASE_URL"] += f"?{foreign}&application_name=kept"
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    [line] = re.findall("INFO (Ignoring .+)", done.stdout)
    assert line == (
        "Ignoring schema, pgbouncer, connection_limit, pool, sslaccept in DATABASE_URL: only other "
        "programs use this. The backup is not limited to that schema."
    )
    [backup] = stored(tmp_path)
    assert backup.row_counts == {("public", "a"): 0, ("other", "b"): 1}

    check = run_pgstash(["check", "database"], env)
    assert "Ignoring schema, pgbouncer" in run_pgstash(["check"], env).stdout
    assert check.returncode == 0, check.stdout

    done = run_pgstash(["restore", "--to", f"{target.uri}?schema=app&pgbouncer=true"], env)
    assert done.returncode == 0, done.stderr
    [line] = re.findall("INFO (Ignoring .+)", done.stdout)
    assert line == (
        "Ignoring schema, pgbouncer in --to: only other programs use this. Objects are restored "
        "into the schemas that they were in."
    )
    assert target.run_sql("SELECT n FROM other.b") == "1\n"
    # The source is known by its URL, although this command would ignore a wrong one.
    listed = json.loads(run_pgstash(["list", "--json"], env).stdout)
    assert [each["database"] for each in listed] == [source.name]

    drills = env | {"VERIFY_DATABASE_URL": f"{source.cluster.maintenance.uri}?pool_timeout=0"}
    done = run_pgstash(["drill"], drills)
    assert done.returncode == 0, done.stderr
    assert "INFO Ignoring pool_timeout in VERIFY_DATABASE_URL: " in done.stdout


@pytest.mark.skipif(not PROGRAM.exists(), reason="needs the package pgbouncer")
def test_what_prisma_says_of_a_pooler_is_found_out(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    with PgBouncer(database.cluster, "transaction") as pooler:
        url = f"{pooler.uri(database)}?pgbouncer=true"
        env = environment(database.bin_dir, **settings(database, tmp_path) | {"DATABASE_URL": url})
        done = run_pgstash(["once"], env)
    assert done.returncode == 17, done.stderr
    assert "a pooler in between swaps sessions" in done.stderr


def test_every_ignored_parameter_is_documented() -> None:
    page = (REPOSITORY / "docs" / "how-to" / "connection-strings.md").read_text()
    documented = set(re.findall(r"`([\w-]+)`", page))
    assert documented >= foreign_parameters.IGNORED


def test_values_of_a_file_with_windows_line_ends(tmp_path: Path) -> None:
    """``docker run --env-file`` passes them on: every variable is told, and so are quotes."""
    values = {
        "DATABASE_URL": f"postgresql://{LOGIN}",
        "PGPASSFILE": "/run/pgpass",
        "PGPASSWORD_FILE": str(tmp_path / "password"),
        "STORAGE_URL": tmp_path.as_uri(),
        "S3_BUCKET": "backups",
        "S3_SECRET_ACCESS_KEY": "Planted1",
        "LOG_FORMAT": "text",
        "WEBHOOK_ON_SUCCESS": "true",
        "BACKUP_PREFIX": '"shop"',
        "PGAPPNAME": "pgstash",
    }
    (tmp_path / "password").write_text("Planted1\r\n")
    env = environment(**{name: f"{value}\r" for name, value in values.items()})
    done = run_pgstash(["once"], env)
    assert done.returncode == 1
    assert "Planted1" not in done.stderr
    for name in values:
        assert re.search(rf"ERROR {name} ends in a carriage return .*Remove it\.", done.stderr), (
            name
        )
    assert "ERROR BACKUP_PREFIX is wrapped in quotes" in done.stderr
    assert "Invalid configuration: 11 problems." in done.stderr


def test_quotes_around_variables_of_libpq(tmp_path: Path) -> None:
    env = {"STORAGE_URL": tmp_path.as_uri(), "PGHOST": '"127.0.0.1"', "PGPORT": "'1'"}
    done = run_pgstash(["once"], environment(**env))
    assert done.returncode == 1
    assert "ERROR PGHOST is wrapped in quotes" in done.stderr
    assert "ERROR PGPORT is wrapped in quotes" in done.stderr


def test_odd_values_that_may_be_meant_are_used_and_told(
    clusters: Clusters, newest_cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    """A password and a passphrase that end in a blank are not changed."""
    cluster = clusters.get(newest_cluster.major, "scram-sha-256")
    database = make_database("empty", on=cluster)
    database.run_sql('CREATE TABLE t (); CREATE TABLE "Order" ()')
    with cluster.maintenance.connect() as connection:
        connection.execute(
            sql.SQL("CREATE ROLE blank SUPERUSER LOGIN PASSWORD {}").format('"Planted1 "')
        )
    url = f"postgresql://blank@{cluster.host}:{cluster.port}/{quote(database.name)}"
    key = tmp_path / "key"
    key.write_text("a Planted1 of thirty-two characters or more \n")
    (tmp_path / "store").mkdir()
    env = environment(
        database.bin_dir,
        DATABASE_URL=f"{url} ",
        PGPASSWORD='"Planted1 "',
        STORAGE_URL=(tmp_path / "store").as_uri(),
        BACKUP_PREFIX="shop ",
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY_FILE=str(key),
        EXCLUDE_TABLE_DATA='"Order"',
        EXCLUDE_TABLES='"public.log_*"',
        LOCK_TIMEOUT="60 ",
        HOOK_AFTER_BACKUP="true\n",
    )
    try:
        done = run_pgstash(["once"], env)
        assert done.returncode == 0, done.stderr
        assert "Planted1" not in done.stderr + done.stdout
        warnings = re.findall("WARNING (.+)", done.stderr)
        assert sorted(warnings) == [
            f"{name}. Correct it, unless it is meant."
            for name in (
                "BACKUP_ENCRYPTION_KEY ends in a blank",
                "BACKUP_PREFIX ends in a blank",
                "DATABASE_URL ends in a blank",
                "EXCLUDE_TABLES is wrapped in quotes, which are part of the value",
                "LOCK_TIMEOUT ends in a blank",
                "PGPASSWORD is wrapped in quotes, which are part of the value",
            )
        ]
        checked = run_pgstash(["check"], env)
        assert len(re.findall("(?m)^warning +configuration +", checked.stdout)) == len(warnings)
        [backup] = stored(tmp_path / "store", "shop ")
        assert backup.encrypted
        passphrase = environment(database.bin_dir, BACKUP_ENCRYPTION_KEY=key.read_text()[:-1])
        read = run_pgstash(["cat", str(backup.archive), "--unverified"], passphrase)
        assert read.returncode == 0, read.stderr
        assert "CREATE TABLE public.t" in read.stdout
    finally:
        with cluster.maintenance.connect() as connection:
            connection.execute("DROP ROLE blank")


def test_references_that_the_platform_did_not_replace(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    wrong = {
        "S3_BUCKET": "${{shared.BUCKET}}",
        "LOCK_TIMEOUT": "${{x}}",
        "WEBHOOK_URL": "${{Planted1}}",
    }
    env = environment(database.bin_dir, **settings(database, tmp_path))
    done = run_pgstash(["once"], env | wrong)
    assert done.returncode == 1
    assert "Planted1" not in done.stderr
    for name in wrong:
        assert re.search(rf"ERROR {name} .+ a reference that was not replaced\.", done.stderr), name
    done = run_pgstash(["once"], env | {"BACKUP_PREFIX": "${{shared.PREFIX}}"})
    assert done.returncode == 0, done.stderr
    assert "WARNING BACKUP_PREFIX contains ${{…}}, a reference" in done.stderr


def test_near_misses_of_what_is_missing() -> None:
    env = environment(
        POSTGRES_URL="postgresql://u:Planted1@h/shop",
        DB_URL="postgresql://u:Planted1@h/shop",
        AWS_ACCESS_KEY_ID="Planted1",
        S3_SECRET_ACCES_KEY="Planted1",
        S3_BUKET="Planted1",
        S3_ENDPOINT="",
        RESTORE_URI="Planted1",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 1
    assert "Planted1" not in done.stdout + done.stderr
    for name, expected in (
        ("DATABASE_URL", "POSTGRES_URL and DB_URL are set, which pgstash does not read. Rename"),
        ("S3_ACCESS_KEY_ID", "AWS_ACCESS_KEY_ID is set, which pgstash does not read. Rename it to"),
        ("S3_SECRET_ACCESS_KEY", "S3_SECRET_ACCES_KEY is set, which pgstash does not read"),
        ("S3_BUCKET", "S3_BUKET is set, which pgstash does not read. Rename it to S3_BUCKET if"),
        ("S3_ENDPOINT", "S3_ENDPOINT is set, but empty."),
    ):
        [problem] = re.findall(rf"ERROR {name} is missing(.+)", done.stderr)
        assert expected in problem
    done = run_pgstash(["restore"], env)
    [problem] = re.findall(r"ERROR --to is missing(.+)", done.stderr)
    assert "RESTORE_URI is set" in problem


@pytest.mark.parametrize("where", ["environment", "file", "with other problems"])
def test_problems_of_the_configuration_as_json(where: str, tmp_path: Path) -> None:
    value = "json\r" if where == "with other problems" else "json"
    if where == "file":
        (tmp_path / ".env").write_text("LOG_FORMAT=json\n")
    env = environment(**({} if where == "file" else {"LOG_FORMAT": value}), DATABASE_URL="h")
    done = run_pgstash(["once"], env, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    records = [json.loads(line) for line in done.stderr.splitlines()]
    assert [record["level"] for record in records[:-1]] == ["ERROR"] * (len(records) - 1)
    assert records[-1]["level"] == "FAILURE"
    messages = [record["message"] for record in records]
    assert any("DATABASE_URL must begin with postgresql://" in each for each in messages)
