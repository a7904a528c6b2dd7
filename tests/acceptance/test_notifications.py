"""Messages about failures to receivers that refuse what Slack and Discord refuse."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.backups import settings
from support.chat import refused_by_discord, refused_by_slack
from support.cli import environment, run_pgstash
from support.hooks import Receiver, receiving

if TYPE_CHECKING:
    from support.postgres import MakeDatabase

NOWHERE = "postgresql://user@127.0.0.1:1/shop"
SECRET = "planted-signing-secret"


@pytest.mark.parametrize("chat", ["slack", "discord"])
def test_a_failed_backup_is_told_to_a_chat(chat: str, tmp_path: Path) -> None:
    judge = refused_by_slack if chat == "slack" else refused_by_discord
    with receiving(Receiver(judge=judge)) as receiver:
        env = environment(
            DATABASE_URL=NOWHERE,
            STORAGE_URL=tmp_path.as_uri(),
            WEBHOOK_URL=receiver.url(),
            WEBHOOK_FORMAT=chat,
            WEBHOOK_SECRET=SECRET,
        )
        done = run_pgstash(["once"], env)
        assert done.returncode == 10
        [posted] = receiver.received
        assert judge(posted.body) == ""
        assert "Backup failed: shop on 127.0.0.1" in posted.body.decode()
        number, sent = posted.headers["webhook-id"], posted.headers["webhook-timestamp"]
        signed = f"{number}.{sent}.".encode() + posted.body
        code = base64.b64encode(hmac.new(SECRET.encode(), signed, hashlib.sha256).digest())
        assert posted.headers["webhook-signature"] == f"v1,{code.decode()}"
        assert SECRET not in done.stdout + done.stderr

        receiver.judge = lambda _: "no_service /hook"
        done = run_pgstash(["check", "webhook"], env)
        assert done.returncode == 40
        assert "was refused: HTTP 400: no_service" in done.stdout


def test_a_secret_that_is_no_key_is_refused(tmp_path: Path) -> None:
    env = environment(DATABASE_URL=NOWHERE, STORAGE_URL=tmp_path.as_uri(), WEBHOOK_SECRET="whsec_?")
    done = run_pgstash(["check", "webhook"], env)
    assert "WEBHOOK_SECRET must have base64 after whsec_" in done.stdout + done.stderr
    assert "whsec_?" not in done.stdout + done.stderr


def test_one_message_when_backups_begin_to_fail_and_one_when_they_are_well_again(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    database = make_database()
    with receiving() as receiver:
        url = receiver.url("/planted-notify-token").replace("http:", "json:")
        env = environment(
            database.bin_dir, **settings(database, tmp_path / "store"), NOTIFY_URLS=url
        )
        broken = env | {"REQUIRE_TABLES": "public.missing"}
        for given in (env, broken, broken, env, env):
            done = run_pgstash(["once"], given)
            assert (done.returncode == 0) == (given is env), done.stderr
            assert "planted-notify-token" not in done.stdout + done.stderr
            time.sleep(1.1)  # names of records have seconds
        told = [each.json["title"].partition(":")[0] for each in receiver.received]
        assert told == ["Backup failed", "Well again"]
        assert run_pgstash(["check", "notify"], env).returncode == 0
        assert receiver.received[-1].json["title"].startswith("Test of pgstash")
        receiver.statuses = [500]
        done = run_pgstash(["check", "notify"], env)
        assert done.returncode == 40
        assert "address 1 of NOTIFY_URLS (JSON)" in done.stdout
        assert "planted-notify-token" not in done.stdout + done.stderr


def test_a_backup_without_apprise_warns(make_database: MakeDatabase, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    database = make_database()
    values = settings(database, tmp_path / "store") | {"NOTIFY_URLS": "json://127.0.0.1:1/x"}
    env = environment(database.bin_dir, **values)
    hidden = ["import sys", "sys.modules['apprise'] = None"]
    done = run_pgstash(["once"], env, statements=hidden)
    assert done.returncode == 0
    assert "WARNING NOTIFY_URLS needs Apprise" in done.stderr
    done = run_pgstash(["check", "notify"], env, statements=hidden)
    assert (done.returncode, "pip install 'pgstash[notify]'" in done.stdout) == (40, True)
