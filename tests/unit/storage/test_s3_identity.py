"""What a client of S3 reads to describe its service."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from pgstash.storage.s3.identity import isolated_session
from support.postgres import clean_environment

if TYPE_CHECKING:
    from pathlib import Path

MAKE_CLIENT = """
from pgstash.storage.s3.identity import isolated_session
isolated_session().create_client(
    "s3", "us-east-1", aws_access_key_id="key", aws_secret_access_key="secret"
)
"""


def test_descriptions_in_the_home_folder_are_ignored(tmp_path: Path) -> None:
    """As all other files in ~/.aws are, if the settings name a key."""
    planted = tmp_path / ".aws" / "models" / "s3" / "2006-03-01"
    planted.mkdir(parents=True)
    (planted / "service-2.json").write_text("no JSON")
    env = clean_environment() | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", MAKE_CLIENT], env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_clients_share_the_descriptions() -> None:
    loaders = [isolated_session().get_component("data_loader") for _ in range(2)]
    first, second = (loader.load_service_model("s3", "service-2") for loader in loaders)
    assert first is second
