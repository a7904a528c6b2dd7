"""What is specific to a store in a folder."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pgstash.errors import (
    Interrupted,
    ObjectDamagedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)
from pgstash.storage.directory import upload as directory_upload
from pgstash.storage.directory.storage import DirectoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from pgstash.storage.directory.storage import DirectoryStorage
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
    """Whatever the umask allows. An existing folder keeps its mode."""
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


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"7",
        b'{"id": 1}',
        b'{"id": null}',
        b'{"id": {"of": "it"}}',
        b'{"id": "\xff"}',
        b"[" * 100_000,
        b'{"id": "' + b"x" * 100_000 + b'"}',
        b"9" * 10_000,
    ],
    ids=lambda damage: repr(damage[:20]),
)
def test_damaged_metadata_are_an_error(tmp_path: Path, damage: bytes) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.put("key", b"", {"id": "1"})
    (tmp_path / ".key.metadata.json").write_bytes(damage)
    with pytest.raises(ObjectDamagedError, match="damaged"):
        storage.head("key")
    assert [found.key for found in storage.list("")] == ["key"]


# Other kinds of files under our names must not block pgstash, or be treated as objects.


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


def a_folder(path: Path) -> None:
    path.mkdir()
    (path / "other").write_bytes(b"a file of somebody")


def failure(operation: Callable[[], object]) -> StorageError | None:
    """Return the StorageError that an operation raises, or None."""
    try:
        operation()
    except StorageError as error:
        return error
    return None


def status(operation: Callable[[], object]) -> int:
    """Return the exit status of an operation."""
    error = failure(operation)
    return error.exit_code if error else 0


def read_all(storage: DirectoryStorage, key: str) -> None:
    with storage.read(key) as chunks:
        b"".join(chunks)


def write_all(storage: DirectoryStorage, key: str) -> None:
    with storage.upload(key, metadata={}, expected_size=1) as upload:
        upload.write(b"data")
        upload.commit()


OTHERS = [a_pipe, a_socket, a_link_to_a_device, a_link_to_itself, a_link_to_nothing, a_folder]
NAME = "p/backup_20261129_000000.sql.gz"


@pytest.fixture
def impatient() -> Iterator[None]:
    """End a test that hangs: opening a pipe can wait forever."""

    def fail(*_: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 60)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.usefixtures("impatient")
def test_other_files_of_a_backups_name_are_skipped_and_refused(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    storage = DirectoryStorage(tmp_path)
    storage.put("p/backup_20261128_000000.sql.gz", b"ours", {})
    make(tmp_path / NAME)
    listed = [found.key for found in storage.list("p/backup_")]
    assert NAME not in listed
    assert listed[0] == "p/backup_20261128_000000.sql.gz"
    assert status(lambda: storage.head(NAME)) in {21, 24}
    assert status(lambda: read_all(storage, NAME)) in {21, 24}
    assert status(lambda: write_all(storage, NAME)) == 23  # nothing is replaced, whatever it is
    assert list(storage.pending("")) == []


@pytest.mark.parametrize("make", OTHERS)
@pytest.mark.usefixtures("impatient")
def test_other_files_in_the_place_of_hidden_ones(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """The metadata, the lock and an upload."""
    storage = DirectoryStorage(tmp_path)
    storage.put("key", b"ours", {"id": "1"})
    (tmp_path / ".key.metadata.json").unlink()
    make(tmp_path / ".key.metadata.json")
    make(tmp_path / ".key.20261129T000000Z-0123456789abcdef.partial")
    assert list(storage.pending("")) == []
    expected = {"a_link_to_nothing": 0, "a_link_to_itself": 21}.get(make.__name__, 26)
    assert status(lambda: storage.head("key")) == expected
    (tmp_path / ".pgstash.lock").unlink()
    make(tmp_path / ".pgstash.lock")
    assert status(lambda: storage.put("other", b"", {})) in {0, 21}


@pytest.mark.parametrize(
    "name", [".key.99999999T999999Z-0123456789abcdef.partial", ".key.x.partial", ".partial"]
)
def test_what_is_no_upload_of_ours_is_not_pending(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert list(DirectoryStorage(tmp_path).pending("")) == []


def test_names_that_are_no_text_and_times_that_are_none_are_survived(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"latin-\xe4")).write_bytes(b"")
    (tmp_path / "key").write_bytes(b"")
    os.utime(tmp_path / "key", (10**12, 10**12))
    storage = DirectoryStorage(tmp_path)
    (found,) = storage.list("")
    assert found.key == "key"
    assert storage.head("key").modified == found.modified


def test_folders_that_hold_no_key_of_the_prefix_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lost+found, which only root may open, or the snapshots of a NAS."""
    for folder in ("lost+found", ".snapshot/p", "p/.zfs", "p/backup_old", "p/other"):
        (tmp_path / folder).mkdir(parents=True)
    storage = DirectoryStorage(tmp_path)
    storage.put("p/backup_1", b"", {})
    opened: list[str] = []
    scandir = os.scandir

    def scan(path: Path) -> object:
        opened.append(str(path.relative_to(tmp_path)))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)
    assert [found.key for found in storage.list("p/backup_")] == ["p/backup_1"]
    assert opened == ["p", "p/backup_old"]


# The errors of the operating system, each with the expected error and remedy.
ANSWERS = {
    errno.EACCES: (StorageRefusedError, "owner"),
    errno.EPERM: (StorageRefusedError, "owner"),
    errno.EROFS: (StorageRefusedError, "read-only"),
    errno.ENOSPC: (StorageRefusedError, "space"),
    errno.EDQUOT: (StorageRefusedError, "quota"),
    errno.ELOOP: (StorageRefusedError, "symbolic link"),
    errno.ENAMETOOLONG: (StorageRefusedError, "too long"),
    errno.EIO: (StorageUnreachableError, "kernel log"),
    errno.ESTALE: (StorageUnreachableError, "mounted share"),
    errno.ETIMEDOUT: (StorageUnreachableError, "mounted share"),
    errno.EMFILE: (StorageUnreachableError, "limit"),
    errno.EXDEV: (StorageRefusedError, "file system"),
}


@pytest.mark.parametrize("code", ANSWERS, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", ["stat", "scandir", "open", "unlink", "link", "fsync"])
def test_what_the_system_answers_is_an_error_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int
) -> None:
    """Whichever call fails, no OSError gets through."""
    error, remedy = ANSWERS[code]
    storage = DirectoryStorage(tmp_path)
    storage.put("p/key", b"data", {"id": "1"})
    real = getattr(os, function)

    def answer(path: object, *arguments: Any, **options: Any) -> Any:
        inside = isinstance(path, int) or str(path).startswith(str(tmp_path))
        if inside:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **options)

    with monkeypatch.context() as planted:
        planted.setattr(os, function, answer)
        met = [
            failure(operation)
            for operation in (
                storage.check,
                lambda: list(storage.list("p/")),
                lambda: list(storage.pending("p/")),
                lambda: storage.head("p/key"),
                lambda: read_all(storage, "p/key"),
                lambda: storage.put("p/other", b"", {}),
                lambda: write_all(storage, "p/another"),
                lambda: storage.delete(["p/key"]),
            )
        ]
    failed = [each for each in met if each]
    assert failed or (function, code) == ("link", errno.EPERM)  # then a rename gives the name
    for each in failed:
        assert isinstance(each, error)
        assert remedy in each.hint


def test_a_file_where_a_folder_must_be(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"a file of somebody")
    storage = DirectoryStorage(tmp_path)
    with pytest.raises(StorageRefusedError) as caught:
        storage.put("p/key", b"", {})
    assert "Move it away" in caught.value.hint
    assert list(storage.list("p/")) == []
    storage.delete(["p/key"])
    with pytest.raises(ObjectNotFoundError):
        storage.head("p/key")


def test_a_key_that_is_too_long(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    with pytest.raises(StorageRefusedError) as caught:
        storage.put("x" * 300, b"", {})
    assert "too long" in caught.value.hint


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
    """The file may exist, so its companions must not be removed."""
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
    """Python runs the handler before the caller has the file that it would remove."""

    def opened_by_then(path: str, flags: int) -> int:
        os.close(os.open(path, flags, 0o600))
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(directory_upload, "for_us_alone", opened_by_then)
    storage = DirectoryStorage(tmp_path)
    with (
        pytest.raises(Interrupted),
        storage.upload("p/backup", metadata={}, expected_size=0),
    ):
        raise AssertionError("nothing is begun")
    assert list((tmp_path / "p").iterdir()) == []
