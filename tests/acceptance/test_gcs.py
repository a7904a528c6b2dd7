"""A backup in a bucket of Google Cloud Storage, as a user meets it: made, listed, restored."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from acceptance.other_stores import assert_read_proven_and_pruned
from support.cli import environment, run_pgstash
from support.tiers import later

if TYPE_CHECKING:
    from support.fake_gcs import FakeGcsServer
    from support.gcs_server import GcsServer
    from support.postgres import MakeDatabase


@pytest.mark.parametrize("server", later(["gcs_server", "fake_gcs_server"], "gcs_server"))
def test_a_backup_is_made_checked_listed_restored_and_pruned(
    make_database: MakeDatabase, request: pytest.FixtureRequest, server: str
) -> None:
    gcs: GcsServer | FakeGcsServer = request.getfixturevalue(server)
    bucket = gcs.create_bucket()
    source = make_database("mixed")
    settings = gcs.settings(bucket)
    settings["STORAGE_URL"] += "/team/shop"
    env = environment(source.bin_dir, DATABASE_URL=source.uri, **settings)

    checked = run_pgstash(["check", "storage"], env)
    assert checked.returncode == 0, checked.stdout
    assert set(re.findall(r"(?m)^(\w+) ", checked.stdout)) == {"ok"}

    made = run_pgstash(["once"], env)
    assert (made.returncode, made.stderr) == (0, ""), made.stdout
    assert f"Uploading to gs://{bucket}/..." in made.stdout
    [name] = re.findall(rf"Backup location: gs://{bucket}/team/shop/(\S+)", made.stdout)

    assert name in run_pgstash(["list"], env).stdout
    assert_read_proven_and_pruned(env, source)


def test_a_bucket_that_is_missing_is_named_before_the_dump(
    make_database: MakeDatabase, gcs_server: GcsServer
) -> None:
    database = make_database()
    settings = gcs_server.settings("there-is-no-such")
    env = environment(database.bin_dir, DATABASE_URL=database.uri, **settings)
    done = run_pgstash(["once"], env)
    assert done.returncode == 21
    assert "the bucket does not exist" in done.stderr
    assert "Creating database dump" not in done.stdout


def test_without_its_library_the_command_to_install_it_is_shown() -> None:
    """The library is an extra; the program hides it as if it had not been installed."""
    program = (
        "import sys; sys.modules['google.auth'] = None; sys.argv = ['pgstash', 'list']\n"
        "from pgstash.cli import main\n"
        "main()"
    )
    env = environment(STORAGE_URL="gs://bucket")
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'pgstash[gcs]'" in done.stderr
