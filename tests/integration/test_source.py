"""The source is found, seen and dumped alike, whatever its name, address and surroundings."""

from __future__ import annotations

import os
import re
import socketserver
import subprocess
import threading
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from pgstash.postgres.server import login, query
from support import backups, pieces
from support.backups import PASSPHRASE, StoredBackup, back_up, stored
from support.cli import environment, run_pgstash
from support.fake_tools import (
    FakePgDump,
    install_pg_dump,
    recorded_calls,
    recorded_version_calls,
)
from support.postgres import (
    PASSWORD,
    Cluster,
    Clusters,
    Database,
    MakeDatabase,
    bin_dir,
    temporary_database,
)
from support.proxy import PASS, REFUSE, TcpProxy
from support.stored import CLOSING, make
from support.tiers import later

RESTRICT = re.compile(rb"^\\(?:un)?restrict \w+\n", re.MULTILINE)
CLEAN = ("--no-owner", "--no-acl", "--clean", "--if-exists")

ODD_NAMES = [
    "two words",
    "o'clock",
    'say "hello"',
    "a=b",
    "dbname=postgres host=nowhere",
    "-leading",
    "--version",
    "postgresql://nobody@nowhere/nothing",
    "UPPER Case",
    "🐘 base",
    "back\\slash",
    "per%20cent",
    "new\nline",
    "Größe",
    "$HOME `id`",
    "x" * 63,
]


# In the first tier those that could lead elsewhere, or be taken for an option.
@pytest.mark.parametrize(
    "name",
    later(
        ODD_NAMES,
        *("two words", 'say "hello"', "UPPER Case", "back\\slash", "per%20cent", "Größe", "x" * 63),
        *("a=b", "--version", "🐘 base", "new\nline"),
    ),
)
def test_any_database_name(name: str, newest_cluster: Cluster, tmp_path: Path) -> None:
    database = newest_cluster.create_database(name)
    try:
        database.run_sql("CREATE TABLE t AS SELECT generate_series(1, 7) AS a")
        backup = back_up(database, tmp_path)
        assert backup.manifest["database"]["name"] == name
        assert backup.row_counts == {("public", "t"): 7}
        assert backup.metadata["database"].isascii()
        assert backup.metadata["database"].isprintable()
    finally:
        database.drop()


# A name is stored as the bytes that came, whatever the encoding of the database that it names;
# a table's name is in that encoding. Python has no codec for some.
ENCODINGS = {
    "LATIN1": (b"caf\xe9", "café"),
    "WIN1252": (b"\x80", "€"),
    "EUC_JP": (b"\xc6\xfc", "日"),
    "EUC_TW": (b"\xc4\xe3", "\udcc4\udce3"),
    "MULE_INTERNAL": (b"\x81\xe9", "\udc81\udce9"),
    "SQL_ASCII": (b"\xe9", "\udce9"),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("encoding", later(ENCODINGS, "WIN1252", "EUC_TW"))
def test_a_name_that_is_not_in_the_encoding_of_its_database(
    encoding: str, cluster: Cluster, tmp_path: Path
) -> None:
    stored_name, told_name = ENCODINGS[encoding]
    database = cluster.create_database("Größe 🐘 日", encoding=encoding)
    try:
        database.run_sql(b'CREATE TABLE "%b" AS SELECT 1 AS a' % stored_name)
        backup = back_up(database, tmp_path)
        assert backup.manifest["database"]["name"] == database.name
        assert backup.manifest["database"]["encoding"] == encoding
        assert backup.row_counts == {("public", told_name): 1}
        assert b'COPY public."%b"' % stored_name in backup.script()
    finally:
        database.drop()


def test_a_database_whose_name_reads_like_that_of_another(
    newest_cluster: Cluster, tmp_path: Path
) -> None:
    """The UTF-8 of one name, taken for LATIN1, is the other."""
    right = newest_cluster.create_database("café", encoding="LATIN1")
    wrong = newest_cluster.create_database("cafÃ©", encoding="UTF8")
    try:
        right.run_sql("CREATE TABLE right_one (a int)")
        wrong.run_sql("CREATE TABLE wrong_one (a int)")
        for database, table in [(right, "right_one"), (wrong, "wrong_one")]:
            folder = tmp_path / table
            folder.mkdir()
            backup = back_up(database, folder)
            assert backup.row_counts == {("public", table): 0}
            assert backup.manifest["database"]["name"] == database.name
    finally:
        right.drop()
        wrong.drop()


def test_a_name_that_is_not_utf8(newest_cluster: Cluster, tmp_path: Path) -> None:
    """Who is connected to a LATIN1 database may give such a name to another."""
    home = newest_cluster.create_database("latin1", encoding="LATIN1")
    name = b"caf\xe9"
    cluster = home.cluster
    settings = {
        "PGHOST": cluster.host,
        "PGPORT": str(cluster.port),
        "PGUSER": cluster.user,
        "PGDATABASE": os.fsdecode(name),
    }
    try:
        home.run_sql(b"CREATE DATABASE \"%b\" TEMPLATE latin1 ENCODING 'LATIN1'" % name)
        done = once(environment(home.bin_dir, **settings), tmp_path)
        assert done.returncode == 0, done.stderr
        assert stored(tmp_path)[0].manifest["database"]["name"] == "café"
        scratch = {"VERIFY_DATABASE_URL": cluster.maintenance.uri, "STORAGE_URL": tmp_path.as_uri()}
        drilled = run_pgstash(["drill"], environment(home.bin_dir, **settings, **scratch))
        assert drilled.returncode == 0, drilled.stderr
        assert "VERIFY_DATABASE_URL is on the source's own server" in drilled.stderr
        url = home.uri.replace("/latin1", "/caf%E9")
        refused = once(environment(home.bin_dir, DATABASE_URL=url), tmp_path)
        assert refused.returncode == 1
        assert "DATABASE_URL" in refused.stderr
    finally:
        home.run_sql(b'DROP DATABASE IF EXISTS "%b"' % name)
        home.drop()


@pytest.fixture
def locked_cluster(clusters: Clusters, newest_cluster: Cluster) -> Cluster:
    """A server that wants a password, with characters that a URI must escape."""
    return clusters.get(newest_cluster.major, "scram-sha-256")


@pytest.fixture
def secret_database(locked_cluster: Cluster, make_database: MakeDatabase) -> Database:
    return make_database("mixed", on=locked_cluster)


def once(env: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    return run_pgstash(["once"], env | {"STORAGE_URL": folder.as_uri()})


def test_libpq_variables_instead_of_a_url(secret_database: Database, tmp_path: Path) -> None:
    cluster = secret_database.cluster
    env = environment(
        secret_database.bin_dir,
        PGHOST=cluster.host,
        PGPORT=str(cluster.port),
        PGUSER=cluster.user,
        PGPASSWORD=PASSWORD,
        PGDATABASE=secret_database.name,
    )
    done = once(env, tmp_path)
    assert done.returncode == 0, done.stderr
    assert stored(tmp_path)[0].manifest["database"]["name"] == secret_database.name


def test_a_password_file_and_a_service(secret_database: Database, tmp_path: Path) -> None:
    cluster = secret_database.cluster
    password = PASSWORD.replace("\\", "\\\\").replace(":", "\\:")
    passfile = tmp_path / "pgpass"
    passfile.write_text(f"*:{cluster.port}:*:{cluster.user}:{password}\n")
    passfile.chmod(0o600)
    services = tmp_path / "services"
    services.write_text(
        f"[shop]\nhost={cluster.host}\nport={cluster.port}\nuser={cluster.user}\n"
        f"dbname={secret_database.name}\n"
    )
    env = environment(
        secret_database.bin_dir,
        PGSERVICE="shop",
        PGSERVICEFILE=str(services),
        PGPASSFILE=str(passfile),
    )
    done = once(env, tmp_path)
    assert done.returncode == 0, done.stderr
    assert stored(tmp_path)[0].manifest["database"]["name"] == secret_database.name


def test_a_socket(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    folder = quote(str(database.cluster.folder), safe="")
    url = f"postgresql://{database.cluster.user}@{folder}:{database.cluster.port}/{database.name}"
    done = once(environment(database.bin_dir, DATABASE_URL=url), tmp_path)
    assert done.returncode == 0, done.stderr
    assert stored(tmp_path)[0].manifest["database"]["host"] == str(database.cluster.folder)


def test_a_wrong_password(secret_database: Database, tmp_path: Path) -> None:
    url = secret_database.uri.replace(quote(PASSWORD, safe=""), "wr0ng-passw0rd")
    done = once(environment(secret_database.bin_dir, DATABASE_URL=url), tmp_path)
    assert done.returncode == 11
    assert "password authentication failed" in done.stderr
    assert "pg_hba.conf" in done.stderr
    assert "wr0ng" not in done.stdout + done.stderr


def test_no_password(secret_database: Database, tmp_path: Path) -> None:
    url = secret_database.uri.replace(f":{quote(PASSWORD, safe='')}@", "@")
    assert url != secret_database.uri
    done = once(environment(secret_database.bin_dir, DATABASE_URL=url), tmp_path)
    assert done.returncode == 11
    assert "No password was given: put it into DATABASE_URL" in done.stderr
    env = environment(secret_database.bin_dir, STORAGE_URL=tmp_path.as_uri(), PGPASSWORD=PASSWORD)
    make(CLOSING).store_as_backup(tmp_path)
    target = run_pgstash(["restore", "--to", url], env)
    assert target.returncode == 11
    assert "into RESTORE_URL for a target (PGPASSWORD is the source's)" in target.stderr


class _SaysYesToTls(socketserver.BaseRequestHandler):
    """Answers an SSLRequest as a server with TLS does, and no more."""

    def handle(self) -> None:
        self.request.recv(8)
        self.request.sendall(b"S")
        self.request.recv(1)


def test_tls_that_cannot_be(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    without = once(
        environment(database.bin_dir, DATABASE_URL=f"{database.uri}?sslmode=require"), tmp_path
    )
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _SaysYesToTls) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"postgresql://u@127.0.0.1:{server.server_address[1]}/x?sslmode=verify-full"
        unknown = once(environment(database.bin_dir, DATABASE_URL=url), tmp_path)
        server.shutdown()
    assert "server does not support SSL" in without.stderr
    assert "root.crt" in unknown.stderr
    for done in (without, unknown):
        assert done.returncode == 10, done.stderr
        assert "Check the TLS parameters" in done.stderr
        assert "sslrootcert=" in done.stderr
        assert "Check the host, the port" not in done.stderr


def test_a_refusal_is_told_in_the_letters_it_was_written_in(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database()
    url = f"{database.uri}_{quote('Größe')}"
    done = once(environment(database.bin_dir, DATABASE_URL=url), tmp_path)
    assert done.returncode == 11
    assert "_Größe" in done.stderr


def test_no_server_and_no_database(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database()
    nobody = once(
        environment(database.bin_dir, DATABASE_URL="postgresql://u@127.0.0.1:1/x"), tmp_path
    )
    assert nobody.returncode == 10
    missing = once(
        environment(database.bin_dir, DATABASE_URL=database.uri + "_not_there"), tmp_path
    )
    assert missing.returncode == 11
    assert "does not exist" in missing.stderr
    assert stored(tmp_path) == []


def test_all_processes_talk_to_the_host_that_answered(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    """The first host of the list comes back right after the login; pg_dump must not go there."""
    database = make_database("mixed")
    cluster = database.cluster
    with TcpProxy(cluster.port) as first, TcpProxy(cluster.port) as second:
        ports = [first.port, second.port]
        first.behave(PASS, next_connections=[REFUSE])
        tools = install_pg_dump(tmp_path / "bin", FakePgDump(version=f"{cluster.major}.9"))
        url = (
            f"postgresql://{cluster.user}@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
            f"/{database.name}?application_name=several"
        )
        done = once(environment(tools, DATABASE_URL=url), tmp_path)
        assert done.returncode == 0, done.stderr
    calls = recorded_calls(tools)
    assert calls
    for call in calls:
        [target] = [word for word in call["arguments"] if word.startswith("--dbname=")]
        given = psycopg.conninfo.conninfo_to_dict(target.removeprefix("--dbname="))
        assert given["port"] == str(ports[1])
        assert given["host"] == given["hostaddr"] == "127.0.0.1"
        assert re.fullmatch(r"several [0-9a-f]{8}", str(given["application_name"]))
        assert not [name for name in call["environment"] if name.startswith("PG")]


def test_a_tool_that_is_asked_for_its_version_learns_no_secret(
    secret_database: Database, tmp_path: Path
) -> None:
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1"))
    env = environment(
        tools,
        **backups.settings(secret_database, tmp_path, encrypted=True),
        PGPASSWORD=PASSWORD,
        S3_SECRET_ACCESS_KEY="a secret of the store",
    )
    done = run_pgstash(["once"], env)
    assert done.returncode == 0, done.stderr
    [call] = recorded_version_calls(tools)
    assert call["session"] == call["pid"]
    given = call["environment"]
    assert given["PATH"] == env["PATH"]
    assert given["LC_ALL"] == "C"
    assert not [name for name in given if name.startswith(("PG", "S3_", "BACKUP_", "DATABASE_"))]
    assert not {PASSPHRASE, PASSWORD, "a secret of the store"} & set(given.values())


def test_kerberos_and_english_reach_the_child(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1"))
    kerberos = {
        name: f"/kerberos/{name}"
        for name in ("KRB5CCNAME", "KRB5_CONFIG", "KRB5_KTNAME", "KRB5_CLIENT_KTNAME")
    }
    language = {
        "LC_ALL": "C.UTF-8",
        "LC_MESSAGES": "de_DE.UTF-8",
        "LANGUAGE": "de",
        "LANG": "de_DE",
    }
    settings = backups.settings(database, tmp_path)
    done = run_pgstash(["once"], environment(tools, **settings) | kerberos | language)
    assert done.returncode == 0, done.stderr
    [*_, call] = recorded_calls(tools)
    assert kerberos.items() <= call["environment"].items()
    assert call["environment"]["LC_ALL"] == "C"
    assert not {"LANG", "LANGUAGE", "LC_MESSAGES"} & call["environment"].keys()


def test_a_long_application_name_keeps_its_beginning(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1"))
    back_up(database, tmp_path, tools=tools, PGAPPNAME="ä" * 40)
    [*_, call] = recorded_calls(tools)
    target = call["arguments"][-1].removeprefix("--dbname=")
    name = str(psycopg.conninfo.conninfo_to_dict(target)["application_name"])
    assert re.fullmatch(r"ä{27} [0-9a-f]{8}", name)


PLANTED = {
    "bytea_output": "escape",
    "DateStyle": "German, DMY",
    "IntervalStyle": "sql_standard",
    "extra_float_digits": "-10",
    "TimeZone": "Asia/Kathmandu",
    "quote_all_identifiers": "on",
    "xmlbinary": "hex",
    "search_path": "somewhere",
    "row_security": "off",
    "statement_timeout": "50",
    "lock_timeout": "50",
    "idle_in_transaction_session_timeout": "1",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "client_encoding": "LATIN1",
    "standard_conforming_strings": "off",
    "transform_null_equals": "on",
    "synchronize_seqscans": "on",
    "escape_string_warning": "on",
}


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, list[bytes]]:
    """What pg_dump and a dump in pieces write of the sample, where nothing is planted."""
    with temporary_database(cluster, "mixed") as database:
        in_pieces = pieces.back_up(database, tmp_path_factory.mktemp("undisturbed"))
        return RESTRICT.sub(b"", database.plain_dump(*CLEAN)), _lines(in_pieces)


@pytest.mark.newest_first
@pytest.mark.parametrize("where", ["database", "role", "environment", "service"])
def test_nothing_planted_changes_what_is_dumped(
    where: str,
    undisturbed: tuple[bytes, list[bytes]],
    cluster: Cluster,
    make_database: MakeDatabase,
    tmp_path: Path,
) -> None:
    database = make_database("mixed", on=cluster)
    expected, in_pieces = undisturbed
    (tmp_path / "in pieces").mkdir()
    # These refuse a login, or end our own session, where they come with the connection.
    harmless = {k: v for k, v in PLANTED.items() if not k.endswith("_timeout")}
    options = " ".join(
        f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in harmless.items()
    )
    more: dict[str, str] = {
        "PGCLIENTENCODING": "LATIN1",
        "PGTZ": "Asia/Tokyo",
        "PGDATESTYLE": "German",
    }
    if where == "database":
        more = {}
        _plant(cluster, sql.SQL("DATABASE {}").format(sql.Identifier(database.name)))
    elif where == "role":
        more = {}
        _plant(
            cluster,
            sql.SQL("ROLE {} IN DATABASE {}").format(
                sql.Identifier(cluster.user), sql.Identifier(database.name)
            ),
        )
    elif where == "environment":
        more["PGOPTIONS"] = options
    else:
        services = tmp_path / "services"
        services.write_text(f"[planted]\noptions={options}\n")
        more |= {"PGSERVICE": "planted", "PGSERVICEFILE": str(services)}
    backup = back_up(database, tmp_path, encrypted=False, tools=None, DUMP_JOBS="1", **more)
    assert RESTRICT.sub(b"", backup.script()) == expected
    again = pieces.back_up(database, tmp_path / "in pieces", encrypted=False, tools=None, **more)
    assert _lines(again) == in_pieces


def test_a_time_limit_of_the_database_ends_no_question(make_database: MakeDatabase) -> None:
    """Some are set for web applications, and a large catalog takes longer."""
    database = make_database()
    database.cluster.maintenance.run_sql(
        f"ALTER DATABASE {database.name} SET statement_timeout = 100"
    )
    server = login.inspect(database.uri)
    longer = "SELECT 1 FROM pg_catalog.pg_sleep(0.5)"
    with query.asking(server, "anything") as ask:
        assert ask(longer) == [[b"1"]]
    with query.opened(server, "anything") as session:
        assert session.execute(longer).fetchone() == (1,)
    with query.connected(server) as session:
        assert session.execute(longer).fetchone() == (1,)


def _lines(backup: StoredBackup) -> list[bytes]:
    """Return what is in a script whose pieces stand in any order, and are cut anywhere."""
    return sorted(set(RESTRICT.sub(b"", backup.script()).splitlines()))


def _plant(cluster: Cluster, where: sql.Composable) -> None:
    with cluster.maintenance.connect() as connection:
        for name, value in PLANTED.items():
            connection.execute(
                sql.SQL("ALTER {} SET {} = {}").format(
                    where, sql.Identifier(name.lower()), sql.Literal(value)
                )
                if name != "search_path"
                else sql.SQL("ALTER {} SET search_path = somewhere").format(where)
            )


def test_a_forced_client_encoding_does_not_break_an_euc_jp_database(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("euc_jp")
    backup = back_up(database, tmp_path, PGCLIENTENCODING="UTF8")
    assert b"client_encoding = 'EUC_JP'" in backup.script()
    assert backup.manifest["database"]["encoding"] == "EUC_JP"


def test_a_lock_that_cannot_be_had_ends_the_backup(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    with database.connect() as holder, holder.transaction():
        holder.execute("CREATE TABLE held (a int)")
    with database.connect() as holder, holder.transaction():
        holder.execute("LOCK TABLE held IN ACCESS EXCLUSIVE MODE")
        env = environment(
            database.bin_dir, **backups.settings(database, tmp_path), LOCK_TIMEOUT="1"
        )
        done = run_pgstash(["once"], env)
    assert done.returncode == 14, done.stderr
    assert "held" in done.stderr
    assert "LOCK_TIMEOUT" in done.stderr
    assert stored(tmp_path) == []


def test_the_nearest_client_is_taken(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    major = database.cluster.major
    older = install_pg_dump(tmp_path / "older", FakePgDump(version=f"{major - 1}.1"))
    much_newer = install_pg_dump(tmp_path / "much_newer", FakePgDump(version=f"{major + 2}.1"))
    newer = install_pg_dump(tmp_path / "newer", FakePgDump(version=f"{major + 1}beta1"))
    own = install_pg_dump(tmp_path / "own", FakePgDump(version=f"{major}.9 (Debian {major}.9-1)"))

    def client(*folders: Path) -> str:
        settings = backups.settings(database, tmp_path)
        done = run_pgstash(["once"], environment(*folders, **settings))
        assert done.returncode == 0, done.stderr
        return str(stored(tmp_path)[-1].manifest["client"])

    assert client(much_newer, older, newer, own) == f"{major}.9"
    assert client(much_newer, older, newer) == f"{major + 1}beta1"
    assert client(older, much_newer) == f"{major + 2}.1"


def test_no_client_that_fits(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    major = database.cluster.major
    older = install_pg_dump(tmp_path / "older", FakePgDump(version=f"{major - 1}.1"))
    env = environment(older, **backups.settings(database, tmp_path))
    done = run_pgstash(["once"], env)
    assert done.returncode == 12
    assert f"postgresql-client-{major}" in done.stderr


def test_the_manifest_describes_the_database(make_database: MakeDatabase, tmp_path: Path) -> None:
    database = make_database("mixed")
    with database.connect() as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET work_mem = '7MB'").format(sql.Identifier(database.name))
        )
    manifest = back_up(database, tmp_path).manifest
    described = manifest["database"]
    assert described["encoding"] == "UTF8"
    assert described["collate"] == "C"
    assert described["settings"] == ["work_mem=7MB"]
    assert described["bytes"] > 1_000_000
    with database.connect() as connection:
        assert manifest["server"] == connection.info.parameter_status("server_version")


def test_two_backups_in_one_second_have_two_names(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    database = make_database("mixed")
    env = environment(database.bin_dir, **backups.settings(database, tmp_path))
    results: list[subprocess.CompletedProcess[str]] = []

    def run() -> None:
        results.append(run_pgstash(["once"], env))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    finished = [result for result in results if result.returncode == 0]
    # By its name, or by the lock of one that takes longer than anybody waits for it.
    refused = [result for result in results if result.returncode in {15, 23}]
    assert len(finished) + len(refused) == 3
    assert len(stored(tmp_path)) == len(finished) >= 1
    assert bin_dir(database.cluster.major) == database.bin_dir
