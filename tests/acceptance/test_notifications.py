"""Messages about failures to receivers that refuse what Slack and Discord refuse."""

from __future__ import annotations

import base64
import hashlib
import hmac
from pathlib import Path

import pytest

from support.chat import refused_by_discord, refused_by_slack
from support.cli import environment, run_pgstash
from support.hooks import Receiver, receiving

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
