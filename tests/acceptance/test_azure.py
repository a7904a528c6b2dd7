"""A backup in a container of Azure, as a user meets it: made, listed, restored, pruned."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

from acceptance.other_stores import assert_read_proven_and_pruned
from support.cli import environment, run_pgstash

if TYPE_CHECKING:
    from support.azurite import AzuriteServer
    from support.postgres import MakeDatabase


def test_a_backup_is_made_checked_listed_restored_and_pruned(
    make_database: MakeDatabase, azurite_server: AzuriteServer, azure_container: str
) -> None:
    source = make_database("mixed")
    settings = azurite_server.settings(azure_container)
    settings["STORAGE_URL"] += "/team/shop"
    env = environment(source.bin_dir, DATABASE_URL=source.uri, **settings)

    checked = run_pgstash(["check", "storage"], env)
    assert checked.returncode == 0, checked.stdout
    assert set(re.findall(r"(?m)^(\w+) ", checked.stdout)) == {"ok"}

    made = run_pgstash(["once"], env)
    assert (made.returncode, made.stderr) == (0, ""), made.stdout
    place = f"azure://{azurite_server.account}/{azure_container}"
    assert f"Uploading to {place}/..." in made.stdout
    [name] = re.findall(rf"Backup location: {place}/team/shop/(\S+)", made.stdout)

    assert name in run_pgstash(["list"], env).stdout
    printed = assert_read_proven_and_pruned(env, source)
    assert azurite_server.key not in made.stdout + checked.stdout + printed


def test_a_container_that_is_missing_is_named_before_the_dump(
    make_database: MakeDatabase, azurite_server: AzuriteServer
) -> None:
    database = make_database()
    settings = azurite_server.settings("there-is-no-such")
    env = environment(database.bin_dir, DATABASE_URL=database.uri, **settings)
    done = run_pgstash(["once"], env)
    assert done.returncode == 21
    assert "the container does not exist" in done.stderr
    assert "Creating database dump" not in done.stdout
    checked = run_pgstash(["check", "storage"], env)
    assert checked.returncode == 40
    assert re.search(r"(?m)^FAILED   bucket .*container does not exist", checked.stdout)


def test_without_its_library_the_command_to_install_it_is_shown() -> None:
    """The library is an extra; the program hides it as if it had not been installed."""
    program = (
        "import sys; sys.modules['azure.core'] = None; sys.argv = ['pgstash', 'list']\n"
        "from pgstash.cli import main\n"
        "main()"
    )
    env = environment(STORAGE_URL="azure://account/container", AZURE_STORAGE_KEY="c2VjcmV0")
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'pgstash[azure]'" in done.stderr
