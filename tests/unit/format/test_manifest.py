"""A manifest comes back as it was written, or not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgstash.errors import CorruptedError, NewerFormatError
from pgstash.format import manifest, proof
from pgstash.format.manifest import (
    Compression,
    Database,
    Encryption,
    Extension,
    Manifest,
    Member,
    Table,
)
from pgstash.pipeline.encryption import Key

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = Key.derive("passphrase", b"saltsalt")
DIGEST = "0123456789abcdef" * 4
SMALL = Manifest(
    format=manifest.FORMAT,
    tool="pgstash 1.2.3",
    id="0011223344556677",
    archive="backup_20260131_020000.sql.gz",
    started="2026-01-31T02:00:00Z",
    finished="2026-01-31T02:01:00Z",
    server="18.1",
    client="18.1",
    database=Database(
        name="shop",
        host="db.example.com",
        port=5432,
        encoding="UTF8",
        collate="C.UTF-8",
        ctype="C.UTF-8",
        locale_provider="c",
        locale=None,
        lc_monetary="C",
        settings=["TimeZone=UTC"],
        bytes=12_345,
    ),
    raw_bytes=100,
    stored_bytes=50,
    sha256=DIGEST,
    compression=Compression("gzip", 6),
    encryption=Encryption("aes-256-cbc", "pbkdf2-hmac-sha256", 10_000, "00" * 8),
    tables=[Table("public", "orders", 3)],
    members=[Member(0, 50, 100, DIGEST)],
)

# Names arrive decoded with surrogateescape, so they may hold lone low surrogates.
NAMES = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.integers(0xDC80, 0xDCFF).map(chr),
        st.sampled_from("\n\r\0\x1b\"'\\,}😀é\u2028"),
    )
)
SIZES = st.integers(0, 2**63)
MANIFESTS = st.builds(
    replace,
    st.just(SMALL),
    id=NAMES,
    archive=NAMES,
    raw_bytes=SIZES,
    database=st.builds(
        replace,
        st.just(SMALL.database),
        name=NAMES,
        locale=NAMES | st.none(),
        settings=st.lists(NAMES),
    ),
    encryption=st.sampled_from([None, SMALL.encryption]),
    tables=st.lists(st.builds(Table, NAMES, NAMES, SIZES)),
    members=st.lists(
        st.builds(
            Member,
            SIZES,
            SIZES,
            SIZES,
            st.just(DIGEST),
            st.sampled_from([None, "pre-data", "data", "post-data"]),
            st.none() | SIZES,
            st.none() | SIZES,
        )
    ),
)


@given(MANIFESTS, st.booleans())
def test_what_was_written_is_read(written: Manifest, with_key: bool) -> None:  # noqa: FBT001
    authenticate = KEY.authenticate if with_key else None
    text = manifest.dump(written, authenticate)
    assert manifest.load(text, authenticate) == written
    assert text.isascii()
    value = json.loads(text)
    assert ("hmac" in value) == with_key
    assert value["database"]["name"] == written.database.name


def test_any_changed_byte_is_noticed() -> None:
    text = manifest.dump(SMALL, KEY.authenticate)
    for position in range(len(text)):
        for other in (text[position] ^ 1, text[position] ^ 0x20, ord(" ")):
            changed = text[:position] + bytes([other]) + text[position + 1 :]
            if changed != text:
                with pytest.raises(CorruptedError):
                    manifest.load(changed, KEY.authenticate)


def test_any_missing_byte_is_noticed() -> None:
    text = manifest.dump(SMALL, KEY.authenticate)
    for position in range(len(text)):
        with pytest.raises(CorruptedError):
            manifest.load(text[:position] + text[position + 1 :], KEY.authenticate)
        with pytest.raises(CorruptedError):
            manifest.load(text[:position], KEY.authenticate)


def test_any_added_byte_is_noticed() -> None:
    text = manifest.dump(SMALL, KEY.authenticate)
    for position in range(len(text) + 1):
        for added in (b" ", b"\n", b"0"):
            with pytest.raises(CorruptedError):
                manifest.load(text[:position] + added + text[position:], KEY.authenticate)


def test_a_removed_hmac_is_noticed() -> None:
    with pytest.raises(CorruptedError, match="HMAC of the manifest does not match"):
        manifest.load(manifest.dump(SMALL, None), KEY.authenticate)


def test_an_hmac_of_another_key_is_noticed() -> None:
    text = manifest.dump(SMALL, KEY.authenticate)
    for other in (Key.derive("another", KEY.salt), Key.derive("passphrase", b"another!")):
        with pytest.raises(CorruptedError, match="HMAC of the manifest does not match"):
            manifest.load(text, other.authenticate)


def test_a_second_hmac_replaces_nothing() -> None:
    """Values that are appended to an authentic text are not read."""
    text = manifest.dump(SMALL, KEY.authenticate)
    forged = text.replace(b"\n}\n", b',\n"archive": "backup_20200101_000000.sql.gz"\n}\n')
    with pytest.raises(CorruptedError):
        manifest.load(forged, KEY.authenticate)


def test_an_hmac_without_a_key_is_refused() -> None:
    with pytest.raises(CorruptedError, match="no key to check it with"):
        manifest.load(manifest.dump(SMALL, KEY.authenticate), None)


def changed(change: Callable[[dict[str, Any]], None], key: Key | None) -> bytes:
    """Return the manifest as another version would write it, with an HMAC if there is a key."""
    value = json.loads(manifest.dump(SMALL, None))
    change(value)
    body = json.dumps(value, indent=0).removesuffix("\n}").encode()
    if key is None:
        return body + b"\n}\n"
    return body + f',\n"hmac": "{key.authenticate(body)}"\n}}\n'.encode()


def add_keys_everywhere(value: dict[str, Any]) -> None:
    value["later"] = {"format": 7, "anything": [None]}
    value["extensions"] = [{"name": "hstore", "version": "1.8", "later": True}]
    for key in ("database", "compression", "encryption"):
        value[key]["later"] = ["x"]
    for key in ("tables", "members"):
        value[key]["columns"].insert(1, "later")
        for row in value[key]["rows"]:
            row.insert(1, {"x": 1})


with_key_and_without = pytest.mark.parametrize("key", [KEY, None], ids=["encrypted", "plain"])


@with_key_and_without
def test_keys_of_a_later_version_are_ignored(key: Key | None) -> None:
    authenticate = key.authenticate if key else None
    found = manifest.load(changed(add_keys_everywhere, key), authenticate)
    assert found == replace(SMALL, extensions=[Extension("hstore", "1.8")])


@with_key_and_without
def test_keys_that_an_earlier_version_did_not_write_have_defaults(key: Key | None) -> None:
    def remove(value: dict[str, Any]) -> None:
        for name in ("reader", "options", "roles", "extensions", "globals_sha256", "schema_sha256"):
            del value[name]
        del value["database"]["icu_rules"]
        value["members"] = {
            "columns": value["members"]["columns"][:4],
            "rows": [row[:4] for row in value["members"]["rows"]],
        }

    assert manifest.load(changed(remove, key), key.authenticate if key else None) == SMALL


@with_key_and_without
@pytest.mark.parametrize(
    "name",
    ["id", "archive", "raw_bytes", "sha256", "database", "encryption", "tables", "members"],
)
def test_a_missing_key_is_not_ignored(name: str, key: Key | None) -> None:
    text = changed(lambda value: value.pop(name), key)
    with pytest.raises(CorruptedError, match=name):
        manifest.load(text, key.authenticate if key else None)


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("id", 7),
        ("raw_bytes", "100"),
        ("raw_bytes", True),
        ("raw_bytes", 100.0),
        ("reader", None),
        ("roles", "admin"),
        ("roles", ["admin", 7]),
        ("globals_sha256", 7),
        ("encryption", []),
        ("database", None),
        ("database.port", "5432"),
        ("database.settings", [["TimeZone=UTC"]]),
        ("database.locale", 7),
        ("extensions", {"name": "hstore"}),
        ("extensions", [["hstore", "1.8"]]),
        ("tables", []),
        ("tables.columns", "schema"),
        ("tables.rows", {"0": ["public", "orders", 3]}),
        ("tables.rows", [["public", "orders", 3], ["public", "orders", "3"]]),
        ("tables.rows", [["public", "orders", 3], ["public", "orders", 3, 4]]),
        ("members.columns", ["offset", "stored", "raw", "digest", "section", "table", "rows"]),
        ("members.rows", [[0, 50, 100, DIGEST, "another", None, None]]),
        ("members.rows", [[0, 50, 100, DIGEST, ["data"], None, None]]),
        ("members.rows", [[0, 50, None, DIGEST, None, None, None]]),
        ("members.rows", [[0, 50, 100, DIGEST, "data", "0", 3]]),
    ],
)
def test_a_value_of_another_type_is_refused(path: str, wrong: object) -> None:
    def change(value: dict[str, Any]) -> None:
        *outer, last = path.split(".")
        for each in outer:
            value = value[each]
        value[last] = wrong

    with pytest.raises(CorruptedError, match="is not valid"):
        manifest.load(changed(change, None), None)


def test_another_format_says_what_to_do() -> None:
    text = manifest.dump(replace(SMALL, format=manifest.NEWEST + 1), KEY.authenticate)
    with pytest.raises(NewerFormatError, match="has format 3; this pgstash reads 2") as caught:
        manifest.load(text, KEY.authenticate)
    assert "newer" in caught.value.hint


@with_key_and_without
def test_a_format_never_seen_names_the_version_that_reads_it(key: Key | None) -> None:
    def change(value: dict[str, Any]) -> None:
        value.update(format=7, reader="2.13.0rc1", tool="pgstash 3.0", members="elsewhere")
        del value["tables"]

    authenticate = key.authenticate if key else None
    with pytest.raises(NewerFormatError, match=r"format 7; .* 2, and pgstash 2.13.0rc1 or newer"):
        manifest.load(changed(change, key), authenticate)


def test_a_format_is_not_asked_for_before_its_hmac_is_right() -> None:
    text = manifest.dump(replace(SMALL, format=7), Key.derive("another", KEY.salt).authenticate)
    with pytest.raises(CorruptedError, match="HMAC of the manifest does not match"):
        manifest.load(text, KEY.authenticate)


@pytest.mark.parametrize("reader", ["", "\x1b[2J1.0", "1.0; rm", "9" * 99, 7, None, ["1.0"]])
def test_what_is_no_version_is_not_named(reader: object) -> None:
    with pytest.raises(NewerFormatError) as caught:
        manifest.refuse_newer("the backup", {"format": 3, "reader": reader})
    assert caught.value.message == "the backup has format 3; this pgstash reads 2"


@pytest.mark.parametrize("number", [0, -1, True, "1", 1.0, None, [2]])
def test_what_is_no_format_is_refused(number: object) -> None:
    with pytest.raises(CorruptedError):
        manifest.load(changed(lambda value: value.update(format=number), None), None)


def test_a_format_and_the_version_that_reads_it_are_raised_together() -> None:
    assert (manifest.FORMAT, manifest.READER) == (1, "0.2.0")  # early builds refused new keys
    assert (manifest.NEWEST, manifest.NEWEST_READER) == (2, "0.3.0")
    assert (proof.FORMAT, proof.READER) == (1, "0.1.0")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b"{}",
        b'{"format": 1}',
        b'{"format": 1, "tables": [], "members": []}',
        b'{"format": 1, "tables": {"columns": ["x"], "rows": [[1]]}, "members": []}',
        b"[" * 1_000_000,
        manifest.dump(SMALL, None).replace(b'"sha256": "0', b'"sha257": "0'),
        manifest.dump(SMALL, None).replace(b'["public", "orders", 3]', b'["public", "orders"]'),
        manifest.dump(SMALL, None).replace(b'["public", "orders", 3]', b"7"),
        manifest.dump(SMALL, None)[:-3],
    ],
    ids=range(13),
)
def test_what_is_no_manifest_is_a_corrupted_one(text: bytes) -> None:
    with pytest.raises(CorruptedError):
        manifest.load(text, None)


def test_many_members_and_tables_stay_compact() -> None:
    empty = len(manifest.dump(replace(SMALL, tables=[], members=[]), None))
    size = 16 * 1024 * 1024
    members = [
        Member(i * size, size, size, DIGEST, "data", i % 50_000, 1_000_000) for i in range(100_000)
    ]
    with_members = len(manifest.dump(replace(SMALL, tables=[], members=members), None))
    assert (with_members - empty) / len(members) < 145
    tables = [Table("public", f"table_{i:06}", 1_000_000) for i in range(50_000)]
    with_tables = len(manifest.dump(replace(SMALL, tables=tables, members=[]), None))
    assert (with_tables - empty) / len(tables) < 45
