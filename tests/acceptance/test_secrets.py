"""No secret leaves: not in the output, the process list, or the store, whatever goes wrong."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import psycopg
import pytest
from psycopg import sql

from support.cli import COMMAND, environment, run_pgstash, started_pgstash
from support.fake_tools import FakePgDump, install_pg_dump, recorded_calls
from support.hooks import Receiver, receiving
from support.postgres import Cluster, Clusters, Database, MakeDatabase
from support.swift import SwiftServer
from support.tiers import later

DATABASE_SECRET = "Tr0ub4dor&3:plånted/db@pass'\"\\ %41"
STORAGE_SECRET = "planted-storage-secret/+=AbCd1234"
PASSPHRASE = "planted passphrase & {more} than $32 characters: 'ß\"\\"
WEBHOOK = "/services/T000/planted-webhook-token"
PING = "/planted-uuid-7a1c0000-0000-4000"
KEY_ID = "PLANTEDKEYID0001"
PLANTED = {
    "database password": DATABASE_SECRET,
    "storage secret": STORAGE_SECRET,
    "passphrase": PASSPHRASE,
    "webhook": WEBHOOK,
    "ping": PING,
    "access key": KEY_ID,
}


def leaks(text: str) -> list[str]:
    """Name each planted secret that the text holds in any form that somebody could read."""
    found = []
    for name, secret in PLANTED.items():
        forms = {
            secret,
            quote(secret, safe=""),
            quote_plus(secret),
            repr(secret)[1:-1],
            json.dumps(secret)[1:-1],
            base64.b64encode(secret.encode()).decode(),
            secret.encode().hex(),
            # Half of a secret is a leak too.
            secret[: len(secret) // 2 + 1],
            secret[len(secret) // 2 - 1 :],
        }
        found += [f"{name} as {form!r}" for form in forms if form in text]
    return found


@pytest.fixture(scope="module")
def secret_role(clusters: Clusters, newest_cluster: Cluster) -> str:
    """A superuser whose password is a secret that needs every kind of escaping."""
    cluster = clusters.get(newest_cluster.major, "scram-sha-256")
    with cluster.maintenance.connect() as connection:
        connection.execute(
            sql.SQL("CREATE ROLE planted SUPERUSER LOGIN PASSWORD {}").format(
                sql.Literal(DATABASE_SECRET)
            )
        )
    return "planted"


@pytest.fixture
def database(clusters: Clusters, newest_cluster: Cluster, make_database: MakeDatabase) -> Database:
    return make_database("mixed", on=clusters.get(newest_cluster.major, "scram-sha-256"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def env(
    database: Database,
    secret_role: str,
    swift_server: SwiftServer,
    s3_bucket: str,
    receiver: Receiver,
) -> dict[str, str]:
    cluster = database.cluster
    login = f"{secret_role}:{quote(DATABASE_SECRET, safe='')}"
    return environment(
        database.bin_dir,
        DATABASE_URL=f"postgresql://{login}@{cluster.host}:{cluster.port}/{database.name}",
        S3_ENDPOINT=swift_server.endpoint,
        S3_BUCKET=s3_bucket,
        S3_ACCESS_KEY_ID=swift_server.access_key_id,
        S3_SECRET_ACCESS_KEY=swift_server.secret_access_key,
        BACKUP_ENCRYPTION="true",
        BACKUP_ENCRYPTION_KEY=PASSPHRASE,
        WEBHOOK_URL=receiver.url(WEBHOOK),
        HEALTHCHECK_PING_URL=receiver.url(PING),
        WEBHOOK_ON_SUCCESS="true",
        RETRY_ATTEMPTS="1",
        RETRY_DELAY="0.1",
        DEBUG="true",
    )


def run(env: dict[str, str]) -> tuple[int, str]:
    done = run_pgstash(["once"], env, timeout=120)
    return done.returncode, done.stdout + done.stderr


Break = Callable[[dict[str, str], Path], None]


def wrong_storage_secret(env: dict[str, str], _: Path) -> None:
    env["S3_SECRET_ACCESS_KEY"] = STORAGE_SECRET


def wrong_access_key(env: dict[str, str], _: Path) -> None:
    env["S3_ACCESS_KEY_ID"] = KEY_ID


def no_webhook(env: dict[str, str], _: Path) -> None:
    no_server(env, _)
    env["WEBHOOK_URL"] = f"http://127.0.0.1:1{WEBHOOK}"
    env["HEALTHCHECK_PING_URL"] = f"http://user:{quote(STORAGE_SECRET, safe='')}@127.0.0.1:1{PING}"


def no_store(env: dict[str, str], _: Path) -> None:
    env["S3_ENDPOINT"] = "http://127.0.0.1:1"


def no_server(env: dict[str, str], _: Path) -> None:
    env["DATABASE_URL"] = f"postgresql://u:{quote(DATABASE_SECRET, safe='')}@127.0.0.1:1/x"


def wrong_user(env: dict[str, str], _: Path) -> None:
    env["DATABASE_URL"] = env["DATABASE_URL"].replace("planted:", "somebody:", 1)


def password_not_encoded(env: dict[str, str], _: Path) -> None:
    env["DATABASE_URL"] = f"postgresql://u:{DATABASE_SECRET}@127.0.0.1:1/x"


def everything_malformed(env: dict[str, str], _: Path) -> None:
    env["DATABASE_URL"] = f"mysql://u:{DATABASE_SECRET}@h/x"
    env["S3_ENDPOINT"] = f"https://{KEY_ID}:secret@s3.example.com/bucket"
    env["S3_SECRET_ACCESS_KEY_FILE"] = "/nonexistent"
    env["WEBHOOK_URL"] = f"gopher://hooks.example.com{WEBHOOK}"
    env["HEALTHCHECK_PING_URL"] = f"https://hc.example.com:99999{PING}"
    env["BACKUP_ENCRYPTION_KEY"] = PASSPHRASE + "\x01"


def tool_that_tells(env: dict[str, str], folder: Path) -> None:
    behaviour = FakePgDump(version="19.1", leak_password=True, complete=False, status=1)
    env["PATH"] = f"{install_pg_dump(folder / 'bin', behaviour)}:/usr/bin:/bin"


def tool_that_dies(env: dict[str, str], folder: Path) -> None:
    uri = f"postgresql://u:{quote(DATABASE_SECRET, safe='')}@h/x"
    behaviour = FakePgDump(
        version="19.1",
        complete=False,
        status=1,
        stderr=f"connection to {uri} failed, password={DATABASE_SECRET}\n",
    )
    env["PATH"] = f"{install_pg_dump(folder / 'bin', behaviour)}:/usr/bin:/bin"


def unforeseen(env: dict[str, str], folder: Path) -> None:
    """A library that raises what nobody foresaw, with the secrets in its message."""
    (folder / "sitecustomize.py").write_text(
        "import psycopg\n"
        "def connect(conninfo, **_):\n"
        "    raise RuntimeError(f'unforeseen {conninfo}')\n"
        "psycopg.connect = connect\n"
    )
    env["PYTHONPATH"] = str(folder)


BREAKS: list[Break] = [
    wrong_storage_secret,
    wrong_access_key,
    no_webhook,
    no_store,
    no_server,
    wrong_user,
    password_not_encoded,
    everything_malformed,
    tool_that_tells,
    tool_that_dies,
    unforeseen,
]


CASES = [(break_it, layout) for break_it in BREAKS for layout in ("text", "json")]


# Secrets are removed before the layout; of a traceback each layout makes something else.
@pytest.mark.parametrize(
    ("break_it", "layout"),
    later(CASES, *(each for each in CASES if each[1] == "json" and each[0] != unforeseen)),
    ids=lambda value: getattr(value, "__name__", value),
)
def test_output_of_a_failure(
    break_it: Break, layout: str, env: dict[str, str], tmp_path: Path, receiver: Receiver
) -> None:
    break_it(env, tmp_path)
    status, output = run(env | {"LOG_FORMAT": layout})
    assert status > 0
    assert output
    assert leaks(output) == []
    told = break_it not in (no_webhook, everything_malformed, password_not_encoded)
    assert sorted(receiver.targets) == ([f"{PING}/fail", f"{PING}/start", WEBHOOK] if told else [])
    for request in receiver.received:
        assert leaks(request.body.decode()) == []


def test_an_unforeseen_error_is_told_with_its_traceback(
    env: dict[str, str], tmp_path: Path
) -> None:
    unforeseen(env, tmp_path)
    status, output = run(env)
    assert status == 70
    assert "Traceback" in output
    assert "RuntimeError: unforeseen" in output


def test_output_and_objects_of_a_success(
    env: dict[str, str], swift_server: SwiftServer, s3_bucket: str, receiver: Receiver
) -> None:
    status, output = run(env)
    assert status == 0, output
    assert leaks(output) == []
    assert sorted(receiver.targets) == [PING, f"{PING}/start", WEBHOOK]
    assert [leaks(request.body.decode()) for request in receiver.received] == [[], [], []]
    client = swift_server.client
    objects = client.list_objects_v2(Bucket=s3_bucket)["Contents"]
    assert len(objects) == 5
    for each in objects:
        found = client.get_object(Bucket=s3_bucket, Key=each["Key"])
        text = each["Key"] + repr(found["Metadata"]) + found["Body"].read().decode("latin1")
        assert leaks(text) == []


def test_the_manifest_holds_none_either(env: dict[str, str], tmp_path: Path) -> None:
    """Not encrypted, so that everything in it can be read."""
    env |= {"STORAGE_URL": tmp_path.as_uri(), "BACKUP_ENCRYPTION": "false"}
    status, output = run(env)
    assert status == 0, output
    [manifest] = tmp_path.glob("*/backup_*.manifest.json.gz")
    text = subprocess.run(
        ["gunzip", "-c", manifest], capture_output=True, text=True, check=True
    ).stdout
    assert '"tables"' in text
    assert leaks(text) == []


@contextlib.contextmanager
def watched_processes() -> Iterator[set[str]]:
    """Collect the arguments of all processes that show up meanwhile, as ``ps`` would."""
    seen: set[str] = set()
    stop = threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for command_line in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(command_line.read_text(errors="replace"))
            stop.wait(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def test_the_process_list(env: dict[str, str], tmp_path: Path) -> None:
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1", silence=1.0))
    env["PATH"] = f"{tools}:/usr/bin:/bin"
    with watched_processes() as seen:
        status, output = run(env)
    assert status == 0, output
    assert any("pg_dump" in words and "--dbname=" in words for words in seen)
    assert [leak for words in seen for leak in leaks(words)] == []


def test_a_child_gets_what_it_needs_and_no_more(env: dict[str, str], tmp_path: Path) -> None:
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1"))
    env |= {
        "PATH": f"{tools}:/usr/bin:/bin",
        "AWS_SECRET_ACCESS_KEY": STORAGE_SECRET,
        "OTHER_SECRET": STORAGE_SECRET,
        "PGAPPNAME": "somebody else",
    }
    status, output = run(env)
    assert status == 0, output
    calls = recorded_calls(tools)
    assert calls
    for call in calls:
        given = call["environment"]
        assert given["PGPASSWORD"] == DATABASE_SECRET
        others = json.dumps({name: value for name, value in given.items() if name != "PGPASSWORD"})
        assert leaks(others + json.dumps(call["arguments"])) == []
        assert not {"AWS_SECRET_ACCESS_KEY", "OTHER_SECRET", "BACKUP_ENCRYPTION_KEY"} & given.keys()


def test_secrets_that_have_no_variable_reach_the_child_too(
    env: dict[str, str], tmp_path: Path
) -> None:
    """The passphrase of a client key: in libpq's parameters, and in no environment variable."""
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1"))
    env["PATH"] = f"{tools}:/usr/bin:/bin"
    secret = quote(STORAGE_SECRET, safe="")
    env["DATABASE_URL"] += f"?sslpassword={secret}"
    status, output = run(env)
    assert status == 0, output
    calls = recorded_calls(tools)
    assert calls
    for call in calls:
        assert leaks(json.dumps(call["arguments"])) == []
        [target] = [word for word in call["arguments"] if word.startswith("--dbname=")]
        parameters = psycopg.conninfo.conninfo_to_dict(target.removeprefix("--dbname="))
        assert parameters["service"] == "pgstash"
        assert call["environment"]["PGSERVICEFILE"].startswith("/proc/self/fd/")


def test_a_signal(env: dict[str, str], tmp_path: Path, receiver: Receiver) -> None:
    tools = install_pg_dump(tmp_path / "bin", FakePgDump(version="19.1", hang="alone"))
    env["PATH"] = f"{tools}:/usr/bin:/bin"
    with started_pgstash(["once"], env, command=(COMMAND,)) as process:
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Uploading" in line:
                break
        process.terminate()
        output, errors = process.communicate(timeout=30)
    assert process.returncode == -15
    assert leaks("".join(lines) + output + errors) == []
    assert sorted(receiver.targets) == [f"{PING}/fail", f"{PING}/start", WEBHOOK]
