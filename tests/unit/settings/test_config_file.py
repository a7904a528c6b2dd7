"""What a configuration file means: precedence, places, references, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Request, Settings, jobs, secret_variables
from pgstash.settings.config import file

SERVER = """
[servers.eu]
database_url = "postgresql://backup@db.example.com/shop"
storage_url = "file:///tmp"
backup_encryption = false
"""
MANY = f"""
{SERVER}
databases = ["*", "!test_*"]
"""


class Opened:
    """A configuration file in a folder, and the environment next to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pgstash.toml"
        self.environ = {"PGSTASH_CONFIG": str(self.path), "PATH": "/usr/bin:/bin"}

    def __call__(self, text: str, request: Request | None = None, **environ: str) -> file.Config:
        self.path.write_text(text, encoding="utf-8")
        found = file.opened(request or Request(), self.environ | environ, Path("/none"))
        assert found is not None
        return found

    def job(self, text: str, name: str = "eu/shop", **environ: Any) -> Settings:
        return self(text, **environ).job(name)

    def problems(self, text: str, name: str = "eu/shop", **environ: str) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            self.job(text, name, **environ)
        return caught.value.problems


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Opened(tmp_path)


def test_the_more_special_value_takes_precedence(opened: Opened) -> None:
    text = """
        [defaults]
        store = "main"
        backup_retention_days = 2
        sweep_after_days = 2
        retry_attempts = 2
        lock_timeout = 2
        [stores.main]
        storage_url = "file:///tmp"
        backup_retention_days = 3
        sweep_after_days = 3
        retry_attempts = 3
        [servers.eu]
        database_url = "postgresql://db.example.com"
        databases = "*"
        backup_retention_days = 4
        sweep_after_days = 4
        [servers.eu.database.shop]
        backup_retention_days = 5
        """
    variables = ("BACKUP_RETENTION_DAYS", "SWEEP_AFTER_DAYS", "RETRY_ATTEMPTS", "LOCK_TIMEOUT")
    environ = dict.fromkeys((*variables, "DUMP_JOBS"), "1")
    found = opened.job(text, **environ)
    assert [getattr(found, name.lower()) for name in environ] == [5, 4, 3, 2, 1]
    other = opened.job(text, "eu/blog", **environ)
    assert [getattr(other, name.lower()) for name in environ] == [4, 4, 3, 2, 1]


def test_the_settings_of_a_job(opened: Opened) -> None:
    job = opened.job(MANY, "eu/My Shop")
    assert job.job == "eu/My Shop"
    assert job.backup_prefix == "postgres-backups/eu/=4dy=20=53hop"
    assert conninfo_to_dict(job.source_url)["dbname"] == "My Shop"
    assert job.has_source
    one = opened.job(SERVER)
    assert (one.job, one.backup_prefix) == ("eu/shop", "postgres-backups/eu/shop")
    assert one.source_url == "postgresql://backup@db.example.com/shop"


@pytest.mark.parametrize(
    ("section", "shop", "blog"),
    [
        ("[defaults]\nbackup_prefix = 'p'", "p/eu/shop", "p/eu/blog"),
        ("[servers.eu]\nbackup_prefix = 'p'", "p/shop", "p/blog"),
        ("[servers.eu.database.shop]\nbackup_prefix = 'p'", "p", "postgres-backups/eu/blog"),
        ("[defaults]\nstorage_url = 'gs://bucket/p'", "p/eu/shop", "p/eu/blog"),
        ("[servers.eu]\nstorage_url = 'gs://bucket/p'", "p/shop", "p/blog"),
        (
            "[servers.eu]\nbackup_prefix = 'p'\n[defaults]\nstorage_url = 'gs://bucket/q'",
            "p/shop",
            "p/blog",
        ),
        (
            "[defaults]\nbackup_prefix = 'q'\n[servers.eu]\nstorage_url = 'gs://bucket/p'",
            "p/shop",
            "p/blog",
        ),
    ],
)
def test_the_prefix_of_a_level(opened: Opened, section: str, shop: str, blog: str) -> None:
    """Below it are only the folders that it does not name itself."""
    base = "database_url = 'postgresql://h'\ndatabases = '*'"
    text = section.replace("[servers.eu]", f"[servers.eu]\n{base}")
    text = text if "[servers.eu]" in text else f"[servers.eu]\n{base}\n{text}"
    environ = {} if "storage_url" in text else {"STORAGE_URL": "gs://bucket"}
    assert opened.job(text, **environ).backup_prefix == shop
    assert opened.job(text, "eu/blog", **environ).backup_prefix == blog


def test_a_place_hides_those_of_the_levels_below(opened: Opened) -> None:
    """A bucket of the environment, or its directory, is never mixed with a place of the file."""
    keys = {"S3_ACCESS_KEY_ID": "i", "S3_SECRET_ACCESS_KEY": "s", "S3_ENDPOINT": "http://s3"}
    text = "[servers.eu]\ndatabase_url = 'postgresql://h/shop'\n"
    bucket = opened.job(f"{text}s3_bucket = 'mine'", STORAGE_URL="file:///tmp", **keys)
    assert (bucket.storage_url, bucket.s3_bucket) == (None, "mine")
    url = opened.job(f"{text}storage_url = 's3://mine/p'", S3_BUCKET="other", **keys)
    assert (url.s3_bucket, url.backup_prefix) == ("mine", "p/shop")
    environment = opened.job(text, STORAGE_URL="s3://other/q", **keys)
    assert (environment.s3_bucket, environment.backup_prefix) == ("other", "q/eu/shop")


def test_an_empty_value_unsets(opened: Opened) -> None:
    text = f"""
        [defaults]
        exclude_tables = "log_*"
        {MANY}
        [servers.eu.database.shop]
        exclude_tables = ""
        """
    assert opened.job(text, EXCLUDE_TABLES="x").exclude_tables is None
    assert opened.job(text, "eu/blog").exclude_tables == "log_*"


def test_kinds_of_values(opened: Opened) -> None:
    text = f"""{MANY}
        exclude_tables = ["log_*", "tmp_*"]
        hook_before_backup = ["sh", "-c", "echo a b"]
        retry_delay = 1.5
        webhook_on_success = true
        lock_timeout = "7"
        """
    job = opened.job(text)
    assert job.exclude_tables == "log_*,tmp_*"
    assert job.hook_before_backup == "sh -c 'echo a b'"
    assert (job.retry_delay, job.webhook_on_success, job.lock_timeout) == (1.5, True, 7)


def test_references(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k" * 40 + "\n")
    runs = tmp_path / "runs"
    text = f"""
        [defaults]
        backup_encryption = true
        backup_encryption_key = {{ file = "key" }}
        webhook_url = {{ command = ["sh", "-c", "echo x >> {runs}; echo http://h/$0", "$X`id`"] }}
        [servers.eu]
        database_url = {{ env = "EU_URL" }}
        storage_url = "file:///tmp"
        """
    config = opened(text, EU_URL="postgresql://u:hidden-1@h/shop")
    job = config.job("eu/shop")
    assert job.passphrase == "k" * 40
    assert conninfo_to_dict(job.source_url)["password"] == "hidden-1"
    assert job.webhook_url is not None
    assert job.webhook_url.get_secret_value() == "http://h/$X`id`"
    config.job("eu/shop")
    assert runs.read_text() == "x\n"
    assert {"hidden-1", "k" * 40} <= {*job.secrets()}
    assert "EU_URL" in secret_variables(job)
    assert "hidden-1" not in repr(config) + repr(job)


def test_a_secret_in_clear_is_refused(opened: Opened) -> None:
    text = """
        [defaults]
        webhook_url = "https://hooks.example.com/secret-part"
        [servers.eu]
        database_url = "postgresql://u:hidden@h/shop"
        storage_url = "file:///tmp"
        s3_access_key_id = "public"
        copy_off_s3_secret_access_key = "hidden"
        """
    problems = opened.problems(text)
    assert [each.split(" ")[0] for each in problems] == [
        "defaults.webhook_url",
        "servers.eu.database_url",
        "servers.eu.copy_off_s3_secret_access_key",
    ]
    assert all("holds a secret. Write { env = … }" in each for each in problems)
    assert "hidden" not in str(problems)
    assert "secret-part" not in str(problems)
    opened.path.chmod(0o600)
    allowed = f"allow_plaintext_secrets = true\n{text}"
    assert "other users" not in str(opened.job(allowed).warnings())
    opened.path.chmod(0o640)
    job = opened.job(allowed)
    assert "other users can read it" in job.warnings()[0]
    assert "hidden" in job.secrets()


def test_a_value_that_is_not_found(opened: Opened) -> None:
    text = """
        [defaults]
        webhook_url = { file = "none" }
        backup_encryption_old_keys = { command = ["false"] }
        [servers.eu]
        database_url = { env = "EU_URL" }
        storage_url = "file:///tmp"
        """
    problems = opened.problems(text)
    assert problems == [
        (
            f"defaults.webhook_url names {opened.path.parent}/none, which cannot be read: No such "
            "file or directory."
        ),
        (
            "defaults.backup_encryption_old_keys could not be read: the command false failed with "
            "exit status 1."
        ),
        "servers.eu.database_url refers to the variable EU_URL, which is not set.",
    ]


def test_what_a_command_does_not_use_may_be_missing(opened: Opened, tmp_path: Path) -> None:
    """On a machine for restores, nothing but the store has to be there."""
    text = f"""
        [servers.eu]
        database_url = {{ env = "EU_URL" }}
        database_password_command = {{ command = ["touch", "{tmp_path}/run"] }}
        storage_url = "file:///tmp"
        """
    reads = Request(needs=["storage"], only_reads=True)
    found = opened(text, reads).job("eu/shop")
    assert found.backup_prefix == "postgres-backups/eu/shop"
    assert not found.has_source
    assert not (tmp_path / "run").exists()


def test_problems_name_their_path_in_the_file(opened: Opened) -> None:
    text = f"""
        [defaults]
        lock_timeout = "x"
        backup_encryption_key = {{ env = "KEY" }}
        {SERVER}
        backup_intervall = 7
        BACKUP_INTERVAL = 7
        database_url_file = "/run/x"
        copy_off_s3_secret_access_key_file = "/run/x"
        dump_jobs = [1]
        webhook_url = {{ environment = "X" }}
        health_port = 80
        store = "mian"
        [stores.main]
        lock_timeout = 8
        [servers.eu.database.shop]
        databases = "x"
        pgstash_config = "x"
        debug = true
        [server.us]
        """
    assert opened.problems(text) == [
        "server is not a section of this file. Did you mean servers?",
        "servers.eu.store is mian, which is no store. Did you mean main?",
        "servers.eu.backup_intervall is not a setting. Did you mean backup_interval?",
        "servers.eu.BACKUP_INTERVAL must be in lower case: backup_interval.",
        (
            "servers.eu.database_url_file is not a setting of this file. Write database_url = { "
            "file = … }."
        ),
        (
            "servers.eu.copy_off_s3_secret_access_key_file is not a setting of this file. Write "
            "copy_off_s3_secret_access_key = { file = … }."
        ),
        "servers.eu.dump_jobs must be a whole number from 1 to 64.",
        (
            "servers.eu.webhook_url must be a value, or one of { env = … }, { file = … } or { "
            "command = [ … ] }."
        ),
        "servers.eu.health_port is the same for all jobs. Move it to [defaults].",
        "servers.eu.database.shop.databases cannot be set for one database. Move it to the server.",
        "servers.eu.database.shop.pgstash_config cannot be set in the file itself.",
        "servers.eu.database.shop.debug is the same for all jobs. Move it to [defaults].",
    ]
    values = """
        [defaults]
        lock_timeout = 0
        backup_encryption_key = { env = "KEY" }
        [stores.main]
        storage_url = "ftp://x"
        [servers.eu]
        store = "main"
        [servers.eu.database.shop]
        dump_jobs = 99
        """
    assert sorted(opened.problems(values, KEY="k" * 40)) == [
        "defaults.lock_timeout must be a whole number of seconds from 1 to 86400.",
        (
            "servers.eu.backup_encryption is missing, but defaults.backup_encryption_key is set. "
            "Set BACKUP_ENCRYPTION=true to encrypt, or BACKUP_ENCRYPTION=false to store "
            "unencrypted backups."
        ),
        "servers.eu.database.shop.dump_jobs must be a whole number from 1 to 64.",
        (
            "servers.eu.database_url is missing. Expected: a URI such as "
            "postgresql://user@host:5432/database, with the password after the user and a colon. "
            "Or set PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE instead."
        ),
        (
            "stores.main.storage_url does not begin with file://, s3://, azure:// or gs://. "
            "Expected: file:///directory, s3://bucket/prefix, azure://account/container/prefix or "
            "gs://bucket/prefix."
        ),
    ]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("eu1/shop", "has no server eu1. Did you mean eu?"),
        ("shop", "has no server shop. Its servers: eu."),
        ("eu", "--job eu names no database. Write eu/DATABASE."),
        ("eu/test_1", "eu/test_1 is not in servers.eu.databases: *,!test_*."),
    ],
)
def test_a_job_that_there_is_not(opened: Opened, name: str, problem: str) -> None:
    assert opened.problems(MANY, name)[0].endswith(problem)


def test_the_only_job_of_a_server(opened: Opened) -> None:
    assert opened.problems(SERVER, "eu/blog") == ["--job eu/blog: the only job of eu is eu/shop."]


def test_which_settings_a_command_gets(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSTASH_CONFIG", str(opened.path))
    monkeypatch.chdir(opened.path.parent)
    opened(SERVER)
    assert jobs.chosen(Request(), None, may_be_all=False).job == "eu/shop"
    opened(MANY)
    assert jobs.chosen(Request(), "eu/blog", may_be_all=False).job == "eu/blog"
    assert jobs.are_several(jobs.chosen(Request(), None, may_be_all=True))
    assert not jobs.are_several(jobs.chosen(Request(), "eu/blog", may_be_all=False))
    with pytest.raises(ConfigurationError, match="Name one with --job SERVER/DATABASE"):
        jobs.chosen(Request(), None, may_be_all=False)


def test_stores_as_copies(opened: Opened) -> None:
    text = f"""
        [stores.disk]
        storage_url = "file:///var"
        backup_retention_days = 90
        [stores.own]
        storage_url = "file:///usr"
        backup_prefix = "mine"
        {SERVER}
        copy_to = ["disk", "own"]
        copy_disk_backup_retention_days = 91
        """
    job = opened.job(text)
    assert job.of_copy("disk").storage_url == "file:///var"
    assert job.of_copy("disk").backup_retention_days == 91
    assert job.of_copy("disk").backup_prefix == "postgres-backups/eu/shop"
    assert job.of_copy("own").backup_prefix == "mine/eu/shop"
    wrong = text.replace("file:///var", "x://var")
    assert opened.problems(wrong)[0].startswith("stores.disk.storage_url does not begin with")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[servers", "is not valid TOML: "),
        ("", "servers is missing"),
        ("servers = 1", "servers must be tables"),
        ("[servers.'a/b']", 'servers."a/b" is not a usable name'),
        ("[servers]\neu = 1", "servers.eu must be a table."),
        ("defaults = 1\n[servers.eu]", "defaults must be a table."),
        ("[servers.eu]\nlabels = 1", "servers.eu.labels must be a list of strings."),
        ("[servers.eu]\ndatabase = 1", "servers.eu.database must be tables"),
        ("[servers.eu]\nstore = 1", "servers.eu.store must be the name of a store."),
        ("allow_plaintext_secrets = 1\n[servers.eu]", "allow_plaintext_secrets must be true or f"),
        ("[servers.eu]\nexclude_tables = ['a,b']", "a value that is empty or contains a comma."),
        ('[servers.eu]\ntz = "\\u0000"', "contains a NUL character."),
        ("x = " + "[" * 5000, "is nested too deeply"),
        ("x = " + "1" * 5000, "has a number that is too long."),
        ("[servers.eu]\nstore = ''", "servers.eu.store must be the name of a store."),
        (
            "[servers.eu]\nbackup_prefix = true",
            "backup_prefix must be a path such as postgres-backups",
        ),
        ("[servers.eu]\ntz = 1e3", ", in quotes."),
        ("[servers.eu]\ndump_jobs = true", "dump_jobs must be a whole number from 1 to 64."),
    ],
)
def test_a_malformed_file(opened: Opened, text: str, problem: str) -> None:
    name = "a/b/x" if "a/b" in text else "eu/shop"

    def used() -> None:
        config = opened(text)
        config.process()
        config.job(name)

    with pytest.raises(ConfigurationError) as caught:
        used()
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_used(opened: Opened, tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(ConfigurationError) as caught:
            file.opened(Request(), {"PGSTASH_CONFIG": str(path)}, Path("/none"))
        return str(caught.value)

    opened(SERVER)
    opened.path.chmod(0o646)
    assert refusal(opened.path).endswith(f"Run: chmod o-w {opened.path}")
    opened.path.chmod(0o600)
    opened.path.write_bytes(b"\xff")
    assert refusal(opened.path).endswith("is not UTF-8 text.")
    assert refusal(tmp_path).endswith("is not a regular file.")
    assert refusal(tmp_path / "none").endswith("cannot be read: No such file or directory.")
    assert file.opened(Request(), {}, Path("/none")) is None


def test_settings_of_the_process(opened: Opened) -> None:
    found = opened(f"[defaults]\nlog_format = 'json'\n{MANY}").process()
    assert found.log_format == "json"
    assert found.origin.config is not None
    assert found.origin.config.labels("eu") == ()


def checked(config: file.Config) -> list[str]:
    try:
        config.check()
    except ConfigurationError as error:
        return error.problems
    return []


def test_the_whole_file_is_checked(opened: Opened) -> None:
    """All problems of all sections, also those that no job uses, each once."""
    text = """
        [defaults]
        lock_timeout = 0
        storage_url = "file:///tmp"
        [stores.unused]
        s3_buket = "x"
        [servers.eu]
        database_url = "postgresql://h"
        databases = ["*", "!test_*"]
        [servers.eu.database.shop]
        dump_jobs = 0
        [servers.eu.database.test_1]
        dump_jobs = 1
        [servers.us]
        database_url = "postgresql://h"
        [servers.asia]
        database_url = "postgresql://h/shop"
        dump_jobz = 1
        [servers.asia.database.blog]
        """
    problems = checked(opened(text))
    assert (
        problems.count("defaults.lock_timeout must be a whole number of seconds from 1 to 86400.")
        == 1
    )
    right = text.replace("lock_timeout = 0", "").replace("dump_jobs = 0", "dump_jobs = 65")
    assert checked(opened(right)) == [
        "stores.unused.s3_buket is not a setting. Did you mean s3_bucket?",
        "servers.eu.database.shop.dump_jobs must be a whole number from 1 to 64.",
        (
            "servers.eu.database.test_1 is of no job: eu/test_1 is not in servers.eu.databases: "
            "*,!test_*."
        ),
        "servers.us.database_url names no database. Name one in it, or set servers.us.databases.",
        "servers.asia.dump_jobz is not a setting. Did you mean dump_jobs?",
    ]
    assert checked(opened(MANY)) == []
    assert checked(opened(f"{SERVER}[servers.eu.database.blog]")) == [
        "servers.eu.database.blog is of no job: the only job of eu is eu/shop."
    ]


def test_two_jobs_in_one_place(opened: Opened) -> None:
    text = f"""{MANY}
        backup_prefix = "p"
        [servers.us]
        database_url = "postgresql://h"
        databases = "*"
        storage_url = "file:///tmp"
        backup_prefix = "p"
        [servers.us.database.a]
        backup_prefix = "q"
        [servers.us.database.b]
        backup_prefix = "q"
        """
    assert checked(opened(text)) == [
        "servers.us has the same store and prefix as servers.eu. Give it another backup_prefix.",
        (
            "servers.us.database.b has the same store and prefix as servers.us.database.a. Give it "
            "another backup_prefix."
        ),
    ]


OTHER = """
[servers.us]
database_url = "postgresql://h/shop"
storage_url = "file:///tmp"
backup_encryption = false
"""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            f"{MANY}[servers.eu.database.shop]\nbackup_prefix = 'postgres-backups/eu/=53hop'",
            "servers.eu.database.shop has the same store and prefix as the job eu/Shop. ",
        ),
        (
            f"{OTHER}[servers.us.database.shop]\nbackup_prefix = 'postgres-backups/eu/a'\n{MANY}",
            "servers.us.database.shop has the same store and prefix as the job eu/a. ",
        ),
        (
            f"{SERVER}{OTHER}[servers.us.database.shop]\nbackup_prefix='postgres-backups/eu/shop'",
            "servers.us.database.shop has the same store and prefix as the job eu/shop. ",
        ),
        (
            f"""
            {MANY}
            backup_prefix = "p"
            copy_to = "both"
            {OTHER.replace("tmp", "var")}
            backup_prefix = "p"
            copy_to = "both"
            [stores.both]
            storage_url = "file:///usr"
            """,
            (
                "The copy both of servers.us has the same store and prefix as the copy both of "
                "servers.eu. "
            ),
        ),
        (
            f"""
            {MANY}
            backup_prefix = "p"
            {OTHER.replace("tmp", "var")}
            [servers.us.database.shop]
            copy_to = "other"
            backup_prefix = "p/a"
            copy_other_storage_url = "file:///tmp"
            """,
            (
                "The copy other of servers.us.database.shop has the same store and prefix as the "
                "job eu/a. "
            ),
        ),
    ],
)
def test_a_place_in_the_folders_of_a_server(opened: Opened, text: str, problem: str) -> None:
    assert checked(opened(text)) == [f"{problem}Give it another backup_prefix."]


@pytest.mark.parametrize("prefix", ["postgres-backups/eu/test_1", "postgres-backups/eu/b", "p"])
def test_a_place_that_no_job_has(opened: Opened, prefix: str) -> None:
    """The folder of a database that is not selected, or whose backups are elsewhere."""
    text = f"""
        {MANY}
        [servers.eu.database.b]
        backup_prefix = "elsewhere"
        [servers.eu.database.a]
        backup_prefix = "{prefix}"
        """
    assert checked(opened(text)) == []


def test_secrets_of_all_servers_are_removed_from_output(opened: Opened) -> None:
    """A command for several jobs has the settings of none, so it would not know them otherwise."""
    text = MANY.replace("backup@db", "backup:Zx81-not-to-be-shown@db")
    config = opened(f"allow_plaintext_secrets = true\n{text}")
    config.process()
    config.job("eu/shop")
    message = "login refused: Zx81-not-to-be-shown"
    assert Scrubber().scrub(message) == message
    config.server("eu")
    assert Scrubber().scrub(message) == "login refused: ***"


def test_a_store_that_would_have_no_effect(opened: Opened) -> None:
    """The place of the server takes precedence over that of the store, also of one database."""
    text = f"""
        {MANY}
        [servers.eu.database.shop]
        store = "other"
        [stores.other]
        storage_url = "file:///var"
        """
    assert opened.problems(text) == [
        (
            "servers.eu.database.shop.store has no effect: servers.eu has a place for backups, "
            "which takes precedence over that of a store. Move it to a store."
        )
    ]
    moved = text.replace('storage_url = "file:///tmp"', 'store = "main"')
    moved += '[stores.main]\nstorage_url = "file:///tmp"'
    assert opened.job(moved).storage_url == "file:///var"
    assert opened.job(moved, "eu/blog").storage_url == "file:///tmp"


def test_an_address_for_all_servers(opened: Opened) -> None:
    """libpq would take it instead of the host in each URL: one server would be backed up as all."""
    variable = {"PGHOSTADDR": "127.0.0.1"}
    assert opened.job(SERVER, **variable).job == "eu/shop"
    assert opened.problems(f"{SERVER}{OTHER}", **variable)[0].startswith(
        "servers.eu: with PGHOSTADDR, pgstash would connect to the same server for all sections."
    )
    reads = Request(needs=["target"])
    target = {"RESTORE_URL": "postgresql://h/x"} | variable
    assert opened(f"{SERVER}{OTHER}", reads, **target).job("eu/shop").job == "eu/shop"
    given = f"{SERVER}{OTHER}".replace("/shop", "/shop?hostaddr=127.0.0.2")
    assert opened.job(given, **variable).job == "eu/shop"


@pytest.mark.parametrize("variable", ["DATABASE_URL", "PGHOST"])
def test_no_source_of_the_environment_for_several_servers(opened: Opened, variable: str) -> None:
    """A server without a URL would be another name for the one that was there before the file."""
    environ = {variable: "postgresql://old/shop" if variable == "DATABASE_URL" else "old"}
    without = OTHER.replace('database_url = "postgresql://h/shop"', "databases = '*'")
    assert opened.job(without, "us/shop", **environ).has_source
    assert opened.problems(f"{SERVER}{without}", "us/shop", **environ) == [
        (
            "servers.us.database_url is missing. The environment has a source, but that would be "
            "the same for all servers."
        )
    ]
    assert opened.job(f"{SERVER}{without}", **environ).job == "eu/shop"
