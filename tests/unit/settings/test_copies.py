"""Each copy has the settings of a store under its name, checked like those of the primary."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from pgstash import settings
from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Need, Settings, copies, copy_to

SOURCE = {"DATABASE_URL": "postgresql://u@h/shop"}
PRIMARY = SOURCE | {
    "STORAGE_URL": "file:///backups",
    "BACKUP_PREFIX": "team/shop",
    "BACKUP_RETENTION_DAYS": "14",
    "RETRY_ATTEMPTS": "5",
    "RETRY_DELAY": "2",
}
DISK = {"COPY_DISK_STORAGE_URL": "file:///mnt/disk"}
KEYS = {
    "COPY_OFFSITE_S3_ACCESS_KEY_ID": "PlantedKey1",
    "COPY_OFFSITE_S3_SECRET_ACCESS_KEY": "PlantedSecret1",
}
OFFSITE = KEYS | {
    "COPY_OFFSITE_S3_ENDPOINT": "https://s3.example.com",
    "COPY_OFFSITE_S3_BUCKET": "copies",
}
BOTH = PRIMARY | DISK | OFFSITE | {"COPY_TO": "offsite,disk"}
NO_FILE = Path("/nonexistent/.env")
ONLY_COPIES: list[Need] = ["copies"]


def load(values: dict[str, str], dotenv: Path = NO_FILE) -> Settings:
    return settings.load(dict(values), dotenv)


def problems(values: dict[str, str], dotenv: Path = NO_FILE) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(values, dotenv)
    return caught.value.problems


def without(values: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if name not in names}


def test_each_copy_has_a_store_of_its_own() -> None:
    found = load(BOTH)
    assert found.copy_names == ["offsite", "disk"]
    assert found.warnings() == []
    offsite, disk = found.of_copy("offsite"), found.of_copy("disk")
    assert disk.storage_folder == Path("/mnt/disk")
    assert (offsite.s3_url, offsite.s3_bucket) == ("https://s3.example.com", "copies")
    assert offsite.storage_url is None
    assert disk.s3_secret_access_key is None
    assert [each.copy_name for each in (found, offsite, disk)] == ["", "offsite", "disk"]
    assert offsite.primary is found
    assert offsite.copy_names == []
    assert offsite.source_url == found.source_url


def test_a_copy_inherits_prefix_retries_and_retention_but_no_store() -> None:
    values = BOTH | {
        "S3_TAGS": "team=data",
        "S3_OBJECT_LOCK_DAYS": "3",
        "PRUNE_VERSIONS": "true",
        "AZURE_STORAGE_KEY": "UGxhbnRlZA==",
        "RETENTION_KEEP_DAILY": "8",
        "COPY_OFFSITE_BACKUP_RETENTION_DAYS": "90",
        "COPY_OFFSITE_RETENTION_KEEP_YEARLY": "3",
        "COPY_OFFSITE_RETRY_ATTEMPTS": "9",
    }
    offsite, disk = load(values).of_copy("offsite"), load(values).of_copy("disk")
    for copy in (offsite, disk):
        assert copy.backup_prefix == "team/shop"
        assert copy.retry_delay == 2
        assert copy.retention_keep_daily == 8
        assert copy.s3_tags is None
        assert copy.s3_object_lock_days is None
        assert copy.prune_versions is False
        assert copy.azure_storage_key is None
    assert (disk.backup_retention_days, disk.retry_attempts) == (14, 5)
    assert (offsite.backup_retention_days, offsite.retry_attempts) == (90, 9)
    assert (offsite.retention_keep_yearly, disk.retention_keep_yearly) == (3, None)


def test_the_prefix_in_a_url_is_that_of_the_copy_or_of_the_primary() -> None:
    bucket = without(OFFSITE, "COPY_OFFSITE_S3_BUCKET")
    values = PRIMARY | bucket | {"COPY_TO": "offsite"}
    found = load(values | {"COPY_OFFSITE_STORAGE_URL": "s3://copies/other"}).of_copy("offsite")
    assert (found.s3_bucket, found.backup_prefix) == ("copies", "other")
    found = load(values | {"COPY_OFFSITE_STORAGE_URL": "s3://copies"}).of_copy("offsite")
    assert (found.s3_bucket, found.backup_prefix) == ("copies", "team/shop")
    primary = without(values, "BACKUP_PREFIX") | {"STORAGE_URL": "gs://primary/from/url"}
    copy = load(primary | {"COPY_OFFSITE_STORAGE_URL": "s3://copies"}).of_copy("offsite")
    assert copy.backup_prefix == "from/url"
    assert problems(
        values | {"COPY_OFFSITE_STORAGE_URL": "s3://copies/a", "COPY_OFFSITE_BACKUP_PREFIX": "b"}
    ) == [
        (
            "COPY_OFFSITE_BACKUP_PREFIX is b, but COPY_OFFSITE_STORAGE_URL names a. Unset "
            "COPY_OFFSITE_BACKUP_PREFIX, or correct one of them."
        )
    ]


@pytest.mark.parametrize("written", ["Off-Site", "off-site", "OFF-SITE"])
def test_a_name_becomes_a_variable_in_upper_case(written: str) -> None:
    values = {name.replace("OFFSITE", "OFF_SITE"): value for name, value in OFFSITE.items()}
    assert load(PRIMARY | values | {"COPY_TO": f" {written} "}).copy_names == ["off-site"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("a/b", "has a name that is empty"),
        ("a,,b", "has a name that is empty"),
        ("-a", "has a name that is empty"),
        ("x" * 33, "has a name that is empty"),
        ("ä", "has a name that is empty"),
        ("disk,DISK", "has disk twice"),
        ("off-site,off_site", "has off-site and off_site, whose settings have the same names"),
    ],
)
def test_a_name_that_is_refused(names: str, reason: str) -> None:
    [found] = problems(PRIMARY | DISK | {"COPY_TO": names})
    assert found.startswith(f"COPY_TO {reason}")
    assert found.endswith("Expected: names such as offsite,disk.")


def test_the_longest_name_owns_a_variable() -> None:
    values = {
        "COPY_TO": "a,a-b",
        "COPY_A_STORAGE_URL": "file:///a",
        "COPY_A_B_STORAGE_URL": "file:///b",
        "COPY_A_BACKUP_PREFIX": "of/a",
        "COPY_A_B_BACKUP_PREFIX": "of/b",
    }
    found = load(PRIMARY | values)
    assert [found.of_copy(name).storage_url for name in ("a", "a-b")] == ["file:///a", "file:///b"]
    assert [found.of_copy(name).backup_prefix for name in ("a", "a-b")] == ["of/a", "of/b"]
    # What follows the longer name is not a setting: the variable is the shorter one's.
    assert copy_to.split("COPY_A_BACKUP_PREFIX", ["a", "a-backup"]) == ("a", "BACKUP_PREFIX")
    assert copy_to.split("COPY_A_B_S3_BUKET", ["a", "a-b"]) == ("a-b", "S3_BUKET")


def test_no_setting_ends_like_another() -> None:
    """Otherwise it would not be certain which copy a variable belongs to."""
    for one, other in itertools.permutations(copy_to.VARIABLES, 2):
        assert not one.endswith(f"_{other}")


def test_all_problems_of_all_copies_at_once_by_their_variables() -> None:
    values = PRIMARY | {
        "COPY_TO": "offsite,disk,tape",
        "LOCK_TIMEOUT": "x",
        "COPY_OFFSITE_S3_BUKET": "copies",
        "COPY_OFFSITE_S3_ENDPOINT": "https://u:PlantedPassword1@s3.example.com",
        "COPY_OFFSITE_S3_PART_SIZE": "1",
        "COPY_DISK_STORAGE_URL": "ftp://disk",
        "COPY_DISK_BACKUP_RETENTION_DAYS": "0",
    }
    found = problems(values | KEYS)
    assert len(found) == 7
    assert found[0].startswith("LOCK_TIMEOUT must be ")
    assert found[1].startswith(
        "COPY_OFFSITE_S3_ENDPOINT must not contain credentials: put them into "
        "COPY_OFFSITE_S3_ACCESS_KEY_ID and COPY_OFFSITE_S3_SECRET_ACCESS_KEY."
    )
    assert found[2] == (
        "COPY_OFFSITE_S3_BUCKET is missing. Expected: the name of a bucket. COPY_OFFSITE_S3_BUKET "
        "is set, which pgstash does not read. Rename it to COPY_OFFSITE_S3_BUCKET if it fits."
    )
    assert found[3].startswith("COPY_OFFSITE_S3_PART_SIZE must be ")
    assert found[4].startswith("COPY_DISK_STORAGE_URL does not begin with file://")
    assert found[5].startswith("COPY_DISK_BACKUP_RETENTION_DAYS must be ")
    assert found[6] == (
        "COPY_TO names tape, but none of its settings is set. Set COPY_TAPE_STORAGE_URL."
    )
    assert "PlantedPassword1" not in str(found)


def test_no_key_is_taken_from_the_primary() -> None:
    primary = SOURCE | {
        "S3_ENDPOINT": "https://s3.example.com",
        "S3_BUCKET": "backups",
        "S3_ACCESS_KEY_ID": "primary",
        "S3_SECRET_ACCESS_KEY": "primary",
    }
    copy = {"COPY_TO": "offsite", "COPY_OFFSITE_S3_BUCKET": "copies"}
    found = [each.split(".")[0] for each in problems(primary | copy)]
    assert found == [
        "COPY_OFFSITE_S3_ENDPOINT is missing",
        "COPY_OFFSITE_S3_ACCESS_KEY_ID is missing",
        "COPY_OFFSITE_S3_SECRET_ACCESS_KEY is missing",
    ]


def test_the_identity_of_aws_may_be_that_of_a_copy(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("AWS_REGION=eu-central-1\nAWS_SECRET_ACCESS_KEY=PlantedOfAws1\n")
    environ = PRIMARY | {"COPY_TO": "offsite", "COPY_OFFSITE_S3_BUCKET": "copies"}
    found = settings.load(environ, dotenv)
    copy = found.of_copy("offsite")
    assert copy.s3_url == "https://s3.eu-central-1.amazonaws.com"
    assert copy.s3_access_key_id is None
    assert environ["AWS_SECRET_ACCESS_KEY"] == "PlantedOfAws1"
    assert Scrubber(found.secrets()).scrub("PlantedOfAws1") == "***"


def test_secrets_are_known_hidden_and_may_come_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.write_text("PlantedInFile1\n")
    secret = "COPY_OFFSITE_S3_SECRET_ACCESS_KEY"
    values = without(BOTH, secret) | {
        f"{secret}_FILE": str(file),
        "COPY_DISK_AZURE_STORAGE_CONNECTION_STRING": "AccountKey=PlantedOfAccount1;x=y",
    }
    found = load(values)
    assert "Planted" not in repr(found)
    assert "Planted" not in repr(found.of_copy("offsite"))
    for known in (found, found.of_copy("disk")):
        scrub = Scrubber(known.secrets()).scrub
        assert scrub("PlantedKey1 PlantedInFile1 PlantedOfAccount1") == "*** *** ***"
    for name in values:
        monkeypatch.setenv(name, values[name])
    assert {
        "COPY_OFFSITE_S3_ACCESS_KEY_ID",
        f"{secret}_FILE",
        "COPY_DISK_AZURE_STORAGE_CONNECTION_STRING",
    } <= settings.secret_variables()
    assert "COPY_OFFSITE_S3_BUCKET" not in settings.secret_variables()
    file.unlink()
    [problem] = problems(values)
    assert problem.startswith(f"{secret}_FILE names ")
    [both, *_] = problems(values | {secret: "PlantedSecret1"})
    assert both == f"{secret} and {secret}_FILE are both set. Set only one of them."


def test_quotes_and_blanks_are_reported_by_the_names_of_the_copy() -> None:
    assert problems(BOTH | {"COPY_DISK_STORAGE_URL": "'file:///mnt/disk'"}) == [
        (
            "COPY_DISK_STORAGE_URL is wrapped in quotes, which would become part of the value. "
            "Remove them (docker --env-file does not strip quotes)."
        )
    ]
    found = load(BOTH | {"COPY_DISK_STORAGE_URL": "file:///mnt/disk "})
    assert found.odd_values == ["COPY_DISK_STORAGE_URL ends in a blank."]


@pytest.mark.parametrize(
    ("variable", "warning"),
    [
        (
            "COPY_OFFSITE_S3_TAG",
            "COPY_OFFSITE_S3_TAG is not a pgstash setting. Did you mean COPY_OFFSITE_S3_TAGS?",
        ),
        (
            "COPY_DISK_COMPRESSION_LEVEL",
            "COPY_DISK_COMPRESSION_LEVEL is not a setting of a copy; it is ignored.",
        ),
        (
            "COPY_OFFSTE_S3_BUCKET",
            (
                "COPY_OFFSTE_S3_BUCKET is ignored, because COPY_TO does not name offste. Did you "
                "mean offsite?"
            ),
        ),
        (
            "COPY_TAPE_S3_SECRET_ACCESS_KEY_FILE",
            (
                "COPY_TAPE_S3_SECRET_ACCESS_KEY_FILE is ignored, because COPY_TO does not name "
                "tape. Add tape to COPY_TO."
            ),
        ),
        ("COPY_DISK_SERVICE_HOST", ""),
        ("COPYFILE_DISABLE", ""),
        ("COPY_EXTENDED_ATTRIBUTES", ""),
    ],
)
def test_a_variable_that_is_no_setting(variable: str, warning: str) -> None:
    assert load(BOTH | {variable: "1"}).misspelt == ([warning] if warning else [])


def test_copies_that_nothing_names() -> None:
    assert load(PRIMARY | OFFSITE).misspelt == [
        (
            "COPY_OFFSITE_S3_ACCESS_KEY_ID and 3 similar variables are ignored, because COPY_TO is "
            "not set. Set COPY_TO=offsite."
        )
    ]
    assert load(PRIMARY | DISK).misspelt == [
        "COPY_DISK_STORAGE_URL is ignored, because COPY_TO is not set. Set COPY_TO=disk."
    ]


def test_in_a_file_every_variable_of_copies_is_expected_to_be_one(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("COPY_EVERYTHING=1\n")
    assert load(BOTH, dotenv).misspelt == [
        "COPY_EVERYTHING is not a pgstash setting; it is ignored."
    ]
    dotenv.write_text('COPY_DISK_S3_SECRET_ACCESS_KEY="a\nb"\n')
    assert "starts a value of several lines" in problems(BOTH, dotenv)[0]


@pytest.mark.parametrize(
    ("primary", "copy"),
    [
        ({"STORAGE_URL": "file:///backups"}, {"STORAGE_URL": "file:///mnt/../backups/"}),
        (
            {"STORAGE_URL": "gs://bucket/prefix"},
            {"STORAGE_URL": "gs://bucket", "BACKUP_PREFIX": "prefix"},
        ),
        (
            {"STORAGE_URL": "azure://account/container"},
            {"STORAGE_URL": "azure://account/container", "AZURE_STORAGE_KEY": "UGxhbnRlZA=="},
        ),
        (
            {"S3_ENDPOINT": "https://s3.example.com:443", "S3_BUCKET": "a", "S3_ACCESS_KEY_ID": "1"}
            | {"S3_SECRET_ACCESS_KEY": "1"},
            {"S3_ENDPOINT": "https://S3.example.com", "STORAGE_URL": "s3://a"}
            | {"S3_ACCESS_KEY_ID": "2", "S3_SECRET_ACCESS_KEY": "2"},
        ),
        (
            {"S3_REGION": "eu-central-1", "S3_BUCKET": "a"},
            {"S3_ENDPOINT": "https://s3.amazonaws.com", "S3_BUCKET": "a"},
        ),
    ],
    ids=["directory", "google", "azure", "s3", "aws"],
)
def test_a_copy_in_the_place_of_the_primary(primary: dict[str, str], copy: dict[str, str]) -> None:
    def own(values: dict[str, str]) -> dict[str, str]:
        return {f"COPY_SAME_{name}": value for name, value in values.items()}

    assert problems(SOURCE | primary | own(copy) | {"COPY_TO": "same"}) == [
        (
            "The copy same is in the same place as the primary. Give it another store, or another "
            "COPY_SAME_BACKUP_PREFIX."
        )
    ]
    elsewhere = own(without(copy, "BACKUP_PREFIX") | {"BACKUP_PREFIX": "elsewhere"})
    assert load(SOURCE | primary | elsewhere | {"COPY_TO": "same"}).copy_names == ["same"]


@pytest.mark.parametrize("exists", [True, False])
def test_one_folder_has_several_paths(tmp_path: Path, *, exists: bool) -> None:
    folder = tmp_path / "team" / "shop"
    if exists:
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "team")
    primary = SOURCE | {"STORAGE_URL": tmp_path.as_uri(), "BACKUP_PREFIX": "team/shop"}
    for other, prefix in (
        (tmp_path / "team", "shop"),
        (tmp_path / "link", "shop"),
        (tmp_path, "link/shop"),
    ):
        copy = {"COPY_SAME_STORAGE_URL": other.as_uri(), "COPY_SAME_BACKUP_PREFIX": prefix}
        [found] = problems(primary | copy | {"COPY_TO": "same"})
        assert found.startswith("The copy same is in the same place as the primary.")


def test_two_copies_in_one_place() -> None:
    more = {"COPY_TO": "disk,offsite,other", "COPY_OTHER_STORAGE_URL": "file:///mnt/disk"}
    assert problems(BOTH | more) == [
        (
            "The copy other is in the same place as the copy disk. Give it another store, or "
            "another COPY_OTHER_BACKUP_PREFIX."
        )
    ]


def test_a_prefix_of_the_primary_that_the_store_of_the_copy_would_change() -> None:
    values = {
        "COPY_TO": "cloud",
        "COPY_CLOUD_STORAGE_URL": "azure://account/container",
        "BACKUP_PREFIX": "team\\shop",
    }
    [found] = problems(PRIMARY | values)
    assert found.startswith("COPY_CLOUD_BACKUP_PREFIX must not contain '\\' for Azure")


def test_a_host_that_only_writes_cannot_copy() -> None:
    [found] = problems(BOTH | {"STORAGE_ROLE": "writer"})
    assert found.startswith("COPY_TO is set, but with STORAGE_ROLE=writer this host cannot read")
    [found] = problems(BOTH | {"COPY_OFFSITE_STORAGE_ROLE": "writer"})
    assert found.startswith("COPY_OFFSITE_STORAGE_ROLE must be full: ")
    assert found.endswith("COPY_OFFSITE_S3_OBJECT_LOCK_DAYS.")


@pytest.mark.parametrize(
    ("values", "ignored"),
    [
        (
            without(BOTH, "COPY_OFFSITE_S3_BUCKET"),
            (
                "Ignoring the copy offsite. COPY_OFFSITE_S3_BUCKET is missing. Expected: the name "
                "of a bucket."
            ),
        ),
        (
            BOTH | {"COPY_OFFSITE_STORAGE_URL": "file:///backups"},
            (
                "Ignoring the copy offsite. The copy offsite is in the same place as the primary. "
                "Give it another store, or another COPY_OFFSITE_BACKUP_PREFIX."
            ),
        ),
    ],
)
def test_a_command_that_only_reads_does_without_a_wrong_copy(
    values: dict[str, str], ignored: str
) -> None:
    found = settings.load(dict(values), NO_FILE, needs=["storage"], only_reads=True)
    assert found.copy_names == ["disk"]
    assert found.warnings() == [ignored]
    with pytest.raises(ConfigurationError):
        settings.load(dict(values), NO_FILE, needs=["storage", "copies"], only_reads=True)


def test_a_copy_can_be_read_without_settings_of_the_primary() -> None:
    values = DISK | {"COPY_TO": "disk"}
    found = settings.load(values, NO_FILE, needs=ONLY_COPIES, only_reads=True)
    assert found.of_copy("disk").backup_prefix == "postgres-backups"


def test_a_command_without_a_store_reads_no_copy() -> None:
    values = {"COPY_TO": "disk", "COPY_DISK_STORAGE_URL": "ftp://disk"}
    found = settings.load(values, NO_FILE, needs=[], only_reads=True)
    assert (found.copy_names, found.warnings()) == ([], [])
    assert copies.names({"COPY_TO": "/"}) == []


def test_messages_name_the_settings_of_the_copy() -> None:
    found = load(BOTH)
    hint = "Check S3_ENDPOINT, AWS_REGION and BACKUP_PREFIX."
    assert found.as_written(hint) == hint
    assert found.of_copy("disk").as_written(hint) == (
        "Check COPY_DISK_S3_ENDPOINT, AWS_REGION and COPY_DISK_BACKUP_PREFIX."
    )
