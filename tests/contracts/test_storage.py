"""The promises of a store, tested with each store."""

# ruff: noqa: PT012 - what must fail is a whole upload

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import (
    ObjectDamagedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    UploadError,
)
from pgstash.storage.s3 import deletion

if TYPE_CHECKING:
    from pgstash.storage.interface import Storage

MIB = 1024 * 1024
PART = 5 * MIB
SLOW = ("seaweedfs", "azure")
NOISE = random.Random(1).randbytes(2 * PART + 12345)  # noqa: S311 - data, not a secret


def store(storage: Storage, key: str, data: bytes, metadata: dict[str, str] | None = None) -> None:
    with storage.upload(key, metadata=metadata or {"id": "1"}, expected_size=len(data)) as upload:
        upload.write(data)
        upload.commit()


def fetch(storage: Storage, key: str, *, start: int = 0, length: int | None = None) -> bytes:
    with storage.read(key, start=start, length=length) as chunks:
        return b"".join(chunks)


def keys(storage: Storage, prefix: str = "") -> list[str]:
    return [found.key for found in storage.list(prefix)]


def test_an_empty_store_is_fine(storage: Storage) -> None:
    storage.check()
    assert keys(storage) == []
    assert list(storage.pending("")) == []


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, len(NOISE)])
def test_an_upload_reads_back_as_it_was_written(storage: Storage, size: int) -> None:
    store(storage, "a/b.gz", NOISE[:size])
    assert fetch(storage, "a/b.gz") == NOISE[:size]
    assert storage.head("a/b.gz").size == size
    assert list(storage.pending("")) == []


def test_a_listing_may_begin_after_a_key_that_need_not_exist(storage: Storage) -> None:
    for key in ("a/1", "a/2", "a/20", "a/3", "b/1"):
        storage.put(key, b"x", {"id": "1"})
    assert [found.key for found in storage.list("a/", start_after="a/2")] == ["a/20", "a/3"]
    assert [found.key for found in storage.list("a/", start_after="a/29")] == ["a/3"]
    assert [found.key for found in storage.list("a/", start_after="a/3")] == []
    assert [found.key for found in storage.list("b/", start_after="a/1")] == ["b/1"]
    assert [found.key for found in storage.list("a/", start_after="")] == keys(storage, "a/")


def test_the_folders_of_a_folder(storage: Storage) -> None:
    assert list(storage.folders()) == []
    for key in ("a/1", "a/b/2", "a/b/c/3", "a/d e/ä/4", "a-1", "top", "x/y/z"):
        storage.put(key, b"x", {"id": "1"})
    assert list(storage.folders()) == ["a/", "x/"]
    assert list(storage.folders("a/")) == ["a/b/", "a/d e/"]
    assert list(storage.folders("a/d e/")) == ["a/d e/ä/"]
    assert list(storage.folders("a/b/c/")) == []
    assert list(storage.folders("none/")) == []


def test_a_folder_may_have_any_name(storage: Storage) -> None:
    wanted = ["'\"<>", "100%25", "=53hop", "a b", "a+b&c=d", "p", "q?x#y", "ünï"]
    for name in wanted:
        storage.put(f"p/{name}/backup", b"x", {})
        storage.put(f"p/{name}/deeper/backup", b"x", {})
    for other in ("p-other/x/backup", "p/backup", "other"):
        storage.put(other, b"x", {})
    for complete in (False, True):
        found = storage.folders("p/", complete=complete)
        assert list(found) == [f"p/{name}/" for name in wanted]
        assert list(storage.folders("none/", complete=complete)) == []


@pytest.mark.parametrize(
    "storage",
    # To store so much takes the others a while. Pages of S3 and GCS: see their own tests.
    [
        *("memory", "directory"),
        *(pytest.param(each, marks=pytest.mark.long) for each in ("s3", "gcs", *SLOW)),
    ],
    indirect=True,
)
def test_more_folders_than_one_page_holds(storage: Storage) -> None:
    wanted = [f"many/{number:04}/" for number in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda folder: storage.put(f"{folder}key", b"", {}), wanted))
    assert list(storage.folders("many/", complete=True)) == wanted
    assert set(storage.folders("many/")) <= set(wanted)


def test_pieces_of_any_length_are_written_in_order(storage: Storage) -> None:
    pieces = [NOISE[:1], b"", NOISE[1:1000], NOISE[1000 : PART + 7], NOISE[PART + 7 :]]
    with storage.upload("key", metadata={"id": "1"}, expected_size=len(NOISE)) as upload:
        assert upload.part_size in (0, PART)
        for piece in pieces:
            upload.write(piece)
        upload.flush()
        assert keys(storage) == []
        upload.commit()
    assert fetch(storage, "key") == NOISE


def test_writing_does_not_keep_the_callers_buffer(storage: Storage) -> None:
    buffer = bytearray(b"first")
    with storage.upload("key", metadata={"id": "1"}, expected_size=10) as upload:
        upload.write(bytes(memoryview(buffer)))
        buffer[:] = b"later"
        upload.write(bytes(buffer))
        upload.commit()
    assert fetch(storage, "key") == b"firstlater"


def test_the_url_names_the_key_and_no_secret(storage: Storage) -> None:
    assert storage.url("a/b").endswith("/a/b")
    assert "secret" not in storage.url("a/b") + repr(storage)


def test_metadata_come_back_with_lower_case_keys(storage: Storage) -> None:
    awkward = {
        "id": "0123456789abcdef",
        "Server-Version": "PostgreSQL 16.4 (Debian 16.4-1.pgdg120+1)",
        "equals": 'a=b; c="d"',
        "percent": "100%2F",
        "long": "x" * 250,
    }
    wanted = {name.lower(): value for name, value in awkward.items()}
    store(storage, "uploaded", b"x", awkward)
    storage.put("put", b"x", awkward)
    assert storage.head("uploaded").metadata == wanted
    assert storage.head("put").metadata == wanted


def test_a_listed_object_has_size_and_time(storage: Storage) -> None:
    storage.put("key", b"12345", {})
    (found,) = storage.list("")
    assert (found.key, found.size, found.metadata) == ("key", 5, {})
    assert found.modified.tzinfo is UTC
    assert abs(found.modified - datetime.now(UTC)) < timedelta(minutes=1)
    head = storage.head("key")
    assert abs(head.modified - found.modified) < timedelta(seconds=1.5)


def test_list_is_by_prefix_and_in_the_order_of_keys(
    storage: Storage, request: pytest.FixtureRequest
) -> None:
    for key in ["b/2", "b/10", "b-1", "B/1", "a/x/y", "b/1", "ä/1"]:
        storage.put(key, b"", {})
    # SeaweedFS keeps folders, and lists "b/1" before "b-1".
    by_folder = request.node.callspec.params["storage"] == "seaweedfs"
    of_all = sorted if by_folder else list
    assert of_all(keys(storage)) == ["B/1", "a/x/y", "b-1", "b/1", "b/10", "b/2", "ä/1"]
    assert keys(storage, "b/") == ["b/1", "b/10", "b/2"]
    assert keys(storage, "b/1") == ["b/1", "b/10"]
    assert of_all(keys(storage, "b")) == ["b-1", "b/1", "b/10", "b/2"]
    assert keys(storage, "nothing/") == []


@pytest.mark.parametrize(
    "key", ["with space", "ünï/cödé 日本", "a+b&c=d", "q?x#y", "100%25", "'\"<>"]
)
def test_any_text_is_a_key(storage: Storage, key: str) -> None:
    store(storage, key, b"content")
    assert keys(storage, key) == [key]
    assert fetch(storage, key) == b"content"
    assert storage.head(key).key == key
    storage.delete([key])
    assert keys(storage) == []


@pytest.mark.parametrize(
    ("storage", "batch", "number"),
    [
        ("memory", 1000, 1003),
        ("directory", 1000, 1003),
        # A page of Swift holds 100 keys, and it needs half a minute for a thousand.
        ("s3", 100, 103),
        *(pytest.param(each, 1000, 1003, marks=pytest.mark.long) for each in ("s3", *SLOW)),
    ],
    indirect=["storage"],
)
def test_more_keys_than_one_page_or_one_batch_holds(
    storage: Storage, batch: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "DELETE_BATCH", batch)
    wanted = [f"many/{each:04}" for each in range(number)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: storage.put(key, b"", {}), wanted))
    storage.put("other", b"", {})
    assert keys(storage, "many/") == wanted
    storage.delete(iter(wanted))
    assert keys(storage) == ["other"]


@pytest.mark.parametrize(
    ("start", "length"),
    [
        (0, None),
        (0, 0),
        (0, 1),
        (5, 10),
        (995, 5),
        (995, None),
        (2000, 0),
    ],
)
def test_a_range_is_read_alone(storage: Storage, start: int, length: int | None) -> None:
    storage.put("key", NOISE[:1000], {})
    end = None if length is None else start + length
    assert fetch(storage, "key", start=start, length=length) == NOISE[:1000][start:end]


@pytest.mark.parametrize(
    ("start", "length"), [(0, 1001), (990, 100), (1000, 5), (1000, None), (2000, None), (2000, 5)]
)
def test_a_range_that_the_object_does_not_have_is_an_error(
    storage: Storage, start: int, length: int | None
) -> None:
    """Never a short read, which a reader might mistake for the whole."""
    storage.put("key", NOISE[:1000], {})
    with pytest.raises(ObjectDamagedError, match="key"):
        fetch(storage, "key", start=start, length=length)


def test_an_object_that_is_replaced_by_a_shorter_one_is_read_whole_or_not(
    storage: Storage,
) -> None:
    store(storage, "key", NOISE)
    received = b""
    try:
        with storage.read("key", start=5) as chunks:
            for chunk in chunks:
                received += chunk
                storage.put("key", NOISE[:PART], {})
    except StorageError:
        return
    assert received == NOISE[5:]


def test_a_large_object_is_read_in_pieces_and_may_be_left_midway(storage: Storage) -> None:
    store(storage, "key", NOISE)
    with storage.read("key") as chunks:
        first = next(chunks)
    assert 0 < len(first) <= MIB
    assert NOISE.startswith(first)
    assert fetch(storage, "key", start=PART - 3, length=PART) == NOISE[PART - 3 : 2 * PART - 3]


def test_what_is_not_there_is_not_found(storage: Storage) -> None:
    with pytest.raises(ObjectNotFoundError):
        storage.head("missing/key")
    for length in (None, 0, 1):
        with pytest.raises(ObjectNotFoundError), storage.read("missing/key", length=length):
            pass


def test_deleting_what_is_not_there_is_no_error(storage: Storage) -> None:
    storage.put("key", b"", {})
    storage.delete(["missing", "key", "folder/missing"])
    storage.delete([])
    assert keys(storage) == []


def test_put_replaces(storage: Storage) -> None:
    storage.put("key", b"old", {"version": "old"})
    storage.put("key", b"newer", {"version": "new"})
    assert fetch(storage, "key") == b"newer"
    assert storage.head("key").metadata == {"version": "new"}


def test_commit_never_replaces(storage: Storage) -> None:
    storage.put("key", b"first", {"id": "first"})
    with (
        pytest.raises(ObjectExistsError),
        storage.upload("key", metadata={"id": "second"}, expected_size=1) as upload,
    ):
        upload.write(b"second")
        upload.commit()
    assert fetch(storage, "key") == b"first"
    assert storage.head("key").metadata == {"id": "first"}
    assert list(storage.pending("")) == []


def test_of_two_uploads_of_one_key_one_wins(storage: Storage) -> None:
    with (
        storage.upload("key", metadata={"id": "1"}, expected_size=1) as first,
        storage.upload("key", metadata={"id": "2"}, expected_size=1) as second,
    ):
        first.write(b"first")
        second.write(b"second")
        second.commit()
        with pytest.raises(ObjectExistsError):
            first.commit()
    assert fetch(storage, "key") == b"second"
    assert list(storage.pending("")) == []


def test_leaving_without_a_commit_leaves_nothing(storage: Storage) -> None:
    with storage.upload("key", metadata={"id": "1"}, expected_size=1) as upload:
        upload.write(NOISE)
    assert keys(storage) == []
    assert list(storage.pending("")) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("flushed", [False, True])
def test_an_error_in_the_block_leaves_nothing_and_goes_on(
    storage: Storage,
    error: type[BaseException],
    flushed: bool,  # noqa: FBT001
) -> None:
    with (
        pytest.raises(error, match="in the middle"),
        storage.upload("a/key", metadata={"id": "1"}, expected_size=1) as upload,
    ):
        upload.write(NOISE[: PART + 1])
        if flushed:
            upload.flush()
        raise error("in the middle")
    assert keys(storage) == []
    assert list(storage.pending("")) == []


def test_nothing_is_written_after_flush_or_commit(storage: Storage) -> None:
    with storage.upload("key", metadata={"id": "1"}, expected_size=1) as upload:
        upload.write(b"x")
        upload.flush()
        upload.flush()
        with pytest.raises(UploadError):
            upload.write(b"y")
        upload.commit()
        with pytest.raises(UploadError):
            upload.write(b"z")
    assert fetch(storage, "key") == b"x"


@pytest.mark.usefixtures("uploads_are_listed")
def test_a_pending_upload_is_seen_and_can_be_aborted(storage: Storage) -> None:
    with storage.upload("a/key", metadata={"id": "1"}, expected_size=1) as upload:
        upload.write(NOISE)
        upload.flush()  # Azure keeps parts that arrive after an abort: see the next test
        (pending,) = storage.pending("a/")
        assert pending.key == "a/key"
        assert abs(pending.started - datetime.now(UTC)) < timedelta(minutes=1)
        assert list(storage.pending("b/")) == []
        assert keys(storage) == []
        storage.abort(pending)
        assert list(storage.pending("")) == []
        with pytest.raises(StorageError):
            upload.commit()
    storage.abort(pending)
    assert keys(storage) == []


@pytest.mark.usefixtures("uploads_are_listed")
def test_an_upload_that_goes_on_after_its_abort_stores_nothing(storage: Storage) -> None:
    with storage.upload("a/key", metadata={"id": "1"}, expected_size=1) as upload:
        upload.write(NOISE[: PART + 1])
        pending = list(storage.pending("a/"))
        while not pending:  # the first part is on its way
            pending = list(storage.pending("a/"))
        storage.abort(pending[0])
        with pytest.raises(StorageError):
            upload.write(NOISE[PART + 1 :])
            upload.commit()
    assert keys(storage) == []
    assert list(storage.pending("")) == []
