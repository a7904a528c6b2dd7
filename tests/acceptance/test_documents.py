"""The documents say what is so: their commands run, their links lead somewhere."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest

from support.backups import PASSPHRASE, StoredBackup, back_up
from support.compare import compare
from support.databases import BREAKING_UNDER_CLEAN, ROUND_TRIPPING
from support.postgres import REPOSITORY, Cluster, Database, MakeDatabase, clean_environment
from support.tiers import later

RECIPE = REPOSITORY / "docs" / "how-to" / "restore-without-pgstash.md"
WHAT_IS_DUMPED = REPOSITORY / "docs" / "explanation" / "what-is-dumped.md"
BLOCK = re.compile(r"<!-- test: ([\w-]+) -->\n```sh\n(.*?)```", re.DOTALL)
EXAMPLE = re.compile(r"backup_20260131_020000")
# Pages that name modules by their paths below src/pgstash.
ABOUT_THE_CODE = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "docs/explanation/data-path.md",
    "docs/explanation/pruning.md",
    "docs/explanation/service.md",
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def documents() -> list[Path]:
    found = []
    for folder, folders, files in os.walk(REPOSITORY):
        # Neither .cache nor .venv, which have many thousands of files.
        folders[:] = [each for each in folders if not each.startswith(".")]
        found += [Path(folder, each) for each in files if each.endswith(".md")]
    return sorted(found)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, made as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def run_blocks(
    kind: str,
    backup: StoredBackup,
    target: Database,
    page: Path = RECIPE,
    *,
    tools: Path | None = None,
) -> list[subprocess.CompletedProcess[str]]:
    """Run the page's commands for this kind of backup as they stand there."""
    environment = clean_environment(tools or target.bin_dir) | {
        "ARCHIVE": str(backup.archive),
        "MANIFEST": str(backup.manifest_file),
        "TARGET": target.conninfo,
        "GLOBALS": str(next(backup.archive.parent.glob("backup_*.globals.gz*"))),
        "PRIVILEGES": str(next(backup.archive.parent.glob("backup_*.privileges.sql.gz*"))),
        "BACKUP_ENCRYPTION_KEY": PASSPHRASE,
    }
    return [
        subprocess.run(
            ["bash", "-c", block],
            env=environment,
            cwd=backup.archive.parent,
            capture_output=True,
            text=True,
            check=False,
        )
        for block_kind, block in BLOCK.findall(page.read_text())
        if block_kind == kind
    ]


@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_the_recipe_restores(kind: str, make_database: MakeDatabase, tmp_path: Path) -> None:
    source, target = make_database("mixed"), make_database()
    backup = back_up(source, tmp_path, encrypted=kind == "encrypted")
    check, restore = run_blocks(kind, backup, target)
    assert check.returncode == 0, check.stderr
    digests = re.findall(r"\b[0-9a-f]{64}\b", check.stdout)
    assert len(digests) == 2
    assert digests[0] == digests[1]
    assert restore.returncode == 0, restore.stderr
    assert restore.stderr == ""
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []


@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_the_recipe_gives_owners_and_privileges(
    kind: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source, target = make_database("mixed"), make_database()
    source.run_sql(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO pg_monitor;"
        " ALTER SCHEMA public OWNER TO pg_monitor;"
        ' ALTER DATABASE :"DBNAME" OWNER TO pg_monitor'
    )
    backup = back_up(source, tmp_path, encrypted=kind == "encrypted")
    _, restore = run_blocks(kind, backup, target)
    assert restore.returncode == 0, restore.stderr
    [done] = run_blocks(f"privileges-{kind}", backup, target)
    assert (done.returncode, done.stderr) == (0, "")
    query = (
        "SELECT relname, pg_get_userbyid(relowner), relacl FROM pg_class"
        " WHERE relnamespace = 'public'::regnamespace UNION ALL"
        " SELECT nspname, pg_get_userbyid(nspowner), nspacl FROM pg_namespace"
        " WHERE nspname = 'public' UNION ALL"
        " SELECT 'database', pg_get_userbyid(datdba), COALESCE(datacl, acldefault('d', datdba))"
        " FROM pg_database WHERE datname = current_database() ORDER BY 1"
    )
    expected = source.run_sql(query)
    assert "pg_monitor=r/" in expected
    assert "database|pg_monitor" in expected
    assert target.run_sql(query) == expected


@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_the_recipe_fails_on_a_damaged_archive(
    kind: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source, target = make_database("mixed"), make_database()
    backup = back_up(source, tmp_path, encrypted=kind == "encrypted")
    data = bytearray(backup.archive.read_bytes())
    data[len(data) // 2] ^= 1
    backup.archive.write_bytes(data)
    check, restore = run_blocks(kind, backup, target)
    digests = re.findall(r"\b[0-9a-f]{64}\b", check.stdout)
    assert digests[0] != digests[1]
    assert restore.returncode != 0


@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_the_recipe_shows_the_roles(kind: str, make_database: MakeDatabase, tmp_path: Path) -> None:
    source = make_database("mixed")
    backup = back_up(source, tmp_path, encrypted=kind == "encrypted")
    [shown] = run_blocks(f"globals-{kind}", backup, source)
    assert shown.returncode == 0, shown.stderr
    assert f"CREATE ROLE {source.cluster.user};" in shown.stdout


def test_the_recipe_authenticates_a_manifest(make_database: MakeDatabase, tmp_path: Path) -> None:
    source = make_database("mixed")
    backup = back_up(source, tmp_path, encrypted=True)
    [shown] = run_blocks("hmac", backup, source)
    assert shown.returncode == 0, shown.stderr
    held, computed = re.findall(r"\b[0-9a-f]{64}\b", shown.stdout.lower())
    assert held == computed == backup.manifest["hmac"]


def test_the_recipe_shows_a_manifest_that_was_changed(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    source = make_database("mixed")
    backup = back_up(source, tmp_path, encrypted=True)
    stored = backup.manifest_file.read_bytes()
    salt = stored[8:16]
    text = gzip.decompress(aes("-d", stored))
    for changed in (text, text.replace(b'"sha256": "', b'"sha256": "0', 1)):
        # Under the old salt, so that the key is the same; openssl writes no header then.
        again = aes("-e", gzip.compress(changed), "-S", salt.hex())
        backup.manifest_file.write_bytes(b"Salted__" + salt + again)
        [shown] = run_blocks("hmac", backup, source)
        held, computed = re.findall(r"\b[0-9a-f]{64}\b", shown.stdout.lower())
        assert (held == computed) == (changed == text)


def aes(direction: str, data: bytes, *options: str) -> bytes:
    command = ["openssl", "enc", direction, "-aes-256-cbc", "-pbkdf2", "-pass", "env:KEY", *options]
    env = clean_environment() | {"KEY": PASSPHRASE}
    return subprocess.run(command, input=data, env=env, stdout=subprocess.PIPE, check=True).stdout


@pytest.mark.parametrize("kind", ["encrypted", "plain"])
def test_the_recipe_names_the_objects(
    kind: str, make_database: MakeDatabase, tmp_path: Path
) -> None:
    backup = back_up(make_database("mixed"), tmp_path, encrypted=kind == "encrypted")
    [block] = [block for name, block in BLOCK.findall(RECIPE.read_text()) if name == "names"]
    base = backup.archive.name.partition(".")[0]
    done = subprocess.run(
        [
            "bash",
            "-ec",
            EXAMPLE.sub(base, block) + 'echo "$ARCHIVE" "$MANIFEST" "$GLOBALS" "$PRIVILEGES"',
        ],
        env=clean_environment(),
        cwd=backup.archive.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    archive, manifest, roles, privileges = done.stdout.split()
    assert (archive, manifest) == (backup.archive.name, backup.manifest_file.name)
    assert ".globals.gz" in roles
    assert ".privileges.sql.gz" in privileges


# As psql was before August 2025.
OLDER_PSQL = """#!/bin/bash
script=$(mktemp)
trap 'rm "$script"' EXIT
cat > "$script"
if grep -aq '^\\\\\\(un\\)\\?restrict ' "$script"; then
    echo 'invalid command \\restrict' >&2
    exit 3
fi
{psql} "$@" < "$script"
"""


def test_the_recipe_for_an_older_psql(make_database: MakeDatabase, tmp_path: Path) -> None:
    source, target = make_database("nasty_text"), make_database()
    backup = back_up(source, tmp_path)
    assert b"\n\\restrict " in backup.script()
    older = tmp_path / "older"
    older.mkdir()
    psql = older / "psql"
    psql.write_text(OLDER_PSQL.format(psql=source.bin_dir / "psql"))
    psql.chmod(0o755)
    _, refused = run_blocks("plain", backup, target, tools=older)
    assert refused.returncode != 0
    assert "invalid command" in refused.stderr
    [done] = run_blocks("restrict", backup, target, tools=older)
    assert (done.returncode, done.stderr) == (0, "")
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []


@pytest.mark.newest_first
@pytest.mark.parametrize("case", later(BREAKING_UNDER_CLEAN, "domain", "inherited default"))
def test_the_cases_that_need_the_drops_left_out(
    case: str, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source, target = (make_database(on=cluster) for _ in range(2))
    source.run_sql(BREAKING_UNDER_CLEAN[case])
    backup = back_up(source, tmp_path)
    _, failed = run_blocks("plain", backup, target)
    assert failed.returncode != 0
    assert "does not exist" in failed.stderr
    [restored] = run_blocks("plain", backup, make_database(on=cluster), WHAT_IS_DUMPED)
    assert (restored.returncode, restored.stderr) == (0, "")


@pytest.mark.newest_first
@pytest.mark.parametrize("kind", later(["encrypted", "plain"], "plain"))
def test_with_the_drops_left_out_everything_is_restored(
    kind: str, cluster: Cluster, make_database: MakeDatabase, tmp_path: Path
) -> None:
    source, target = make_database("breaks_under_clean", on=cluster), make_database(on=cluster)
    source.run_sql(
        "CREATE TABLE lines (line text); INSERT INTO lines VALUES ('DROP TABLE a;'), "
        "('ALTER TABLE a DROP b;'), ('CREATE OR REPLACE '), ('-- Name: '), ('--'), ('SET default_')"
    )
    backup = back_up(source, tmp_path, encrypted=kind == "encrypted")
    [restored] = run_blocks(kind, backup, target, WHAT_IS_DUMPED)
    assert (restored.returncode, restored.stderr) == (0, "")
    assert compare(source.conninfo, target.conninfo, bin_dir=source.bin_dir) == []


SAMPLES = [*ROUND_TRIPPING, "breaks_under_clean"]


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "sample",
    later(SAMPLES, *SAMPLES[2:5], *SAMPLES[7:-1]),
)
def test_without_the_drops_it_is_the_script_of_a_dump_without_clean(
    sample: str, cluster: Cluster, make_database: MakeDatabase
) -> None:
    commands = set(re.findall(r"sed -E '[^']*'", WHAT_IS_DUMPED.read_text()))
    assert len(commands) == 1
    source = make_database(sample, on=cluster)
    options = ("--no-owner", "--no-acl")
    done = subprocess.run(
        ["bash", "-c", commands.pop()],
        input=source.plain_dump(*options, "--clean", "--if-exists"),
        env=clean_environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert significant(done.stdout) == significant(source.plain_dump(*options))


def significant(script: bytes) -> list[bytes]:
    """Return the lines without those of random keys, and the empty ones."""
    return [line for line in script.splitlines() if not re.match(rb"\\(un)?restrict |$", line)]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def paths_named_in(text: str) -> set[str]:
    """Return what reads as a path of this repository: a file's name, or a folder in backticks."""
    text = re.sub(r"\]\([^)]*\)|https?://\S+", "", text)
    files = re.findall(r"(?<![\w./-])[\w.-]+(?:/[\w.-]+)*\.(?:md|py|toml|txt|yml)\b", text)
    return {*files, *re.findall(r"`(?:\./)?([\w.-]+(?:/[\w.-]*)+)(?=[` ])", text)}


@pytest.mark.parametrize("page", ABOUT_THE_CODE)
def test_every_path_that_is_named_exists(page: str) -> None:
    named = paths_named_in((REPOSITORY / page).read_text())
    assert len(named) >= 3
    below = (REPOSITORY, REPOSITORY / "src" / "pgstash")
    assert [
        each for each in sorted(named) if not any((root / each).exists() for root in below)
    ] == []


def test_a_path_is_found_however_it_is_written() -> None:
    text = (
        'In `one/` and `a/b.py`, `./c/d --all`, ["label<br>e/f.py"], g.toml; not in `/readyz`, '
        "[a page](h/i.md), https://example.com/j.md or `k`."
    )
    assert paths_named_in(text) == {"one/", "a/b.py", "c/d", "e/f.py", "g.toml"}


def test_the_architecture_names_a_test_for_each_invariant() -> None:
    text = (REPOSITORY / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"(?m)^\| (\d+) \|.*$", text)
    guarded = re.findall(r"(?m)^\| (\d+) \|.*`tests/[\w./]+`.*$", text)
    assert rows == guarded == [str(number) for number in range(1, len(rows) + 1)]
    assert len(rows) >= 14


def test_the_architecture_has_every_package_in_its_layer() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    [contract] = [
        each
        for each in project["tool"]["importlinter"]["contracts"]
        if each.get("id") == "packages"
    ]
    table = (REPOSITORY / "ARCHITECTURE.md").read_text().partition("## Packages")[2]
    rows = [re.findall(r"`(\w+)/?`", row) for row in re.findall(r"(?m)^\| (`.*?) \|", table)]
    layers = [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
    assert [sorted(row) for row in rows[: len(layers)]] == [sorted(layer) for layer in layers]


# The changelog names files of earlier versions.
@pytest.mark.parametrize(
    "document",
    [
        path
        for path in documents()
        if path.relative_to(REPOSITORY).as_posix() not in {"CHANGELOG.md", *ABOUT_THE_CODE}
    ],
    ids=lambda path: path.name,
)
def test_documents_name_files_that_exist(document: Path) -> None:
    path = re.compile(r"`(?:\./)?((?:benchmarks|docs|scripts|src|tests)/[\w./-]+)")
    named = path.findall(document.read_text())
    assert [each for each in named if not (REPOSITORY / each).exists()] == []


# https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
PERMISSIONS = {
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "complete_multipart_upload": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_objects_v2": "s3:ListBucket",
    "list_parts": "s3:ListMultipartUploadParts",
    "put_object": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "upload_part_copy": "s3:PutObject",  # and of what it copies, s3:GetObject
}

# Of check, and of PRUNE_VERSIONS: the page has them apart from the policy.
OPTIONAL = {
    "get_bucket_lifecycle_configuration": "s3:GetLifecycleConfiguration",
    "get_bucket_versioning": "s3:GetBucketVersioning",
    "get_object_lock_configuration": "s3:GetBucketObjectLockConfiguration",
    "list_object_versions": "s3:ListBucketVersions",
}


def test_the_bucket_policy_allows_each_request_and_no_other() -> None:
    code = "".join(
        file.read_text() for file in (REPOSITORY / "src/pgstash/storage/s3").glob("*.py")
    )
    requests = set(re.findall(r"client\.([a-z_0-9]+)\(", code))
    page = (REPOSITORY / "docs" / "how-to" / "bucket-policy.md").read_text()
    [policy] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    allowed = [action for part in json.loads(policy)["Statement"] for action in part["Action"]]
    needed = {PERMISSIONS[request] for request in requests - OPTIONAL.keys()}
    assert sorted(allowed) == sorted(needed)
    for request, permission in OPTIONAL.items():
        assert request in requests
        assert f"`{permission}`" in page
    assert sorted(re.findall(r"(?m)^\| `(s3:\w+)` \|", page)) == sorted(allowed)


def test_what_is_run_is_what_was_installed() -> None:
    pages = ["README.md", "docs/tutorial/first-backup.md", "docs/how-to/run-on-a-schedule.md"]
    for page in pages:
        text = (REPOSITORY / page).read_text()
        lines = [line for line in text.splitlines() if line.startswith("    ")]
        commands = [line for line in lines if re.search(r"\b(pgstash once|pip install)\b", line)]
        assert commands, page
        assert [line for line in commands if "/opt/pgstash/bin/" not in line] == [], page


def test_every_page_is_listed() -> None:
    index = (REPOSITORY / "docs" / "README.md").read_text()
    pages = [path for path in documents() if path.parent.parent == REPOSITORY / "docs"]
    assert len(pages) >= 9
    assert [path.name for path in pages if path.name not in index] == []


def test_troubleshooting_has_the_causes_of_each_error() -> None:
    statuses = (REPOSITORY / "docs" / "reference" / "exit-codes.md").read_text()
    page = (REPOSITORY / "docs" / "how-to" / "troubleshooting.md").read_text()
    errors = re.findall(r"(?m)^\| (\d+) \| `(\w+)` \|", statuses)
    assert len(errors) > 40
    explained = re.findall(r"(?m)^\| `(\w+)` \| (\d+) \| .+ \| .+ \|$", page)
    assert explained == [(name, status) for status, name in errors]


def options_by_command() -> dict[str, set[str]]:
    """Return the options of each command, from the page that is made of --help."""
    page = (REPOSITORY / "docs" / "reference" / "cli.md").read_text()
    found = {}
    for part in re.split(r"(?m)^#+ (?=pgstash)", page)[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = set(re.findall(r"--[a-z][a-z-]*", text.partition("Options:")[2]))
    return found


def commands_in(text: str) -> list[tuple[str, str]]:
    """Return each command of pgstash in lines of code, with its arguments."""
    fenced = re.findall(r"(?s)```sh\n(.*?)```", text)
    indented = re.findall(r"(?m)^    .*$", text.replace("\\\n", " "))
    lines = "\n".join([*fenced, *indented])
    return re.findall(
        r"(?m)(?:^|[\s/;&(])pgstash (?:--config \S+ )?((?:keys |config )?[a-z][a-z-]*)([^|;&#\n]*)",
        lines,
    )


@pytest.mark.parametrize(
    "document", sorted(REPOSITORY.glob("docs/how-to/**/*.md")), ids=lambda path: path.name
)
def test_commands_have_the_options_that_are_printed(document: Path) -> None:
    known = options_by_command()
    for command, arguments in commands_in(document.read_text()):
        if command == "pgstash":  # docker exec CONTAINER pgstash
            continue
        assert f"pgstash {command}" in known
        options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", arguments))
        assert options <= known[f"pgstash {command}"], (command, arguments)


def test_a_command_is_found_where_it_is_printed() -> None:
    text = (
        "Run `pgstash x`.\n\n    $ A=b pgstash list --all | cat\n\n```sh\npgstash keys add k\n```\n"
    )
    assert commands_in(text) == [("keys add", " k"), ("list", " --all ")]
    assert "--into-existing" in options_by_command()["pgstash restore"]


def test_each_dependency_has_its_reason() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    text = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## Dependencies")[2]
    cells = ", ".join(re.findall(r"(?m)^\| ([^|]+) \| [^|]+ \|$", text)).split(", ")
    names = [re.split(r"[^\w-]", each)[0] for each in wanted]
    assert [name for name in names if name not in cells] == []
