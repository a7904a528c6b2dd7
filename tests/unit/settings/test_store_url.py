"""The URL of a store, and what follows from it for other settings."""

from __future__ import annotations

import pytest

from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Settings, sources
from pgstash.settings.store_url import StoreUrl, parse, secret_parts

AZURE = {"STORAGE_URL": "azure://account/container/team/db"}
S3 = {
    "S3_ENDPOINT": "https://s3.example.com",
    "S3_ACCESS_KEY_ID": "id",
    "S3_SECRET_ACCESS_KEY": "secret-of-the-key",
}


def load(values: dict[str, str]) -> Settings:
    return sources.load(dict(values), needs={"storage"})


def problems(values: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load(values)
    return caught.value.problems


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("file:///my%20backups", StoreUrl("file", "/my backups")),
        ("s3://bucket", StoreUrl("s3", "bucket")),
        ("s3://bucket/a/b/", StoreUrl("s3", "bucket", prefix="a/b")),
        ("gs://my_bucket.example.com/a/b", StoreUrl("gs", "my_bucket.example.com", prefix="a/b")),
        ("azure://account/container", StoreUrl("azure", "container", "account")),
        ("azure://account/co-1/a%20b/c", StoreUrl("azure", "co-1", "account", "a b/c")),
    ],
)
def test_what_a_url_names(url: str, found: StoreUrl) -> None:
    assert parse(url) == found


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://h", "bucket", "s3://", "s3:///p", "s3://key:secret@bucket", "s3://bucket?x=1"),
        *("gs://", "gs://Bucket", "gs://b", "gs://bucket?x=1"),
        *("azure://", "azure://account", "azure://account/", "azure://Account/container"),
        *("azure://account/Container", "azure://account/a--b", "azure://account/container?sig=x"),
        *("azure://account.blob.core.windows.net/container", "azure://account/co"),
        *("s3://bucket/%E4", "gs://bucket/%F6", "azure://account/container/a%FFb", "file:///%E4"),
    ],
)
def test_a_url_that_names_no_store(url: str) -> None:
    (problem,) = problems({"STORAGE_URL": url})
    assert problem.startswith("STORAGE_URL ")
    assert "azure://account/container/prefix" in problem


def test_the_prefix_of_the_url_takes_the_place_of_the_default() -> None:
    assert load({"STORAGE_URL": "azure://account/container"}).backup_prefix == "postgres-backups"
    assert load(AZURE).backup_prefix == "team/db"
    assert load(AZURE | {"BACKUP_PREFIX": "/team/db/"}).backup_prefix == "team/db"
    without = {"STORAGE_URL": "azure://account/container", "BACKUP_PREFIX": "mine"}
    assert load(without).backup_prefix == "mine"
    (problem,) = problems(AZURE | {"BACKUP_PREFIX": "other"})
    assert problem.startswith("BACKUP_PREFIX is other, but STORAGE_URL names team/db. Unset ")
    (problem,) = problems({"STORAGE_URL": "azure://account/container/a/../b"})
    assert problem.startswith("BACKUP_PREFIX ")


@pytest.mark.parametrize(
    "values",
    [
        {"STORAGE_URL": "azure://account/container/team%5Cdb"},
        {"STORAGE_URL": "azure://account/container", "BACKUP_PREFIX": "team\\db"},
    ],
)
def test_azure_stores_a_backslash_as_a_slash(values: dict[str, str]) -> None:
    (problem,) = problems(values)
    assert problem.startswith("BACKUP_PREFIX must not contain '\\' for Azure")
    google = {"STORAGE_URL": "gs://bucket", "BACKUP_PREFIX": "team\\db"}
    assert load(google).backup_prefix == "team\\db"


def test_a_bucket_in_the_url_is_the_bucket_of_s3() -> None:
    settings = load(S3 | {"STORAGE_URL": "s3://bucket/team"})
    assert (settings.s3_bucket, settings.backup_prefix) == ("bucket", "team")
    assert (settings.store, settings.storage_folder) == (None, None)
    same = load(S3 | {"STORAGE_URL": "s3://bucket", "S3_BUCKET": "bucket"})
    assert (same.s3_bucket, same.backup_prefix) == ("bucket", "postgres-backups")
    (problem,) = problems(S3 | {"STORAGE_URL": "s3://bucket", "S3_BUCKET": "other"})
    assert problem.startswith("S3_BUCKET is other, but STORAGE_URL names bucket.")
    missing = [each.split()[0] for each in problems({"STORAGE_URL": "s3://bucket"})]
    assert "S3_ENDPOINT" in missing
    assert "S3_BUCKET" not in missing


def test_an_emulator_may_be_a_host_and_a_port() -> None:
    """As Google's libraries read the variable."""
    settings = load({"STORAGE_URL": "gs://bucket", "STORAGE_EMULATOR_HOST": "localhost:4443"})
    assert settings.storage_emulator_host == "http://localhost:4443"


def test_google_needs_no_setting_of_s3() -> None:
    settings = load({"STORAGE_URL": "gs://bucket/team"})
    assert settings.store == StoreUrl("gs", "bucket", prefix="team")
    assert settings.backup_prefix == "team"


def test_azure_needs_no_setting_of_s3_and_no_key() -> None:
    settings = load(AZURE)
    assert settings.store == StoreUrl("azure", "container", "account", "team/db")
    assert settings.storage_folder is None


@pytest.mark.parametrize(
    "url", ["account.blob.core.windows.net", "https://h?sv=1&sig=x", "https://u:p@h", "ftp://h"]
)
def test_an_endpoint_of_azure_is_a_url_without_credentials(url: str) -> None:
    (problem,) = problems(AZURE | {"AZURE_STORAGE_ENDPOINT": url})
    assert problem.startswith("AZURE_STORAGE_ENDPOINT must ")


def test_no_part_of_the_credentials_of_azure_gets_out() -> None:
    connection_string = "AccountName=account;AccountKey=c2VjcmV0LWtleQ==;EndpointSuffix=x"
    token = "sv=2024-11-04&sp=racwdl&sig=a%2Fb%2Bsignature%3D"
    settings = load(
        AZURE
        | {
            "AZURE_STORAGE_CONNECTION_STRING": connection_string,
            "AZURE_STORAGE_KEY": "another-secret-key",
            "AZURE_STORAGE_SAS_TOKEN": token,
            "AZURE_CLIENT_SECRET": "the-secret-of-a-service-principal",
        }
    )
    scrub = Scrubber(settings.secrets()).scrub
    for secret in (
        *("c2VjcmV0LWtleQ==", "another-secret-key", "a%2Fb%2Bsignature%3D", "a/b+signature="),
        *(connection_string, token, "the-secret-of-a-service-principal"),
    ):
        assert secret not in scrub(f"the error quotes {secret} here")
        assert secret not in repr(settings)
    assert secret_parts("nothing") == []
