"""An access key and an endpoint may be left out if AWS has both, and not by mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgstash import settings
from pgstash.errors import ConfigurationError
from pgstash.monitoring.redaction import Scrubber
from pgstash.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = {"DATABASE_URL": "postgresql://u@h/shop"}
BUCKET = SOURCE | {"S3_BUCKET": "backups"}
MINIO = BUCKET | {"S3_ENDPOINT": "http://minio:9000"}
AWS = BUCKET | {"S3_ENDPOINT": "https://s3.eu-central-1.amazonaws.com"}
REGION = BUCKET | {"S3_REGION": "eu-central-1"}
KEY = {"S3_ACCESS_KEY_ID": "Planted1"}
SECRET = {"S3_SECRET_ACCESS_KEY": "Planted2"}
NO_KEYS = ["S3_ACCESS_KEY_ID is missing", "S3_SECRET_ACCESS_KEY is missing"]
NO_ENDPOINT = "S3_ENDPOINT is missing"


def load(values: dict[str, str], folder: Path, dotenv: str = "") -> Settings:
    file = folder / ".env"
    file.write_text(dotenv)
    return settings.load(values, file)


@pytest.mark.parametrize(
    ("values", "missing"),
    [
        (AWS, []),
        (REGION, []),
        (BUCKET | {"AWS_REGION": "eu-central-1"}, []),
        (BUCKET | {"AWS_DEFAULT_REGION": "eu-central-1"}, []),
        (MINIO | {"AWS_ACCESS_KEY_ID": "x"}, []),
        (MINIO | {"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}, []),
        (MINIO | KEY | SECRET, []),
        (BUCKET, [NO_ENDPOINT, *NO_KEYS]),
        (MINIO, NO_KEYS),
        (MINIO | {"AWS_ACCESS_KEY_ID": ""}, NO_KEYS),
        (REGION | KEY | SECRET, [NO_ENDPOINT]),
        (AWS | KEY, NO_KEYS[1:]),
        (AWS | SECRET, NO_KEYS[:1]),
        (AWS | {"S3_ACESS_KEY_ID": "x"}, NO_KEYS),
        (REGION | {"S3_SECRET_ACCESS_KEY_FIEL": "x"}, NO_KEYS),
        (REGION | {"AWS_ENDPOINT_URL_S3": "https://fly.storage.tigris.dev"}, [NO_ENDPOINT]),
        (REGION | {"S3_ENDPOIN": "http://minio:9000"}, [NO_ENDPOINT]),
        (
            BUCKET | {"AWS_PROFILE": "backups"},
            [f"{NO_ENDPOINT}, and so is S3_REGION, which is enough on AWS"],
        ),
    ],
)
def test_what_is_missing(values: dict[str, str], missing: list[str], tmp_path: Path) -> None:
    values = {"HOME": str(tmp_path), **values}
    if not missing:
        load(values, tmp_path)
        return
    with pytest.raises(ConfigurationError) as caught:
        load(values, tmp_path)
    assert [problem.partition(".")[0] for problem in caught.value.problems] == missing


@pytest.mark.parametrize("name", ["credentials", "config"])
def test_a_file_of_the_aws_cli_is_an_identity(name: str, tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / name).write_text("")
    assert load(MINIO | {"HOME": str(tmp_path)}, tmp_path).s3_access_key_id is None


def test_the_endpoint_of_a_region(tmp_path: Path) -> None:
    for more, url in (
        ({"S3_REGION": "eu-central-1"}, "https://s3.eu-central-1.amazonaws.com"),
        ({"AWS_REGION": "a-1", "AWS_DEFAULT_REGION": "b-1"}, "https://s3.a-1.amazonaws.com"),
        ({"S3_REGION": "a-1", "AWS_REGION": "b-1"}, "https://s3.a-1.amazonaws.com"),
        ({"S3_REGION": "cn-north-1"}, "https://s3.cn-north-1.amazonaws.com.cn"),
        ({"S3_ENDPOINT": "http://minio", "AWS_ACCESS_KEY_ID": "x"}, "http://minio"),
    ):
        assert load(BUCKET | more, tmp_path).s3_url == url
    assert load(SOURCE | {"STORAGE_URL": "file:///x"}, tmp_path).s3_url is None
    kept = load(AWS | KEY | SECRET | {"AWS_REGION": "eu-central-1"}, tmp_path)
    assert kept.s3_region == "us-east-1"


def test_a_region_that_is_none_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^AWS_REGION must be a name such as"):
        load(BUCKET | {"AWS_REGION": "eu central"}, tmp_path)


def test_variables_of_aws_in_a_file_of_ours(tmp_path: Path) -> None:
    environ = {**BUCKET, "AWS_PROFILE": "kept"}
    text = "AWS_REGION=eu-central-1\nAWS_PROFILE=other\nAWS_SESSION_TOKEN=Planted3\n"
    found = load(environ, tmp_path, text)
    assert found.s3_region == "eu-central-1"
    assert environ["AWS_PROFILE"] == "kept"
    assert environ["AWS_SESSION_TOKEN"] == "Planted3"
    environ = {**AWS, **KEY, **SECRET}
    load(environ, tmp_path, text)
    assert "AWS_SESSION_TOKEN" not in environ


def test_secrets_of_aws_are_secrets_if_they_may_be_used(tmp_path: Path) -> None:
    given = {
        "AWS_SECRET_ACCESS_KEY": "Planted-of-AWS",
        "AWS_SESSION_TOKEN": "Planted-token",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "Planted-of-container",
    }
    scrubber = Scrubber(load(AWS | given, tmp_path).secrets())
    for secret in given.values():
        assert scrubber.scrub(f"it is {secret} now") == "it is *** now"
    assert not set(given.values()) & set(load(AWS | KEY | SECRET | given, tmp_path).secrets())
