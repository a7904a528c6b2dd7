"""Pruning, with every store: what is removed and kept, and that other sources are not touched."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pgstash import events
from pgstash.errors import (
    ObjectNotFoundError,
    SourceUnclearError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
    WriterBusyError,
)
from pgstash.format import identity
from pgstash.format.identity import Identity
from pgstash.format.metadata import encoded
from pgstash.prune import retention
from pgstash.prune import run as prune
from pgstash.repository import catalog
from pgstash.repository.owners import Owners
from pgstash.runtime import Runtime
from pgstash.storage.directory.storage import DirectoryStorage
from pgstash.storage.interface import PendingUpload, Storage, StoredObject
from pgstash.storage.memory import MemoryStorage
from pgstash.storage.s3.storage import S3Storage
from support.proxy import Answer, HttpProxy
from support.swift import SwiftServer

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=30)
ID = "0123456789abcdef"
OTHER_ID = "fedcba9876543210"
SHOP = Identity("shop", "7301234567890123456", "db1", "5432")
BLOG = Identity("blog", "7301234567890123456", "db1", "5432")
OLD = "backup_20200101_000000"
NEW = "backup_20200102_000000"
LATEST = "backup_20200103_000000"


def archive(base: str) -> str:
    return f"db/{base}.sql.gz"


def manifest(base: str, backup_id: str = ID) -> str:
    return f"db/{base}.{backup_id}.manifest.json.gz"


def store(
    storage: Storage,
    *bases: str,
    encrypted: bool = False,
    backup_id: str = ID,
    source: Identity | None = None,
) -> None:
    """Store backups as pgstash does: the manifest first, its id in the archive's metadata.

    Without a ``source`` their metadata names none.
    """
    ending = ".enc" if encrypted else ""
    metadata = {"id": backup_id, **(encoded(source.metadata()) if source else {})}
    for base in bases:
        storage.put(manifest(base, backup_id) + ending, b"{}", metadata)
        storage.put(archive(base) + ending, b"data", metadata)


def beside(base: str, kind: str, backup_id: str = ID) -> str:
    return f"db/{base}.{backup_id}.{kind}.gz"


def prove(storage: Storage, base: str, when: str = "20260101_000000", backup_id: str = ID) -> str:
    """Store the proof of a drill that passed, and return its key."""
    key = beside(base, f"proof_{when}.json", backup_id)
    storage.put(key, b"{}", {"id": backup_id})
    return key


def keys(storage: Storage) -> list[str]:
    return [found.key for found in storage.list("")]


def run(
    storage: Storage,
    *,
    days: int = 7,
    last: int | None = None,
    now: datetime = NOW,
    heard: list[events.Event] | None = None,
    dry_run: bool = False,
    exclusive: prune.Exclusive = nullcontext,
    sources: Sequence[Identity] = (),
    explained: bool = True,
) -> prune.Pruned:
    """Prune: the backups of these sources, or of the only one that there is."""
    policy = retention.Policy(days=days, last=last)
    owners = Owners(storage)
    plan = prune.Plan(
        "db",
        policy,
        sweep_after_days=7,
        choose=lambda backups: sources or owners.choose(backups),
        exclusive=exclusive,
        explained=explained,
        dry_run=dry_run,
    )
    emit = events.ignore if heard is None else heard.append
    return prune.run(plan, storage, owners, Runtime(emit, now=lambda: now))


def test_an_old_backup_goes_with_its_manifest(storage: Storage) -> None:
    young = (NOW - timedelta(days=1)).strftime("backup_%Y%m%d_%H%M%S")
    store(storage, OLD, NEW, young)
    heard: list[events.Event] = []
    pruned = run(storage, heard=heard)
    assert keys(storage) == [manifest(young), archive(young)]
    assert [decision.backup.key for decision in pruned.removed] == [archive(OLD), archive(NEW)]
    assert heard == [
        events.BackupKept(f"{young}.sql.gz", ("the newest", "within 7 days")),
        events.BackupRemoved(f"{OLD}.sql.gz", ("older than 7 days",), dry_run=False),
        events.BackupRemoved(f"{NEW}.sql.gz", ("older than 7 days",), dry_run=False),
        events.PruneFinished(storage.url("db"), kept=1, removed=2, swept=0, dry_run=False),
    ]


def fail(
    storage: Storage, base: str, source: Identity | None = SHOP, kind: str = "failure.json.gz"
) -> str:
    """Store the record of a failed run as pgstash does, and return its key."""
    key = f"db/{base}.{OTHER_ID}.{kind}"
    known = encoded(source.metadata()) if source else {}
    storage.put(key, b"{}", {"id": OTHER_ID, **known})
    return key


@pytest.mark.plainest_stores_first
def test_the_record_of_a_failure_goes_when_a_backup_of_its_age_would(storage: Storage) -> None:
    """It counts as no backup: the newest backup stays, although a failure is newer."""
    store(storage, OLD, source=SHOP)
    young = (NOW - timedelta(days=1)).strftime("backup_%Y%m%d_%H%M%S")
    kept = [
        fail(storage, young),
        fail(storage, "backup_20200104_000000", BLOG),
        fail(storage, "backup_20200105_000000", Identity("shop", "1", "db1", "5432")),
        # Their names are like those of pgstash, but nothing identifies them.
        f"db/{LATEST}.{ID}.failure.json.gz",
        f"db/{LATEST}.{ID}.failure.txt",
    ]
    for key in kept[-2:]:
        storage.put(key, b"{}", {})
    # The server of the second one did not answer, so its identifier is unknown.
    nameless = Identity("shop", None, "db1", "5432")
    gone = [fail(storage, NEW), fail(storage, LATEST, nameless)]
    heard: list[events.Event] = []
    dry = run(storage, sources=[SHOP], dry_run=True)
    assert sorted(keys(storage)) == sorted([manifest(OLD), archive(OLD), *gone, *kept])
    pruned = run(storage, sources=[SHOP], heard=heard)
    assert sorted(dry.swept) == sorted(pruned.swept) == sorted(gone)
    assert sorted(keys(storage)) == sorted([manifest(OLD), archive(OLD), *kept])
    reason = f"it is of a run that failed {(NOW - datetime(2020, 1, 2, tzinfo=UTC)).days} days ago"
    assert events.LeftoverSwept(storage.url(gone[0]), reason, dry_run=False) in heard


def test_the_wrapped_passphrase_of_a_failure_goes_with_it() -> None:
    storage = MemoryStorage()
    store(storage, LATEST, source=SHOP)
    for kind in ("failure.json.gz.enc", "failure.key.age", "failure.key.kms"):
        fail(storage, NEW, kind=kind)
    fail(storage, OLD, kind="failure.key.age")  # its record was never stored
    run(storage, sources=[SHOP])
    assert keys(storage) == [manifest(LATEST), archive(LATEST)]


def test_a_failure_that_may_be_of_another_source_stays() -> None:
    """Its server did not answer, and another one at that address has backups here."""
    storage = MemoryStorage()
    store(storage, LATEST, source=SHOP)
    store(storage, NEW, source=Identity("shop", "1", "db1", "5432"), backup_id=OTHER_ID)
    record = fail(storage, OLD, Identity("shop", None, "db1", "5432"))
    run(storage, sources=[SHOP])
    assert record in keys(storage)


@pytest.mark.plainest_stores_first
def test_the_newest_stays_however_old(storage: Storage) -> None:
    store(storage, OLD, NEW)
    run(storage, days=1)
    run(storage, days=1)
    assert keys(storage) == [manifest(NEW), archive(NEW)]


@pytest.mark.plainest_stores_first
def test_the_newest_proven_one_stays_with_all_of_its_own_until_a_newer_one_is_proven(
    storage: Storage,
) -> None:
    store(storage, OLD, NEW, LATEST)
    proofs = [prove(storage, NEW), prove(storage, NEW, "20260102_000000")]
    roles = beside(NEW, "globals")
    storage.put(roles, b"roles", {"id": ID})
    prove(storage, OLD, "20260103_000000")
    storage.put(beside(OLD, "globals"), b"roles", {"id": ID})
    heard: list[events.Event] = []
    run(storage, heard=heard)
    run(storage, now=LATER)
    left = [manifest(NEW), archive(NEW), roles, *proofs, manifest(LATEST), archive(LATEST)]
    assert sorted(keys(storage)) == sorted(left)
    assert events.BackupKept(f"{NEW}.sql.gz", (events.KEPT_AS_PROVEN,)) in heard

    newer = prove(storage, LATEST)
    run(storage)
    assert sorted(keys(storage)) == sorted([manifest(LATEST), archive(LATEST), newer])


@pytest.mark.plainest_stores_first
def test_a_proof_beside_a_stray_manifest_still_counts(storage: Storage) -> None:
    """With two ids under one name, the archive identifies its own."""
    store(storage, OLD, NEW)
    proof = prove(storage, OLD)
    storage.put(manifest(OLD, OTHER_ID), b"{}", {"id": OTHER_ID})
    run(storage)
    assert {archive(OLD), manifest(OLD), proof} <= set(keys(storage))


@pytest.mark.plainest_stores_first
def test_the_proof_of_another_does_not_count(storage: Storage) -> None:
    store(storage, OLD, NEW, LATEST)
    mine = prove(storage, OLD)
    prove(storage, NEW, backup_id=OTHER_ID)
    run(storage, now=LATER)
    expected = [archive(OLD), manifest(OLD), mine, archive(LATEST), manifest(LATEST)]
    assert sorted(keys(storage)) == sorted(expected)


@pytest.mark.plainest_stores_first
def test_encrypted_ones_go_with_theirs(storage: Storage) -> None:
    store(storage, OLD, NEW, encrypted=True)
    run(storage)
    assert keys(storage) == [manifest(NEW) + ".enc", archive(NEW) + ".enc"]


@pytest.mark.plainest_stores_first
def test_wrapped_passphrases_go_with_their_backup_and_are_swept(storage: Storage) -> None:
    store(storage, OLD, NEW, encrypted=True)
    wrapped = [f"db/{OLD}.{ID}.key.age", f"db/{NEW}.{ID}.key.age", f"db/{NEW}.{OTHER_ID}.key.age"]
    for key in wrapped:
        storage.put(key, b"age", {"id": key.split(".")[1]})
    swept = run(storage, now=NOW + timedelta(hours=25)).swept
    assert swept == [wrapped[2]]
    assert keys(storage) == [wrapped[1], manifest(NEW) + ".enc", archive(NEW) + ".enc"]


@pytest.mark.plainest_stores_first
def test_backups_of_the_shell_service_count_and_go_alike(storage: Storage) -> None:
    for base in (OLD, NEW, "backup_20200103_000000"):
        storage.put(archive(base), b"data", {})
    storage.put(archive("backup_20200104_000000") + ".enc", b"data", {})
    run(storage, last=2)
    assert keys(storage) == [
        archive("backup_20200103_000000"),
        archive("backup_20200104_000000") + ".enc",
    ]


@pytest.mark.plainest_stores_first
def test_a_dry_run_deletes_nothing_and_says_the_same(storage: Storage) -> None:
    store(storage, OLD, NEW)
    storage.put(manifest(OLD, OTHER_ID), b"{}", {"id": OTHER_ID})
    before = keys(storage)
    heard: list[events.Event] = []
    would = run(storage, dry_run=True, now=LATER, heard=heard)
    assert keys(storage) == before
    assert [event for event in heard if isinstance(event, events.BackupRemoved)] == [
        events.BackupRemoved(f"{OLD}.sql.gz", ("older than 7 days",), dry_run=True)
    ]
    done = run(storage, now=LATER)
    assert done.removed == would.removed
    assert done.kept == would.kept


FOREIGN = [
    "backup_20200101_000000.sql.gz",
    "db",
    "db/.keep",
    "db/20200101_000000.sql.gz",
    "db/Backup_20200101_000000.sql.gz",
    "db/backup_20200101_000000",
    "db/backup_20200101_000000.sql",
    "db/backup_20200101_000000.sql.gz.bak",
    "db/backup_20200101_000000.sql.gz.enc.bak",
    "db/backup_20200101_000000.sql.gz/part",
    "db/backup_20200101_000000.sql.gz\n",
    "db/backup_20200101_000000.sql.zst",
    "db/backup_20200101_000000_copy.sql.gz",
    "db/backup_20200101_0000000.sql.gz",
    "db/backup_20200101_240000.sql.gz",
    "db/backup_20200101_000060.sql.gz",
    "db/backup_20201399_000000.sql.gz",
    "db/backup_20200230_000000.sql.gz",
    "db/backup_00000101_000000.sql.gz",
    "db/backup_2020011\u0661_000000.sql.gz",
    "db/backup_20200101_000000.0123456789ABCDEF.manifest.json.gz",
    "db/backup_20200101_000000.01234567.manifest.json.gz",
    "db/backup_20200101_000000.manifest.json.gz",
    "db/backup_20209999_000000.0123456789abcdef.manifest.json.gz",
    "db/my_backup_20200101_000000.sql.gz",
    "db/other/backup_20200101_000000.sql.gz",
    "db2/backup_20200101_000000.sql.gz",
]


def test_what_is_not_ours_is_not_touched(storage: Storage) -> None:
    foreign = FOREIGN
    if isinstance(storage, DirectoryStorage):  # a file is no folder, nor hidden
        foreign = [key for key in FOREIGN if key not in {"db", "db/.keep", f"{archive(OLD)}/part"}]
    for key in foreign:
        storage.put(key, b"precious", {"id": ID})
    store(storage, OLD, NEW)
    run(storage, now=LATER)
    assert sorted(keys(storage)) == sorted([*foreign, manifest(NEW), archive(NEW)])


@pytest.mark.plainest_stores_first
@pytest.mark.parametrize(
    "storage",
    # Swift and Azurite take their time.
    [
        "memory",
        "directory",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("s3", "azure")),
    ],
    indirect=True,
)
def test_more_than_a_page_of_them(storage: Storage) -> None:
    first = datetime(2020, 1, 1, tzinfo=UTC)
    bases = [f"{first + timedelta(hours=hour):backup_%Y%m%d_%H%M%S}" for hour in range(1003)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda base: storage.put(archive(base), b"data", {}), bases))
    pruned = run(storage, last=2)
    assert keys(storage) == [archive(base) for base in bases[-2:]]
    assert len(pruned.removed) == 1001


# Other sources.


@pytest.mark.plainest_stores_first
@pytest.mark.usefixtures("uploads_are_listed")
def test_the_last_backup_of_another_source_is_not_touched(storage: Storage) -> None:
    """Its companions and unfinished uploads are not touched, and it counts for no rule."""
    store(storage, OLD, source=BLOG)
    proof = prove(storage, OLD)
    orphan = manifest("backup_20191231_000000")
    storage.put(orphan, b"{}", {"id": ID, **BLOG.metadata()})
    young = (NOW - timedelta(days=1)).strftime("backup_%Y%m%d_%H%M%S")
    store(storage, NEW, LATEST, source=SHOP)
    store(storage, young, source=BLOG)
    theirs = [orphan, manifest(OLD), proof, archive(OLD), manifest(young), archive(young)]
    heard: list[events.Event] = []
    with storage.upload(archive("backup_20191230_000000"), metadata={"id": ID}, expected_size=1):
        for now in (NOW, LATER):
            pruned = run(storage, now=now, last=1, sources=[SHOP], heard=heard)
            assert pruned.swept == []
            assert [each.backup.key for each in pruned.kept] == [archive(LATEST)]
        assert len(list(storage.pending(""))) == 1
    assert sorted(keys(storage)) == sorted([*theirs, manifest(LATEST), archive(LATEST)])
    assert events.OthersLeft(BLOG.label, 2) in heard
    # Uploads that stay, and cost, are reported by the run that finds them old.
    [left_out] = [each.message for each in heard if isinstance(each, events.Informed)]
    assert left_out.startswith(
        "Leftovers were not swept: unfinished uploads (1), which take up space, may belong to"
    )
    # Selected by name, it is pruned like any: its newest stays, and its orphan is swept.
    assert run(storage, now=LATER, sources=[BLOG]).swept == [orphan]
    left = [manifest(young), archive(young), manifest(LATEST), archive(LATEST)]
    assert sorted(keys(storage)) == sorted([manifest(OLD), proof, archive(OLD), *left])


@pytest.mark.plainest_stores_first
def test_what_is_proven_by_asking_costs_no_other_source_its_last_backup(storage: Storage) -> None:
    """Names alone do not identify the owner of a proof if another backup left something too."""
    young = (NOW - timedelta(days=1)).strftime("backup_%Y%m%d_%H%M%S")
    store(storage, OLD, source=BLOG)
    prove(storage, OLD)
    store(storage, young, backup_id=OTHER_ID, source=SHOP)
    prove(storage, young, backup_id=OTHER_ID)
    storage.put(manifest(young), b"{}", {"id": ID})
    before = keys(storage)
    pruned = run(storage, sources=[SHOP], explained=False)
    assert pruned.removed == []
    assert keys(storage) == before


@pytest.mark.plainest_stores_first
def test_the_same_name_on_another_server_is_another_source(storage: Storage) -> None:
    store(storage, OLD, source=replace(SHOP, system="1"))
    store(storage, NEW, source=replace(SHOP, host="db2"))
    store(storage, LATEST, source=SHOP)
    run(storage, sources=[SHOP])
    expected = [archive(OLD), manifest(OLD), archive(LATEST), manifest(LATEST)]
    assert sorted(keys(storage)) == sorted(expected)


@pytest.mark.plainest_stores_first
def test_of_a_source_that_was_moved_old_and_new_count_as_one_if_both_are_named(
    storage: Storage,
) -> None:
    moved = replace(SHOP, system="1")
    store(storage, OLD, NEW, source=SHOP)
    store(storage, LATEST, source=moved)
    with pytest.raises(SourceUnclearError, match=SHOP.label):
        run(storage)
    run(storage, sources=[moved, SHOP])
    assert keys(storage) == [manifest(LATEST), archive(LATEST)]


@pytest.mark.plainest_stores_first
def test_earlier_backups_of_the_same_names_go_unless_they_may_be_anothers(
    storage: Storage,
) -> None:
    """Those of an earlier pgstash name database and host; of the shell service some name none."""
    unnamed, other = archive("backup_20191231_000000"), "backup_20200104_000000"
    ours = [manifest(LATEST), archive(LATEST)]

    def left(source: Identity) -> list[str]:
        """Return what is left, except for the backup of this other source."""
        store(storage, other, source=source)
        run(storage, sources=[SHOP])
        storage.delete([archive(other), manifest(other)])
        return keys(storage)

    store(storage, OLD, source=Identity("shop", None, "db1"))
    storage.put(unnamed, b"data", {})
    store(storage, LATEST, source=SHOP)
    assert left(replace(SHOP, system="1")) == [unnamed, manifest(OLD), archive(OLD), *ours]
    assert left(replace(SHOP, system="1", host="db2")) == [unnamed, *ours]
    assert left(Identity("shop", None, "db2")) == [unnamed, *ours]
    run(storage, sources=[SHOP])
    assert keys(storage) == ours


@pytest.mark.plainest_stores_first
def test_what_does_not_name_its_source_is_another_s_if_ours_do_by_then(storage: Storage) -> None:
    since = {"id": ID, **identity.continued(SHOP, None, datetime(2020, 1, 2, tzinfo=UTC))}
    storage.put(archive(OLD), b"data", {})
    storage.put(archive(LATEST), b"data", {})
    for base in (NEW, "backup_20200104_000000"):
        storage.put(archive(base), b"data", since)
    run(storage, sources=[SHOP])
    assert keys(storage) == [archive(OLD), archive(LATEST), archive("backup_20200104_000000")]
    storage.delete([archive(LATEST)])
    run(storage, sources=[SHOP])
    assert keys(storage) == [archive("backup_20200104_000000")]


# Leftovers.


@pytest.mark.plainest_stores_first
def test_orphans_are_swept_when_a_day_has_passed(storage: Storage) -> None:
    store(storage, NEW)
    storage.put(manifest(OLD), b"{}", {"id": ID})
    storage.put(manifest(NEW, OTHER_ID), b"{}", {"id": OTHER_ID})
    before = keys(storage)
    run(storage, now=NOW + timedelta(hours=23))
    assert keys(storage) == before
    heard: list[events.Event] = []
    assert run(storage, now=NOW + timedelta(hours=25), heard=heard).swept == [
        manifest(OLD),
        manifest(NEW, OTHER_ID),
    ]
    assert keys(storage) == [manifest(NEW), archive(NEW)]
    assert (
        events.LeftoverSwept(storage.url(manifest(OLD)), "no backup belongs to it", dry_run=False)
        in heard
    )


@pytest.mark.plainest_stores_first
@pytest.mark.parametrize("metadata", [{}, {"id": OTHER_ID}], ids=["none", "of another"])
def test_an_orphan_whose_metadata_are_not_ours_stays(
    storage: Storage, metadata: dict[str, str]
) -> None:
    store(storage, NEW)  # without one of the same source nothing would be swept
    storage.put(manifest(OLD), b"{}", metadata)
    before = keys(storage)
    run(storage, now=LATER)
    assert keys(storage) == before


@pytest.mark.plainest_stores_first
def test_a_young_manifest_of_a_removed_name_may_belong_to_a_running_backup(
    storage: Storage,
) -> None:
    store(storage, OLD, NEW)
    storage.put(manifest(OLD, OTHER_ID), b"{}", {"id": OTHER_ID})
    run(storage)
    assert keys(storage) == [manifest(OLD, OTHER_ID), manifest(NEW), archive(NEW)]


@pytest.mark.plainest_stores_first
def test_a_copy_without_metadata_goes_with_all_that_has_its_name(storage: Storage) -> None:
    store(storage, OLD, NEW)
    storage.put(archive(OLD), b"data", {})
    run(storage)
    assert keys(storage) == [manifest(NEW), archive(NEW)]


@pytest.mark.usefixtures("uploads_are_listed")
def test_only_old_uploads_of_our_names_are_swept(storage: Storage) -> None:
    begun = [
        archive(OLD),
        archive(NEW) + ".enc",
        archive(OLD) + ".bak",
        archive("backup_20209999_000000"),
        "db/other/backup_20200101_000000.sql.gz",
        "db2/backup_20200101_000000.sql.gz",
        "db/video.mp4",
    ]
    with ExitStack() as uploads:
        for key in begun:
            uploads.enter_context(storage.upload(key, metadata={"id": ID}, expected_size=1))
        assert run(storage, now=NOW + timedelta(days=6)).swept == []
        would = run(storage, now=NOW + timedelta(days=8), dry_run=True)
        assert sorted(would.swept) == begun[:2]
        assert len(list(storage.pending(""))) == len(begun)
        swept = run(storage, now=NOW + timedelta(days=8)).swept
        assert sorted(swept) == begun[:2]
        assert sorted(upload.key for upload in storage.pending("")) == sorted(begun[2:])


def not_exclusive() -> AbstractContextManager[object]:
    raise WriterBusyError("a backup runs")


@pytest.mark.plainest_stores_first
@pytest.mark.usefixtures("uploads_are_listed")
def test_leftovers_stay_while_a_backup_may_run_and_old_backups_go(storage: Storage) -> None:
    store(storage, OLD, NEW)
    storage.put(manifest(NEW, OTHER_ID), b"{}", {"id": OTHER_ID})
    heard: list[events.Event] = []
    with storage.upload(archive(LATEST), metadata={"id": ID}, expected_size=1):
        would = run(storage, now=LATER, exclusive=not_exclusive, dry_run=True)
        done = run(storage, now=LATER, exclusive=not_exclusive, heard=heard)
        assert [upload.key for upload in storage.pending("")] == [archive(LATEST)]
    assert keys(storage) == [manifest(NEW), manifest(NEW, OTHER_ID), archive(NEW)]
    assert done.swept == would.swept == []
    assert len(done.removed) == len(would.removed) == 1
    assert heard.count(events.Informed("Leftovers were not swept: a backup runs")) == 1


@pytest.mark.plainest_stores_first
def test_who_has_nothing_to_sweep_keeps_no_backup_waiting(storage: Storage) -> None:
    store(storage, OLD, NEW)
    heard: list[events.Event] = []
    with storage.upload(archive(LATEST), metadata={"id": ID}, expected_size=1):
        run(storage, exclusive=not_exclusive, heard=heard)
    assert not [event for event in heard if isinstance(event, events.Informed)]


def test_leftovers_go_within_the_lock() -> None:
    storage = Faulty()
    store(storage, OLD, NEW)
    storage.put(manifest(NEW, OTHER_ID), b"{}", {"id": OTHER_ID})
    seen: list[list[str]] = []

    @contextmanager
    def exclusive() -> Iterator[None]:
        seen.append(keys(storage))
        yield
        seen.append(keys(storage))

    run(storage, now=LATER, exclusive=exclusive)
    assert seen == [
        [manifest(NEW), manifest(NEW, OTHER_ID), archive(NEW)],
        [manifest(NEW), archive(NEW)],
    ]


def test_a_partial_file_that_a_dead_process_left_is_swept(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    left = tmp_path / "db" / f".{OLD}.sql.gz.20200101T000000Z-{ID}.partial"
    left.write_bytes(b"half")
    (tmp_path / "db" / ".hidden.partial").write_bytes(b"not ours")
    run(DirectoryStorage(tmp_path))
    assert [path.name for path in (tmp_path / "db").iterdir()] == [".hidden.partial"]


# Failures.


class Faulty(MemoryStorage):
    """A store that refuses to delete some keys, and lists keys that do not exist."""

    def __init__(
        self,
        *,
        refused: Sequence[str] = (),
        error: StorageError | None = None,
        ghosts: Sequence[str] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.refused = set(refused)
        self.error = error or StorageRefusedError("no")
        self.ghosts = ghosts
        self.hidden = set(hidden)
        self.deleted: list[str] = []
        self.asked = 0

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[StoredObject]:
        ghosts = (StoredObject(key, 4, NOW) for key in self.ghosts)
        found = (
            each
            for each in super().list(prefix, start_after=start_after)
            if each.key not in self.hidden
        )
        yield from sorted([*found, *ghosts], key=lambda each: each.key)

    def delete(self, keys: Iterable[str]) -> None:
        self.asked += 1
        for key in keys:
            if key in self.refused:
                raise self.error
            self.deleted.append(key)
            super().delete([key])

    def abort(self, upload: PendingUpload) -> None:
        if upload.key in self.refused:
            raise self.error
        super().abort(upload)


def test_archives_go_before_their_companions() -> None:
    storage = Faulty()
    store(storage, OLD, NEW)
    run(storage)
    assert storage.deleted == [archive(OLD), manifest(OLD)]


def test_proofs_and_roles_go_after_the_archive() -> None:
    storage = Faulty()
    store(storage, OLD, NEW)
    roles = beside(OLD, "globals")
    storage.put(roles, b"roles", {"id": ID})
    proof = prove(storage, OLD)
    prove(storage, NEW)
    run(storage)
    assert storage.deleted[0] == archive(OLD)
    assert sorted(storage.deleted[1:]) == sorted([manifest(OLD), roles, proof])


def test_what_cannot_be_deleted_keeps_its_companions_and_stops_no_other() -> None:
    bases = [f"backup_2020010{day}_000000" for day in range(1, 6)]
    storage = Faulty(refused=[archive(bases[1]), manifest(bases[2])])
    store(storage, *bases)
    heard: list[events.Event] = []
    with pytest.raises(StorageRefusedError, match="no"):
        run(storage, heard=heard)
    assert keys(storage) == sorted(
        [
            *(archive(bases[1]), manifest(bases[1])),
            manifest(bases[2]),  # an orphan now, for a later run
            *(archive(bases[4]), manifest(bases[4])),
        ]
    )
    assert heard.count(events.Warned("no")) == 2
    assert heard[-1] == events.PruneFinished(
        storage.url("db"), kept=1, removed=3, swept=0, dry_run=False
    )
    storage.refused.clear()
    run(storage, now=LATER)
    assert keys(storage) == [manifest(bases[4]), archive(bases[4])]


def test_a_key_that_may_delete_nothing_is_not_refused_a_thousand_times() -> None:
    first = datetime(2020, 1, 1, tzinfo=UTC)
    bases = [f"{first + timedelta(hours=hour):backup_%Y%m%d_%H%M%S}" for hour in range(1000)]
    storage = Faulty(refused=[archive(base) for base in bases])
    store(storage, *bases)
    before = keys(storage)
    with pytest.raises(StorageRefusedError):
        run(storage)
    assert keys(storage) == before
    assert storage.asked < 200


def test_a_store_that_is_gone_ends_it_at_once() -> None:
    bases = [f"backup_2020010{day}_000000" for day in range(1, 6)]
    storage = Faulty(refused=[archive(bases[1])], error=StorageUnreachableError("gone"))
    store(storage, *bases)
    with pytest.raises(StorageUnreachableError):
        run(storage)
    assert storage.asked == 1


def test_a_backup_whose_metadata_cannot_be_read_stays_and_is_reported(
    tmp_path: Path,
) -> None:
    storage = DirectoryStorage(tmp_path)
    store(storage, OLD, NEW, LATEST, source=SHOP)
    metadata = tmp_path / "db" / f".{OLD}.sql.gz.metadata.json"
    whole = metadata.read_text()
    metadata.write_text("{")
    heard: list[events.Event] = []
    for days in (0, 30):
        with pytest.raises(StorageError, match="damaged"):
            run(storage, now=NOW + timedelta(days=days), sources=[SHOP], heard=heard)
        assert keys(storage) == [manifest(OLD), archive(OLD), manifest(LATEST), archive(LATEST)]
    assert [event.label for event in heard if isinstance(event, events.OthersLeft)] == [
        "unreadable"
    ] * 2
    metadata.write_text(whole)
    run(storage)
    assert keys(storage) == [manifest(LATEST), archive(LATEST)]


def test_an_upload_that_cannot_be_aborted_stops_no_other() -> None:
    storage = Faulty(refused=[archive(OLD)])
    with (
        storage.upload(archive(OLD), metadata={}, expected_size=1),
        storage.upload(archive(NEW), metadata={}, expected_size=1),
    ):
        with pytest.raises(StorageRefusedError):
            run(storage, now=LATER)
        assert [upload.key for upload in storage.pending("")] == [archive(OLD)]
        storage.refused.clear()


def test_a_newest_backup_that_is_only_listed_costs_no_other() -> None:
    """A listing may be outdated: it still shows deleted objects."""
    storage = Faulty(ghosts=[archive("backup_20200103_000000")])
    store(storage, OLD, NEW)
    before = keys(storage)
    with pytest.raises(ObjectNotFoundError, match="backup_20200103_000000") as caught:
        run(storage)
    assert caught.value.hint
    assert keys(storage) == before


@pytest.mark.parametrize(
    "ghost",
    [archive(NEW), beside(NEW, "proof_20260101_000000.json")],
    ids=["archive", "proof"],
)
def test_a_newest_proof_that_is_only_listed_costs_no_older_one(ghost: str) -> None:
    storage = Faulty(ghosts=[ghost])
    store(storage, OLD, NEW, LATEST)
    prove(storage, OLD)
    prove(storage, NEW)
    storage.delete([ghost])
    before = keys(storage)
    with pytest.raises(ObjectNotFoundError, match="newest proven backup but does not exist"):
        run(storage)
    assert keys(storage) == before


def test_an_archive_that_is_not_listed_yet_keeps_its_manifest() -> None:
    storage = Faulty(hidden=[archive(NEW)])
    store(storage, OLD, NEW)
    run(storage, now=LATER)
    assert storage.head(manifest(NEW)).key == manifest(NEW)
    assert storage.head(archive(NEW)).key == archive(NEW)


@pytest.fixture
def http(swift_server: SwiftServer) -> Iterator[HttpProxy]:
    with HttpProxy(swift_server.port) as proxy:
        yield proxy


def test_a_store_that_fails_half_way_has_lost_no_manifest_of_a_visible_archive(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    store(s3(), OLD, NEW)
    http.rule("DeleteObjects", Answer(403, "AccessDenied"), skip=1)
    with pytest.raises(StorageRefusedError):
        run(s3(endpoint=http.endpoint))
    assert keys(s3()) == [manifest(OLD), manifest(NEW), archive(NEW)]


def test_a_store_that_cannot_be_listed_loses_nothing(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    store(s3(), OLD, NEW)
    http.rule("ListObjectsV2", Answer(403, "AccessDenied"))
    with pytest.raises(StorageRefusedError):
        run(s3(endpoint=http.endpoint))
    assert len(keys(s3())) == 4
    assert http.count("DeleteObjects") == 0


def test_no_request_is_sent_for_a_backup_that_is_kept(
    s3: Callable[..., S3Storage], http: HttpProxy
) -> None:
    store(s3(), *(f"backup_2020010{day}_000000" for day in range(1, 6)))
    run(s3(endpoint=http.endpoint), last=5, sources=[SHOP], explained=False)
    assert {request.operation for request in http.requests} == {
        "ListObjectsV2",
        "ListMultipartUploads",
    }


def test_the_catalog_of_a_directory_reads_the_date_from_the_name(tmp_path: Path) -> None:
    storage = DirectoryStorage(tmp_path)
    store(storage, NEW, OLD)
    os.utime(tmp_path / archive(OLD))
    assert [
        (backup.name, backup.started, backup.size, [each.id for each in backup.companions])
        for backup in catalog.read(storage, "db").backups
    ] == [
        (f"{OLD}.sql.gz", datetime(2020, 1, 1, tzinfo=UTC), 4, [ID]),
        (f"{NEW}.sql.gz", datetime(2020, 1, 2, tzinfo=UTC), 4, [ID]),
    ]
