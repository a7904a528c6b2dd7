"""The scrubber takes out every form of a secret, and leaves ordinary lines alone."""

from __future__ import annotations

import json
import re
import time
import traceback
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash import events
from pgstash.errors import LockTimeoutError, PgstashError, ScratchError, StatementError
from pgstash.monitoring import messages, redaction
from pgstash.monitoring.redaction import MASK, Scrubber

ORDINARY = [
    "Starting backup: backup_20260131_020000.sql.gz",
    "Starting backup: backup_20260131_020000.sql.gz.enc",
    "Creating database dump...",
    "Uploading to S3...",
    "Dump completed in 21s, size: 524MB",
    "Upload completed in 90s",
    "Backup location: s3://backups/postgres-backups/backup_20260131_020000.sql.gz",
    "Backup location: file:///backups/postgres-backups/backup_20260131_020000.sql.gz",
    "In progress: 524MB read, 120MB stored, 25MB/s, 21s elapsed",
    'pg_dump: error: connection to server at "db.example.com" (10.0.0.1), port 5432 failed',
    'FATAL:  password authentication failed for user "backup"',
    "fe_sendauth: no password supplied",
    "Check S3_BUCKET, S3_ACCESS_KEY_ID, S3_REGION and the permissions of the key.",
    "BACKUP_ENCRYPTION_KEY is missing, but BACKUP_ENCRYPTION is true. Expected: a passphrase.",
    "put of s3://backups/x failed (503 Slow Down); retry 1 of 3 in 5.0s",
    "endpoint https://s3.example.com:9000/path, see https://example.com/a?b=c#d",
    "2026-01-31 02:00:00 user@example.com 10:20:30",
    "pg_dump: warning: there are circular foreign-key constraints on this table:",
    'ERROR:  column "token": value too long for type character varying(5)',
    "postgres-token: permission denied",
    "postgres-token: no such file or directory",
    "Basic authentication failed",
    "basic authentication-required",
    "Basic internationalization",
    "FATAL:  password authentication by SCRAM-SHA-256 failed, md5 is not supported",
]


def scrub(text: str, *secrets: str) -> str:
    return Scrubber(secrets).scrub(text)


@pytest.mark.parametrize("line", ORDINARY)
def test_ordinary_lines_stay_as_they_are(line: str) -> None:
    assert scrub(line) == line
    assert scrub(line, "S3cr3tS3cr3tS3cr3t", "hunter2", "x", "PlantedAccessKey") == line.replace(
        "/x ", "/*** "
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgres://u:Planted@h/d", "postgres://u:***@h/d"),
        ("postgresql://:Planted@h", "postgresql://:***@h"),
        ("postgres://u:Plan@ted@h/d", "postgres://u:***@h/d"),
        ("postgres://u:Plan/ted?x#y@h/d", "postgres://u:***@h/d"),
        ("postgres://u@tenant:Planted@h/d", "postgres://u@tenant:***@h/d"),
        ("(HTTPS://u:Planted@h)", "(HTTPS://u:***@h)"),
        ("password=Planted host=h", "password=*** host=h"),
        ("password = 'Plan ted' host=h", "password = *** host=h"),
        (r"password='Plan\'ted' host=h", "password=*** host=h"),
        ('{"password": "Plan\\"ted", "host": "h"}', '{"password": ***, "host": "h"}'),
        ("{'password': 'Planted', 'host': 'h'}", "{'password': ***, 'host': 'h'}"),
        (r"password='Plan'\''ted' host=h", "password=***' host=h"),
        ("PGPASSWORD=Planted", "PGPASSWORD=***"),
        ("?sslpassword=Planted&x=1", "?sslpassword=***&x=1"),
        ("aws_secret_access_key: Planted", "aws_secret_access_key: ***"),
        ("AWS_SESSION_TOKEN=Planted", "AWS_SESSION_TOKEN=***"),
        ("api-key=Planted", "api-key=***"),
        ("apikey: Planted", "apikey: ***"),
        ("passphrase=Planted", "passphrase=***"),
        ("passwd=Planted; pwd=Planted", "passwd=***; pwd=***"),
        ("BACKUP_ENCRYPTION_KEY=Planted", "BACKUP_ENCRYPTION_KEY=***"),
        ("X-Amz-Signature=Planted&X-Amz-Date=1", "X-Amz-Signature=***&X-Amz-Date=1"),
        ("?X-Amz-Credential=Planted%2F1&a=b", "?X-Amz-Credential=***&a=b"),
        ("X-Amz-Security-Token=Planted", "X-Amz-Security-Token=***"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=Planted, x", "Authorization: ***"),
        ("'Authorization': b'AWS4 Planted'}\nnext", "'Authorization': ***\nnext"),
        ("Bearer PlantedPlanted.x-y", "Bearer ***"),
        ("token: Bearer PlantedPlanted", "token: *** ***"),
        ("Proxy sent Basic UGxhbnRlZA==", "Proxy sent Basic ***"),
        ("BASIC dXNlcjpQbGFudGVk", "BASIC ***"),
        ("Basic UGxhbnRlZFBsYW50ZWQ", "Basic ***"),
        ("postgres-token: Planted", "postgres-token: ***"),
        ("token: Planted2 and more", "token: *** and more"),
        ("password: planted host=h", "password: *** host=h"),
        ("password: planted user: u", "password: *** user: u"),
        ("password:planted user", "password:*** user"),
        ('"token": Planted\n', '"token": ***\n'),
        ('{"token": 12345, "a": 1}', '{"token": ***, "a": 1}'),
        ("{'token': b'Planted and more'}", "{'token': ***"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key *** is unknown"),
        ("ASIAIOSFODNN7EXAMPLE", "***"),
        (f"'pgstash-key-{'0f' * 32}' is", "'***' is"),
        ("cut pgstash-key-0123456789abcdef01...", "cut ***..."),
        ("a 'cGdzdGFzaC1rZXktMDEyMzQ1Njc4OWFiY2RlZg==' b", "a '***' b"),
        ("AGE-SECRET-KEY-1PLANTEDPLANTED", "***"),
        ("or AGE-SECRET-KEY-PQ-1PLANTED", "or ***"),
        ("'SCRAM-SHA-256$4096:c2FsdA==$Plan+ted=:Plan/ted=' is", "'***' is"),
        ("LINE 1: ... 'SCRAM-SHA-256$4096:c2Fs...", "LINE 1: ... '***"),
        ("hash md5d41d8cd98f00b204e9800998ecf8427e", "hash ***"),
        ("LINE 1: ... 'md5d41d8cd98f00...", "LINE 1: ... '***..."),
        ("ALTER ROLE app PASSWORD 'Plan''ted' LOGIN;", "ALTER ROLE app PASSWORD '***' LOGIN;"),
        (r"alter role app password E'Plan\'ted';", "alter role app password E'***';"),
        ("ALTER ROLE app PASSWORD 'Planted", "ALTER ROLE app PASSWORD '***'"),
    ],
)
def test_shapes_of_secrets_that_are_not_configured(text: str, expected: str) -> None:
    assert scrub(text) == expected
    assert scrub(expected) == expected


LONG_SECRETS = [
    "correct horse battery",
    "slash/plus+at@colon:percent%",
    "quote'doublequote\"backslash\\",
    "onlysinglequote'",
    "[regex](meta)*.+?^${}|chars\\d",
    "line one\nline two\r\nline three",
    "tab\tand bell\x07 bell",
    "pässwörd-密码-🔑",
    "-----BEGIN KEY-----\nMIIB+/=\n-----END KEY-----",
    "a" * 12,
    "not utf-8 \udce9\udcff",
]


@pytest.mark.parametrize("secret", LONG_SECRETS)
def test_every_form_of_a_long_secret(secret: str) -> None:
    encoded = secret.encode(errors="surrogateescape")
    forms = {
        "raw": secret,
        "in a path": quote(encoded),
        "in a query": quote(encoded, safe=""),
        "in a form": quote_plus(encoded),
        "repr": repr(secret),
        "repr within": repr(f"x='{secret}'"),
        "repr within double quotes": repr(f'x="{secret}"'),
        "repr of both quotes": repr(f"'\"{secret}\"'"),
        "repr in a structure": repr({"key": [secret]}),
        "bytes": repr(encoded),
        "JSON": json.dumps({"key": secret}),
        "JSON, not ASCII": json.dumps({"key": secret}, ensure_ascii=False),
    }
    for kind, form in forms.items():
        text = f"before{form}after"
        found = scrub(text, secret)
        assert "***" in found, kind
        assert form.strip("'\"") not in found, kind
        for word in ("horse", "colon", "quote", "regex", "line two", "bell", "MIIB", "utf-8"):
            assert word not in found, kind


@pytest.mark.parametrize("secret", ["hunter2", "postgres", "p@ss", "a+b", "ü", "12345678901"])
def test_a_short_secret_goes_where_it_stands_alone(secret: str) -> None:
    for before, after in (("", ""), (" ", "."), ("'", "'"), (":", "@"), ("(", ")"), ("=", "\n")):
        assert scrub(f"{before}{secret}{after}", secret) == f"{before}***{after}"
    assert scrub(f"password={secret}", secret) == "password=***"


def test_a_short_secret_stays_within_other_words() -> None:
    line = "postgres-backups/backup.sql postgresql postgres_fdw mypostgres 5432 café"
    assert scrub(line, "postgres", "32", "back", "caf") == line


def test_a_password_that_is_the_user_name() -> None:
    said = 'FATAL: password authentication failed for user "postgres"'
    assert scrub(said, "postgres") == 'FATAL: password authentication failed for user "***"'
    assert scrub("postgresql://postgres:postgres@h/postgres", "postgres") == (
        "postgresql://***:***@h/***"
    )


def test_one_secret_that_begins_like_another() -> None:
    short, long = "correct-horse-1", "correct-horse-1-battery-staple"
    for secrets in ((short, long), (long, short)):
        assert scrub(f"{long} {short} {long}", *secrets) == "*** *** ***"


def test_a_secret_that_may_be_a_word_stays_where_only_distinct_ones_go() -> None:
    scrubber = Scrubber(["backup", "PlantedSecret1"])
    text = "backup PlantedSecret1 password=Planted"
    assert scrubber.scrub_distinct(text) == "backup *** password=***"
    assert scrubber.scrub(text) == "*** *** password=***"


BACKED_UP = messages.success(
    events.BackupSucceeded("backup_1.sql.gz", 113.0, "s3://b/p/x", 10**9, 10**8, 12, 345)
)
LEFT = messages.left_behind(events.UploadLeftBehind("p/backup_1.sql.gz", "17", "no answer"))
OWN = [
    BACKED_UP,
    LEFT,
    "This is a test notification from pgstash. No backup was made.",
    ScratchError.default_hint,
    LockTimeoutError.default_hint,
    f"{StatementError.default_hint}\n",
]


@pytest.mark.parametrize("text", OWN)
def test_our_own_words_stay_whatever_the_secret_is(text: str) -> None:
    """Of the constants; the words of values go."""
    values = {"s3", "p", "sql", "gz", "no", "answer"} if text in {BACKED_UP, LEFT} else set()
    for word in re.findall(r"[A-Za-z]{2,11}", text):
        if word not in values:
            assert scrub(text, word) == text, word


@pytest.mark.parametrize("word", ["test", "backup", "tables", "server", "role"])
@pytest.mark.parametrize(
    "outside",
    [
        'FATAL: password authentication failed for user "{}"',
        "the key {} is unknown",
        "{}",
        "a {} b",
        'relation "{}" does not exist',
        "postgresql://{}:{}@h/{}",
        "{}, 345 and more",
        "port=5432 {} dbname=x",
    ],
)
def test_the_same_words_go_in_what_comes_from_outside(word: str, outside: str) -> None:
    shown = scrub(outside.replace("{}", word), word)
    assert not re.search(rf"\b{word}\b", shown), shown
    message = f"the database refused the login: {outside.replace('{}', word)}"
    assert not re.search(rf"\b{word}\b", scrub(message, word).partition("login: ")[2])


def test_a_value_goes_where_its_word_stays() -> None:
    """In the middle of a sentence of ours."""
    text = messages.left_behind(events.UploadLeftBehind("backup", "backup", "bad backup"))
    assert scrub(text, "backup") == (
        "The upload of *** could not be aborted (bad ***). It is not visible as a backup, but its "
        "parts take up space until they are removed; upload id: ***"
    )


def test_a_longer_secret_that_begins_like_a_word() -> None:
    text = "This is a test notification from pgstash. No backup was made."
    assert (
        scrub(text, "test", "test notification")
        == "This is a *** from pgstash. No backup was made."
    )


def test_an_empty_secret_takes_nothing() -> None:
    assert scrub("text", "") == "text"


def fail(secret: str) -> None:
    raise PgstashError(f"failed with {secret}") from ValueError(f"cannot use {secret!r}")


def test_a_traceback() -> None:
    secret = "p'l\"a\\nZQ\nsecretZQ"
    with pytest.raises(PgstashError) as caught:
        fail(secret)
    text = "".join(traceback.format_exception(caught.value))
    assert text.count("ZQ") == 4
    found = scrub(text, secret)
    assert "ZQ" not in found
    assert "failed with ***" in found
    assert "cannot use '***'" in found
    assert "raise PgstashError" in found


def test_a_long_text_keeps_all_but_the_secret() -> None:
    secret = "PlantedSecret1"
    text = ("x" * 997 + " ") * 2000
    assert scrub(f"{text}{secret}{text}{secret}", secret) == f"{text}***{text}***"


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "a.",
            "a://",
            "token",
            "token-",
            "'",
            "password='",
            "Basic ",
            "x:",
            "x://u:",
            "token: a ",
            "password '",
            "password  ",
            "SCRAM-SHA-256$",
            "md5a",
        ),
        "short ",
    ],
)
def test_no_text_makes_it_slow(piece: str) -> None:
    """A pattern of quadratic time would take minutes for these, not a second."""
    scrubber = Scrubber(["PlantedSecret1", "short"])
    began = time.process_time()
    scrubber.scrub(piece * 200_000)
    assert time.process_time() - began < 15


WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1)
PIECES = st.one_of(
    WORDS,
    st.sampled_from(
        [
            "password=",
            "Bearer ",
            "://u:",
            "@",
            "'",
            '"',
            " ",
            "\n",
            "token: ",
            "Authorization: ",
            ":",
        ]
    ),
)


# Short ones: where a long one was taken out, a short one beside it stands alone the second time.
@given(st.lists(WORDS.filter(lambda word: len(word) < 12)), st.lists(PIECES))
def test_to_scrub_twice_is_to_scrub_once(secrets: list[str], pieces: list[str]) -> None:
    scrubber = Scrubber(secrets)
    once = scrubber.scrub("".join(pieces))
    assert scrubber.scrub(once) == once


@given(st.text(min_size=12), st.text(), st.text())
def test_no_long_secret_survives(secret: str, before: str, after: str) -> None:
    marked = f"zq{secret}zq"
    text = f"{before.replace('z', '')}{marked}{after.replace('z', '')}"
    assert marked not in scrub(text, marked)
    assert scrub(marked, marked) == "***"


def test_secrets_that_are_learnt_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_learnt", redaction._Learnt())  # noqa: SLF001 - of this process
    earlier = Scrubber(["S3cr3tS3cr3tS3cr3t"])
    assert earlier.scrub("planted/token+1") == "planted/token+1"
    redaction.learn(["planted/token+1", "short"])
    for scrubber in (earlier, Scrubber()):
        assert scrubber.scrub("a planted/token+1 b, short") == f"a {MASK} b, {MASK}"
        assert scrubber.scrub("x-amz-security-token: planted%2Ftoken%2B1").endswith(f": {MASK}")
        assert scrubber.scrub_distinct("planted/token+1 in shorter") == f"{MASK} in shorter"
        assert scrubber.knows("planted/token+1")
    assert earlier.scrub("S3cr3tS3cr3tS3cr3t") == MASK
    for number in range(100):
        redaction.learn([f"planted-token-of-hour-{number:03}"])
    assert earlier.scrub("planted-token-of-hour-099") == MASK
    assert earlier.scrub("planted-token-of-hour-000") == "planted-token-of-hour-000"


def test_the_passwords_of_logins_do_not_push_out_other_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A login needs a new token each time; credentials of a cloud are issued once an hour."""
    monkeypatch.setattr(redaction, "_learnt", redaction._Learnt())  # noqa: SLF001 - of this process
    redaction.learn(["planted-secret-of-the-cloud"])
    for number in range(200):
        redaction.learn([f"planted-token-of-login-{number:03}"], "DATABASE_PASSWORD_COMMAND")
    scrubber = Scrubber()
    assert scrubber.scrub("planted-secret-of-the-cloud") == MASK
    assert scrubber.scrub("planted-token-of-login-199") == MASK
    assert scrubber.scrub("planted-token-of-login-000") == "planted-token-of-login-000"


def test_a_secret_that_is_learnt_again_counts_as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_learnt", redaction._Learnt())  # noqa: SLF001 - of this process
    for number in range(64):
        redaction.learn(["planted-and-always-the-same", f"planted-token-of-login-{number:03}"])
    assert Scrubber().scrub("planted-and-always-the-same") == MASK
