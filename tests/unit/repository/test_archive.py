"""A backup is read back byte by byte or not at all: no unverified byte is returned."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import itertools
import operator
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.scene import wait_until
from pgstash.errors import (
    CorruptedError,
    EncryptionError,
    NewerFormatError,
    PgstashError,
    UnverifiedError,
)
from pgstash.format import manifest as manifests
from pgstash.format import names
from pgstash.format.manifest import Member
from pgstash.pipeline import decompression, encryption
from pgstash.pipeline.refresh_filter import Refreshes
from pgstash.repository import archive, catalog, script
from pgstash.repository.access import Access
from pgstash.repository.archive import Archive
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.memory import MemoryStorage
from support.gzip_format import ignored_bits
from support.stored import CLOSING, Made, key_of, make

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSPHRASE = "correct horse battery staple, and more"
SCRIPT = b"".join(b"%d\n" % (n * n) for n in range(1500)) + CLOSING
VERIFIED = Access(PASSPHRASE, unverified=False, only_encrypted=False)
UNVERIFIED = replace(VERIFIED, unverified=True)
OTHER_KEY = "another passphrase, just as long as that"

encrypted_or_not = pytest.mark.parametrize(
    "passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"]
)


def opened(storage: MemoryStorage, access: Access = VERIFIED) -> Archive:
    return archive.open_stored(
        storage, catalog.find(catalog.read(storage, "p"), "latest", datetime.now(UTC)), access
    )


def read(found: Archive) -> bytes:
    with found.script() as chunks:
        return b"".join(chunks)


def handed_out(found: Archive) -> tuple[bytes, PgstashError | None]:
    """Return all bytes that are returned, and the error that ended it."""
    got = b""
    try:
        with found.script() as chunks:
            for chunk in chunks:
                got += chunk
    except PgstashError as error:
        return got, error
    return got, None


def stored(made: Made) -> MemoryStorage:
    storage = MemoryStorage()
    made.store(storage)
    return storage


@encrypted_or_not
@pytest.mark.parametrize("script", [b"", CLOSING, SCRIPT], ids=["empty", "short", "long"])
def test_what_was_written_is_read(script: bytes, passphrase: str | None) -> None:
    made = make(script, passphrase=passphrase)
    found = opened(stored(made))
    seen: list[int] = []
    with found.script(seen.append) as chunks:
        assert b"".join(chunks) == script
    assert seen[-1] == len(made.archive) == found.size
    assert found.manifest == made.manifest


@encrypted_or_not
@pytest.mark.parametrize("with_manifest", [True, False])
def test_an_edit_may_change_after_the_script_is_opened(
    *, with_manifest: bool, passphrase: str | None
) -> None:
    """The first bytes are read before it is known what the target requires."""
    made = make(b"COMMENT ON EXTENSION a IS 'b';\n" + CLOSING, passphrase=passphrase)
    storage = stored(made)
    if not with_manifest:
        storage.delete([made.manifest_key])
    edit = Refreshes(lambda name: name, keeps_transactions=True)
    with opened(storage, UNVERIFIED).script(edit=edit) as chunks:
        edit.leave_out([b"COMMENT ON EXTENSION a IS 'b';\n"])
        assert b"".join(chunks) == b"\n" + CLOSING


@encrypted_or_not
@given(data=st.data())
def test_any_damage_is_noticed_before_it_is_handed_out(
    data: st.DataObject, passphrase: str | None
) -> None:
    made = MADE[passphrase]
    at = data.draw(st.integers(0, len(made.archive) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "remove", "append", "swap"]))
    harmed = bytearray(made.archive)
    if kind == "flip":
        harmed[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del harmed[at:]
    elif kind == "insert":
        harmed[at:at] = b"\0"
    elif kind == "remove":
        del harmed[at]
    elif kind == "append":
        harmed += bytes(data.draw(st.binary(min_size=1, max_size=40)))
    else:
        first, second, *_ = data.draw(st.permutations(made.manifest.members))
        spans = sorted([first, second], key=lambda member: member.offset)
        parts = [made.archive[each.offset : each.offset + each.stored] for each in spans]
        harmed = harmed.replace(parts[0] + parts[1], parts[1] + parts[0])
        if harmed == made.archive:
            return
    storage = stored(made)
    storage.put(made.key, bytes(harmed), {"id": made.manifest.id})
    # As if the size had been right: what the digests find.
    for find in (opened, partial(past_the_size, made=made)):
        try:
            got, error = handed_out(find(storage))
        except CorruptedError as too_soon:
            got, error = b"", too_soon
        assert isinstance(error, CorruptedError), kind
        assert SCRIPT.startswith(got)


@encrypted_or_not
def test_the_archive_has_the_digest_that_its_manifest_says(passphrase: str | None) -> None:
    """Also if every member has its own: openssl's header is part of none."""
    made = MADE[passphrase].with_manifest(sha256=hashlib.sha256(b"another").hexdigest())
    got, error = handed_out(opened(stored(made)))
    assert isinstance(error, CorruptedError)
    assert "its digest is not the one in the manifest" in str(error)
    assert got == SCRIPT


@encrypted_or_not
def test_what_goes_on_after_its_last_member_is_damaged(passphrase: str | None) -> None:
    """Also if the manifest has the size and the digest of all of it."""
    made = MADE[passphrase]
    *members, last = made.manifest.members
    shorter = made.with_manifest(members=members, raw_bytes=len(SCRIPT) - last.raw)
    got, error = handed_out(opened(stored(shorter)))
    assert isinstance(error, CorruptedError)
    assert "there is data after its end" in str(error)
    assert got == SCRIPT[: -last.raw]


@encrypted_or_not
@pytest.mark.parametrize("number", [0, 1, 5])
def test_members_leave_no_gap(number: int, passphrase: str | None) -> None:
    """A reader of single members would not notice the gap between them."""
    made = MADE[passphrase]
    gone = made.manifest.members[number]
    rest = [each for each in made.manifest.members if each != gone]
    found = stored(made.with_manifest(members=rest, raw_bytes=len(SCRIPT) - gone.raw))
    with pytest.raises(CorruptedError, match="members do not follow each other"):
        opened(found)


@pytest.mark.parametrize("kind", ["manifest", "schema"])
def test_every_bit_of_a_companion_counts_but_those_that_hold_nothing(kind: str) -> None:
    """Each bit is flipped. Some bits of gzip's format have no meaning and may change."""
    made, schema_key, schema = with_schema(make(SCRIPT[-200:]))
    packed = gzip.compress(manifests.dump(made.manifest, None), mtime=0)
    objects = {made.key: made.archive, made.manifest_key: packed, schema_key: schema}
    key = made.manifest_key if kind == "manifest" else schema_key
    flips = [(at, bit) for at in range(len(objects[key])) for bit in range(8)]
    unnoticed = set()
    for at, bit in flips:
        harmed = bytearray(objects[key])
        harmed[at] ^= 1 << bit
        storage = MemoryStorage()
        for each, data in (objects | {key: bytes(harmed)}).items():
            storage.put(each, data, {"id": made.manifest.id})
        with contextlib.suppress(CorruptedError):
            found = opened(storage)
            assert found.manifest == made.manifest
            assert found.schema() == HEAD
            unnoticed.add((at, bit))
    assert unnoticed == ignored_bits(objects[key])
    assert len(unnoticed) < len(flips) / 10


def past_the_size(storage: MemoryStorage, made: Made) -> Archive:
    return replace(opened(stored(made)), _read=partial(storage.read, made.key))


MADE = {passphrase: make(SCRIPT, passphrase=passphrase) for passphrase in (None, PASSPHRASE)}


def test_another_backup_in_its_place_is_noticed_at_its_first_member() -> None:
    """It has the same length and key, so only the digests differ."""
    made = make(SCRIPT, passphrase=PASSPHRASE)
    other = make(SCRIPT[::-1], passphrase=PASSPHRASE)
    storage = stored(made)
    storage.put(made.key, other.archive[: len(made.archive)].ljust(len(made.archive)), {})
    with pytest.raises(CorruptedError, match=r"member 1, |last block"), opened(storage).script():
        pass


@encrypted_or_not
def test_the_manifest_of_another_backup(passphrase: str | None) -> None:
    made = make(SCRIPT, passphrase=passphrase)
    other = make(SCRIPT, passphrase=passphrase, base="backup_20250131_020000")
    storage = stored(made)
    storage.put(made.manifest_key, other.packed_manifest(), {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match=r"that of another backup: backup_2025.*, id "):
        opened(storage)
    renamed = other.with_manifest(id=made.manifest.id)
    storage.put(made.manifest_key, renamed.packed_manifest(), {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match="that of another backup: backup_2025"):
        opened(storage)
    # As a run of the same second left it, of an archive that is as long.
    of_that_name = made.with_manifest(id="0" * 16)
    storage.put(made.manifest_key, of_that_name.packed_manifest(), {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match=r"that of another backup: backup_2026.*, id 0{16}"):
        opened(storage)


@encrypted_or_not
def test_a_missing_manifest(passphrase: str | None) -> None:
    made = make(SCRIPT, passphrase=passphrase)
    storage = stored(made)
    storage.delete([made.manifest_key])
    with pytest.raises(UnverifiedError, match="has no manifest") as caught:
        opened(storage)
    assert "--unverified" in caught.value.hint
    found = opened(storage, UNVERIFIED)
    assert found.manifest is None
    assert read(found) == SCRIPT


def test_unverified_does_not_mean_unchecked_where_there_is_a_manifest() -> None:
    made = make(SCRIPT)
    harmed = made.archive[:-30] + made.archive[-29:-28] + made.archive[-29:]
    storage = stored(made)
    storage.put(made.key, harmed, {"id": made.manifest.id})
    with pytest.raises(CorruptedError):
        read(opened(storage, UNVERIFIED))


def test_a_wrong_key_shows_before_the_script_does() -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE)
    storage = stored(made)
    with pytest.raises(CorruptedError, match="wrong key") as caught:
        opened(storage, replace(VERIFIED, passphrase=OTHER_KEY))
    assert "BACKUP_ENCRYPTION_KEY" in caught.value.hint
    storage.delete([made.manifest_key])
    found = opened(storage, replace(UNVERIFIED, passphrase=OTHER_KEY))
    with pytest.raises(CorruptedError, match="wrong key"), found.script():
        pass


def test_no_key() -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE)
    storage = stored(made)
    with pytest.raises(EncryptionError, match="no key"):
        opened(storage, replace(VERIFIED, passphrase=None))
    storage.delete([made.manifest_key])
    with pytest.raises(EncryptionError, match="no key"):
        read(opened(storage, replace(UNVERIFIED, passphrase=None)))


def test_a_manifest_that_somebody_changed() -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE)
    forged = replace(made.with_manifest(raw_bytes=1), passphrase=OTHER_KEY)
    storage = stored(made)
    storage.put(made.manifest_key, forged.packed_manifest(), {"id": made.manifest.id})
    with pytest.raises(CorruptedError):
        opened(storage)


def test_where_encryption_is_on_a_plain_backup_is_not_trusted() -> None:
    """Its manifest proves nothing: anyone who can write to the store can write one."""
    strict = replace(VERIFIED, only_encrypted=True)
    storage = stored(make(SCRIPT))
    with pytest.raises(UnverifiedError, match="not encrypted, and BACKUP_ENCRYPTION is on"):
        opened(storage, strict)
    found = opened(storage, replace(strict, unverified=True))
    assert found.manifest
    assert read(found) == SCRIPT
    encrypted = stored(make(SCRIPT, passphrase=PASSPHRASE))
    assert read(opened(encrypted, strict)) == SCRIPT


def test_a_copy_that_lost_its_metadata_has_the_manifest_of_its_size() -> None:
    made, left_over = make(SCRIPT), make(SCRIPT + b"more")
    storage = stored(made)
    storage.put(left_over.manifest_key, left_over.packed_manifest(), {})
    storage.put(made.key, made.archive, {})
    found = opened(storage)
    assert found.manifest == made.manifest
    assert read(found) == SCRIPT


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("raw", "more", "words"),
    [
        (1 << 40, 0, "larger than any that pgstash writes"),
        (49 * MIB, 0, "larger than any that pgstash writes"),
        (-1, 0, "do not follow each other"),
        (1000, 1, "do not add up to the script"),
        (1000, -1, "do not add up to the script"),
    ],
)
def test_members_that_cannot_be_are_refused(raw: int, more: int, words: str) -> None:
    made = make(SCRIPT)
    first, *others = made.manifest.members
    members = [replace(first, raw=raw), *others]
    raw_bytes = sum(each.raw for each in members) + more
    with pytest.raises(CorruptedError, match=words):
        opened(stored(made.with_manifest(members=members, raw_bytes=raw_bytes)))


def test_rows_of_a_table_that_the_manifest_does_not_have_are_refused() -> None:
    made = make(SCRIPT)
    first, *others = made.manifest.members
    for table in (-1, 0, 1):
        members = [replace(first, section="data", table=table, rows=1), *others]
        with pytest.raises(CorruptedError, match="of a table that is not in it"):
            opened(stored(made.with_manifest(members=members)))


LATER = {"format": "7", "reader": "2.13.0", "tool": "pgstash 3.0.0", "later": "x"}


@encrypted_or_not
@pytest.mark.parametrize("access", [VERIFIED, UNVERIFIED, replace(VERIFIED, passphrase=None)])
def test_a_later_format_is_known_by_the_metadata_before_anything_else_is_read(
    access: Access, passphrase: str | None, tmp_path: Path
) -> None:
    """Whatever the form of its manifest: encrypted differently or under another name."""
    made = make(SCRIPT, passphrase=passphrase)
    needed = r"sql\.gz.* has format 7; this pgstash reads 2, and pgstash 2\.13\.0 or newer"
    for manifest in (made.packed_manifest(), b"CBOR", None):
        storage = MemoryStorage()
        storage.put(made.key, made.archive, {"id": made.manifest.id} | LATER)
        if manifest:
            storage.put(made.manifest_key, manifest, {"id": made.manifest.id})
        with pytest.raises(NewerFormatError, match=needed):
            opened(storage, access)
    folder = DirectoryStorage(tmp_path)
    folder.put("p/" + made.key, made.archive, {"id": made.manifest.id} | LATER)
    with pytest.raises(NewerFormatError, match=needed):
        archive.open_file(tmp_path / "p" / made.key, access)


def test_metadata_of_a_later_version_are_ignored_if_the_format_is_known() -> None:
    made = make(SCRIPT)
    storage = stored(made)
    known = {"id": made.manifest.id, "format": "1", "reader": "0.1.0", "tool": "x", "later": "y"}
    storage.put(made.key, made.archive, known)
    assert read(opened(storage)) == SCRIPT


@pytest.mark.parametrize("packed", ["plain", "gzip", "encrypted"])
def test_a_file_is_told_by_its_first_bytes(packed: str, tmp_path: Path) -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE if packed == "encrypted" else None)
    path = tmp_path / "a [strange] name"
    path.write_bytes(SCRIPT if packed == "plain" else made.archive)
    with pytest.raises(UnverifiedError):
        archive.open_file(path, VERIFIED)
    found = archive.open_file(path, UNVERIFIED)
    assert (found.manifest, found.size) == (None, path.stat().st_size)
    assert read(found) == SCRIPT


@encrypted_or_not
def test_a_file_with_its_manifest_beside_it(passphrase: str | None, tmp_path: Path) -> None:
    made = make(SCRIPT, passphrase=passphrase)
    path = tmp_path / made.key.removeprefix("p/")
    path.write_bytes(made.archive)
    (tmp_path / made.manifest_key.removeprefix("p/")).write_bytes(made.packed_manifest())
    found = archive.open_file(path, VERIFIED)
    assert found.manifest == made.manifest
    assert read(found) == SCRIPT
    path.write_bytes(made.archive[:-1])
    with pytest.raises(CorruptedError):
        archive.open_file(path, VERIFIED)


@pytest.mark.parametrize("packed", [False, True])
def test_without_a_manifest_a_dump_that_was_cut_off_is_none(
    *, packed: bool, tmp_path: Path
) -> None:
    """As from a pipe that ignores the exit status of pg_dump."""
    path = tmp_path / "dump"
    for dump in (SCRIPT[:-20], b"", SCRIPT + b"SELECT 1;\n"):
        path.write_bytes(gzip.compress(dump) if packed else dump)
        with pytest.raises(CorruptedError, match="cut short"):
            read(archive.open_file(path, UNVERIFIED))
    path.write_bytes(gzip.compress(SCRIPT)[:-9])
    with pytest.raises(CorruptedError, match="ends within"):
        read(archive.open_file(path, UNVERIFIED))


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make(SCRIPT, passphrase=PASSPHRASE)
    with pytest.raises(UnverifiedError):
        archive.open_stdin(VERIFIED)
    buffer = io.BufferedReader(io.BytesIO(made.archive))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=buffer))
    assert read(archive.open_stdin(UNVERIFIED)) == SCRIPT


def test_a_member_of_the_same_lengths_is_not_handed_out() -> None:
    """The replacement is valid gzip: the digest reveals it before a byte is returned."""
    plain, other = b"SELECT 1;\n" * 50, b"SELECT 2;\n" * 50
    packed, instead = (gzip.compress(text, 0, mtime=0) for text in (plain, other))
    assert len(packed) == len(instead)
    member = Member(0, len(packed), len(plain), hashlib.sha256(instead).hexdigest())
    assert b"".join(decompression.decompress([instead], [member])) == other
    wrong = Member(0, len(packed), len(plain), hashlib.sha256(packed).hexdigest())
    with pytest.raises(CorruptedError, match="member 1, "):
        next(decompression.decompress([instead], [wrong]))


@pytest.mark.parametrize("position", range(-8, 0))
def test_a_member_that_was_compressed_wrongly_is_not_handed_out(position: int) -> None:
    """Its digest fits: what does not is gzip's CRC-32 or length of the plain text, at its end."""
    plain = b"SELECT 1;\n" * 50
    stored = bytearray(gzip.compress(plain))
    stored[position] ^= 1
    member = Member(0, len(stored), len(plain), hashlib.sha256(stored).hexdigest())
    with pytest.raises(CorruptedError, match="it does not decompress"):
        next(decompression.decompress([bytes(stored)], [member]))


@pytest.mark.parametrize("more", [-1, 1])
def test_a_member_of_another_length_is_not_handed_out(more: int) -> None:
    """Its digest fits, and gzip's own checksums: what does not is the length in the manifest."""
    plain = b"SELECT 1;\n" * 50
    stored = gzip.compress(plain)
    member = Member(0, len(stored), len(plain) + more, hashlib.sha256(stored).hexdigest())
    with pytest.raises(CorruptedError, match="does not decompress to what was compressed"):
        next(decompression.decompress([stored], [member]))


def test_the_next_member_is_opened_while_one_is_taken() -> None:
    made = make(SCRIPT)
    members = made.manifest.members
    assert len(members) > 3
    taken: list[bytes] = []

    def stored_members() -> Iterator[bytes]:
        for member in members:
            taken.append(made.archive[member.offset : member.offset + member.stored])
            yield taken[-1]

    before = set(threading.enumerate())  # those of other tests may end meanwhile
    pieces = decompression.decompress(stored_members(), members)
    got = next(pieces)
    assert len(got) == members[0].raw
    assert len(taken) == 2
    assert len(set(threading.enumerate()) - before) == 1
    assert got + b"".join(pieces) == SCRIPT
    assert next(decompression.decompress(stored_members(), members))  # and nobody takes the rest
    wait_until(lambda: set(threading.enumerate()) <= before, "the threads have ended")


@given(
    parts=st.lists(st.binary(max_size=300).map(lambda part: part * 50), max_size=4),
    step=st.integers(1, 5000),
)
def test_gunzip_opens_members_cut_anywhere(parts: list[bytes], step: int) -> None:
    packed = b"".join(gzip.compress(part) for part in parts)
    chunks = [packed[start : start + step] for start in range(0, len(packed), step)]
    assert b"".join(decompression.gunzip(chunks)) == b"".join(parts)


def test_a_bomb_comes_in_small_pieces() -> None:
    packed = gzip.compress(bytes(30_000_000))
    sizes = [len(piece) for piece in decompression.gunzip([packed])]
    assert sum(sizes) == 30_000_000
    assert max(sizes) <= 1 << 20


def test_a_secret_shows_in_no_representation() -> None:
    assert PASSPHRASE not in repr(VERIFIED)
    assert PASSPHRASE not in repr(opened(stored(make(SCRIPT))))


def test_what_gunzip_opens_is_what_is_read(tmp_path: Path) -> None:
    made = make(SCRIPT)
    path = tmp_path / "archive.gz"
    path.write_bytes(made.archive)
    by_gunzip = subprocess.run(["gunzip", "-c", path], capture_output=True, check=True).stdout
    assert by_gunzip == read(opened(stored(made)))


def pieces_of(made: Made, script: bytes) -> list[bytes]:
    """Return what each member holds."""
    pieces, at = [], 0
    for member in made.manifest.members:
        pieces.append(script[at : at + member.raw])
        at += member.raw
    assert at == len(script)
    return pieces


@encrypted_or_not
@settings(max_examples=20)
@given(data=st.data())
def test_members_are_read_in_any_order(data: st.DataObject, passphrase: str | None) -> None:
    made = MADE[passphrase]
    pieces = pieces_of(made, SCRIPT)
    seeker = opened(stored(made)).seek()
    for number in data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=2 * len(pieces))):
        assert b"".join(seeker.member(number)) == pieces[number]


@encrypted_or_not
def test_members_are_read_by_several_threads(passphrase: str | None) -> None:
    made = MADE[passphrase]
    seen: list[int] = []
    seeker = opened(stored(made)).seek(seen.append)
    pieces = pieces_of(made, SCRIPT)
    before = len(seen)
    with ThreadPoolExecutor(4) as pool:
        numbers = [*range(len(pieces))] * 5
        found = list(pool.map(lambda number: b"".join(seeker.member(number)), numbers))
    assert found == pieces * 5
    assert seen == sorted(seen)
    assert len(seen) == before + len(numbers)


@encrypted_or_not
def test_the_watch_hears_of_what_is_read_of_the_store(passphrase: str | None) -> None:
    made = MADE[passphrase]
    seen: list[int] = []
    seeker = opened(stored(made)).seek(seen.append)
    # Of an encrypted archive both ends are read, one block and two; of each member, the blocks
    # that it lies in, and the one before.
    expected = [] if passphrase is None else [16, 48]
    assert seen == expected
    for number, member in enumerate(made.manifest.members):
        seeker.member(number)
        blocks = (member.offset + member.stored - 1) // 16 - member.offset // 16 + 2
        more = blocks * 16 if passphrase else member.stored
        expected.append((expected or [0])[-1] + more)
        assert seen == expected


@encrypted_or_not
@settings(max_examples=40)
@given(data=st.data())
def test_no_member_that_was_damaged_is_handed_out(
    data: st.DataObject, passphrase: str | None
) -> None:
    made = MADE[passphrase]
    members = made.manifest.members
    number = data.draw(st.integers(0, len(members) - 1))
    at = members[number].offset + data.draw(st.integers(0, members[number].stored - 1))
    harmed = bytearray(made.archive)
    harmed[at + (16 if passphrase else 0)] ^= 1 << data.draw(st.integers(0, 7))
    storage = stored(made)
    storage.put(made.key, bytes(harmed), {"id": made.manifest.id})
    # At the very end of an encrypted archive the check of its ends may find it first.
    with pytest.raises(CorruptedError) as caught:
        opened(storage).seek().member(number)
    assert re.search(rf"member {number + 1}, |begin and end", str(caught.value))


@encrypted_or_not
def test_a_member_that_is_cut_off_is_damaged(passphrase: str | None) -> None:
    made = MADE[passphrase]
    last = len(made.manifest.members) - 1
    cut_off = made.archive[: -48 - 16]
    found = replace(opened(stored(made)), _read=partial(read_of, cut_off + made.archive[-32:]))
    if passphrase:
        with pytest.raises(CorruptedError, match="begin and end"):
            found.seek()
        return
    with pytest.raises(CorruptedError, match=f"ends within member {last + 1}, "):
        found.seek().member(last)


@contextmanager
def read_of(text: bytes, *, start: int = 0, length: int | None = None) -> Iterator[Iterator[bytes]]:
    yield iter([text[start:][:length]])


@pytest.mark.parametrize("at", range(16))
def test_an_encrypted_archive_begins_as_it_should_before_a_member_is_read(at: int) -> None:
    made = MADE[PASSPHRASE]
    harmed = bytearray(made.archive)
    harmed[at] ^= 1
    storage = stored(made)
    storage.put(made.key, bytes(harmed), {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match="does not begin and end as it was written"):
        opened(storage).seek()


def test_a_member_of_an_encrypted_archive_needs_its_key() -> None:
    # A padding of one byte fits a wrong key once in 256 times.
    padded = (make(SCRIPT + b"--" + b"x" * n, passphrase=PASSPHRASE) for n in itertools.count())
    made = next(each for each in padded if sum(m.stored for m in each.manifest.members) % 16 < 8)
    found = opened(stored(made))
    with pytest.raises(EncryptionError, match="no key"):
        replace(found, _passphrase=None).seek()
    with pytest.raises(CorruptedError, match="does not begin and end"):
        replace(found, _passphrase=OTHER_KEY).seek()


HEAD = b"PGDMP and all that an archive of pg_dump begins with" * 20


def with_schema(made: Made, head: bytes = HEAD) -> tuple[Made, str, bytes]:
    """Return the backup whose manifest knows a table of contents, and its key and stored bytes."""
    encrypted = made.passphrase is not None
    known = made.with_manifest(schema_sha256=hashlib.sha256(HEAD).hexdigest())
    name = names.schema_name(made.base, made.manifest.id, encrypted=encrypted)
    return known, f"p/{name}", encryption.sealed(head, key_of(made.passphrase))


@encrypted_or_not
def test_the_schema_beside_an_archive(passphrase: str | None) -> None:
    made, key, sealed = with_schema(MADE[passphrase])
    storage = stored(made)
    assert not opened(storage).is_seekable
    storage.put(key, sealed, {"id": made.manifest.id})
    found = opened(storage)
    assert found.is_seekable
    assert found.schema() == HEAD
    storage.put(made.manifest_key, MADE[passphrase].packed_manifest(), {"id": made.manifest.id})
    assert not opened(storage).is_seekable


@encrypted_or_not
@pytest.mark.parametrize("kind", ["globals", "privileges"])
def test_the_roles_or_privileges_of_another_backup(kind: str, passphrase: str | None) -> None:
    script = b"CREATE ROLE reporting;\n"
    digest = hashlib.sha256(script).hexdigest()
    made = MADE[passphrase].with_manifest(**{f"{kind}_sha256": digest})
    encrypted = passphrase is not None
    named = names.globals_name if kind == "globals" else names.privileges_name
    name = named(made.base, made.manifest.id, encrypted=encrypted)
    storage = stored(made)
    read = operator.methodcaller(kind)
    assert read(opened(storage)) is None
    for changed in (script, script + b"ALTER ROLE reporting SUPERUSER;\n"):
        sealed = encryption.sealed(changed, key_of(passphrase))
        storage.put(f"p/{name}", sealed, {"id": made.manifest.id})
        if changed == script:
            assert read(opened(storage)) == script
            continue
        with pytest.raises(CorruptedError, match="are not those that were stored"):
            read(opened(storage))


@encrypted_or_not
def test_the_schema_of_another_backup(passphrase: str | None) -> None:
    made, key, sealed = with_schema(MADE[passphrase], HEAD[1:])
    storage = stored(made)
    storage.put(key, sealed, {"id": made.manifest.id})
    with pytest.raises(CorruptedError, match="is not the one that was stored"):
        opened(storage).schema()
    storage.delete([key])
    storage.put(key.replace(made.manifest.id, "0" * 16), sealed, {"id": "0" * 16})
    assert not opened(storage).is_seekable


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["plain", "encrypted"])
def test_the_schema_beside_a_file(passphrase: str | None, tmp_path: Path) -> None:
    made, key, sealed = with_schema(MADE[passphrase])
    path = tmp_path / made.key.removeprefix("p/")
    for name, data in (
        (made.key, made.archive),
        (made.manifest_key, made.packed_manifest()),
        (key, sealed),
    ):
        (tmp_path / name.removeprefix("p/")).write_bytes(data)
    found = archive.open_file(path, VERIFIED)
    assert found.is_seekable
    assert found.schema() == HEAD
    pieces = pieces_of(made, SCRIPT)
    assert b"".join(found.seek().member(1)) == pieces[1]


def test_without_a_manifest_nothing_can_be_sought(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    path.write_bytes(SCRIPT)
    found = archive.open_file(path, UNVERIFIED)
    assert not found.is_seekable
    with pytest.raises(AssertionError):
        found.seek()


def test_a_script_that_was_restricted_is_released() -> None:
    assert script.unrestrict_line(b"--\n\n\\restrict aB3\n\nSET x;\n") == b"\n\\unrestrict aB3\n"
    assert script.unrestrict_line(b"\\restrict aB3\n") == b"\n\\unrestrict aB3\n"
    for header in (b"", b"SET x = 1;\n", b"-- \\restrict aB3\n", b"\\restrict a B\n"):
        assert script.unrestrict_line(header) == b""


HEADER = b"SET lock_timeout = 0;\nSET transaction_timeout = 0;\n"
SEARCH_PATH = b"SELECT pg_catalog.set_config('search_path', '', false);\n"
BODY = b"COMMENT ON DATABASE a IS '\nSET transaction_timeout = 0;\n';\n"


@pytest.mark.parametrize(
    ("major", "dump", "expected"),
    [
        (16, HEADER + SEARCH_PATH + BODY, HEADER[:22] + SEARCH_PATH + BODY),
        (16, SEARCH_PATH + BODY, SEARCH_PATH + BODY),
        (16, BODY, BODY),
        (16, b"COPY a (line) FROM stdin;\nSET transaction_timeout = 0;\n" + SEARCH_PATH, None),
        (16, b"", b""),
        (17, HEADER + SEARCH_PATH + BODY, HEADER + SEARCH_PATH + BODY),
    ],
)
def test_a_setting_that_is_too_new_is_left_out_of_the_header(
    major: int, dump: bytes, expected: bytes | None
) -> None:
    known = b"".join(script.without_settings_unknown_to(major, iter([dump, BODY])))
    assert known == (dump if expected is None else expected) + BODY
