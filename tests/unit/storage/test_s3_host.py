"""What distinguishes buckets of the same name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pgstash.storage.s3.config import S3Config

USUAL = S3Config("https://s3.example.org", "backups", "us-east-1", "key", "secret")


@pytest.mark.parametrize(
    "different",
    [
        {"endpoint": "https://s3.example.org:9000"},
        {"endpoint": "https://s3.example.com"},
        {"access_key_id": "another"},
        {"role_arn": "arn:aws:iam::123456789012:role/backups"},
    ],
)
def test_another_server_or_tenant_has_other_buckets(different: dict[str, str]) -> None:
    assert replace(USUAL, **different).host != USUAL.host  # type: ignore[arg-type]


def test_the_same_server_has_the_same_buckets_whatever_else_differs() -> None:
    again = replace(USUAL, endpoint="https://s3.example.org:443", region="eu-west-1")
    assert again.host == USUAL.host
    aws = [replace(USUAL, endpoint=f"https://s3.{each}.amazonaws.com") for each in ("a", "b")]
    assert aws[0].host == aws[1].host
