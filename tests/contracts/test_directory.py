"""What is particular to a folder."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from pgstash.errors import (
    Interrupted,
    ObjectDamagedError,
    ObjectExistsError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage import directory
from pgstash.storage.directory import DirectoryStorage

if TYPE_CHECKING:
    from pathlib import Path

KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from pgstash.storage.directory import DirectoryStorage
with DirectoryStorage(Path(sys.argv[1])).upload("a/key", metadata={}, expected_size=1) as upload:
    upload.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    "key", ["../out", "a/../../out", "/etc/out", "", "a//b", "a/", ".hidden", "a/.b/c", "nul\0"]
)
def test_no_key_leads_out_of_the_root_or_to_a_hidden_file(tmp_path: Path, key: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    storage = DirectoryStorage(root)
    with pytest.raises(StorageRefusedError):
        storage.put(key, b"x", {})
    with pytest.raises(StorageRefusedError):
        storage.delete([key])
    with pytest.raises(StorageRefusedError):
        storage.head(key)
    assert list(tmp_path.rglob("*")) == [root]


def test_no_symbolic_link_leads_out_of_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(StorageRefusedError):
        DirectoryStorage(tmp_path / "root").put("link/out", b"x", {})


def test_a_missing_root_is_reported_and_not_made(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path / "nas")
    with pytest.raises(StorageUnreachableError) as caught:
        storage.check()
    assert "nas" in caught.value.message
    assert "mount" in caught.value.hint
    with pytest.raises(StorageUnreachableError):
        storage.put("a/b", b"", {})
    with pytest.raises(StorageUnreachableError):
        list(storage.list(""))
    assert not (tmp_path / "nas").exists()


def test_a_killed_process_leaves_a_hidden_file_that_can_be_swept(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_MIDWAY, tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    storage = DirectoryStorage(tmp_path)
    assert list(storage.list("")) == []
    (pending,) = storage.pending("a/")
    storage.abort(pending)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_objects_are_plain_files_with_their_metadata_beside(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.put("a/key", b"content", {"id": "1"})
    assert (tmp_path / "a" / "key").read_bytes() == b"content"
    assert (tmp_path / "a" / ".key.metadata.json").read_text() == '{"id": "1"}'
    (tmp_path / "by-hand").write_bytes(b"x")
    assert storage.head("by-hand").metadata == {}
    storage.delete(["a/key"])
    assert list((tmp_path / "a").iterdir()) == []


def test_nobody_else_may_read_a_backup(tmp_path: Path) -> None:
    """Whatever the umask allows; a folder that is there keeps its mode."""
    (tmp_path / "theirs").mkdir(mode=0o755)
    storage = DirectoryStorage(tmp_path)
    before = os.umask(0)
    try:
        storage.put("theirs/ours/key", b"content", {"id": "1"})
        with storage.upload("theirs/ours/more", metadata={}, expected_size=1) as upload:
            upload.write(b"half")
            modes = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    del modes[tmp_path / ".pgstash.lock"]  # it holds nothing
    assert len(modes) == 5
    assert modes.pop(tmp_path / "theirs") == 0o755
    assert modes.pop(tmp_path / "theirs" / "ours") == 0o700
    assert set(modes.values()) == {0o600}


def test_without_hard_links_nothing_is_replaced_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    storage = DirectoryStorage(tmp_path)
    for content in (b"first", b"second"):
        with storage.upload("key", metadata={"id": "1"}, expected_size=1) as upload:
            upload.write(content)
            if content == b"first":
                upload.commit()
            else:
                with pytest.raises(ObjectExistsError):
                    upload.commit()
    assert (tmp_path / "key").read_bytes() == b"first"


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with (
            pytest.raises(StorageRefusedError, match="too large"),
            storage.upload("key", metadata={"id": "1"}, expected_size=1) as upload,
        ):
            upload.write(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert list(tmp_path.iterdir()) == []


def test_damaged_metadata_are_an_error(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.put("key", b"", {"id": "1"})
    (tmp_path / ".key.metadata.json").write_text("{")
    with pytest.raises(StorageError, match="damaged"):
        storage.head("key")


def test_a_file_that_is_cut_short_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.put("key", bytes(1_000_000), {})
    with storage.read("key") as chunks:
        next(chunks)
        os.truncate(tmp_path / "key", 300_000)
        with pytest.raises(ObjectDamagedError, match="shorter"):
            b"".join(chunks)


def test_a_disk_that_stumbles_after_the_name_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is there for all that is known: so what belongs to it must not be removed."""
    fsync = os.fsync

    def fail_on_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "planted")
        fsync(descriptor)

    upload = DirectoryStorage(tmp_path).upload("key", metadata={}, expected_size=1)
    with upload:
        upload.write(b"data")
        upload.flush()
        monkeypatch.setattr(os, "fsync", fail_on_folders)
        with pytest.raises(StorageError):
            upload.commit()
    assert (tmp_path / "key").read_bytes() == b"data"
    assert upload.committed is None


def test_a_signal_while_the_file_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python runs the handler before the file has come to whoever would remove it."""

    def opened_by_then(path: str, flags: int) -> int:
        os.close(os.open(path, flags, 0o600))
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(directory, "_for_us_alone", opened_by_then)
    storage = DirectoryStorage(tmp_path)
    with (
        pytest.raises(Interrupted),
        storage.upload("p/backup", metadata={}, expected_size=0),
    ):
        raise AssertionError("nothing is begun")
    assert list((tmp_path / "p").iterdir()) == []
