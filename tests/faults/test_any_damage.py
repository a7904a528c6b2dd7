"""Whatever is damaged in the store: a restore and a drill fail, and nothing comes of it."""

from __future__ import annotations

import gzip
import os
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pgstash import events
from pgstash import settings as settings_of_pgstash
from pgstash.commands.storage import open_storage
from pgstash.drill import run as drill
from pgstash.drill.checks import Expected
from pgstash.drill.scratch import Place
from pgstash.errors import PipelineError, StorageError
from pgstash.format import manifest as manifests
from pgstash.postgres.restore.request import Request
from pgstash.repository import archive, catalog
from pgstash.repository.access import Access
from pgstash.restore import run as restore
from pgstash.runtime import Runtime
from pgstash.storage.memory import MemoryStorage
from support import pieces
from support.backups import PASSPHRASE as BACKUP_KEY
from support.backups import PREFIX
from support.gzip_format import holds_nothing
from support.postgres import clean_environment
from support.stored import CLOSING, Made, make

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from faults.scene import Place as FaultPlace
    from pgstash.storage.interface import Storage
    from support.postgres import Cluster, Database, MakeDatabase

    Damage = tuple[str, bool, Callable[[Storage], object], str]

PASSPHRASE = "correct horse battery staple, and more"
LARGE_OBJECTS = (
    b"SELECT pg_catalog.lo_create('4711');\n\n"
    b"BEGIN;\n\nSELECT pg_catalog.lo_open('4711', 131072);\n"
    b"SELECT pg_catalog.lowrite(0, '\\x0102');\nSELECT pg_catalog.lo_close(0);\n\nCOMMIT;\n\n"
)
ROWS = b"COPY public.a (n) FROM stdin;\n" + b"".join(b"%d\n" % n for n in range(500)) + b"\\.\n\n"
SCRIPT = b"CREATE TABLE public.a (n integer);\n\n" + LARGE_OBJECTS + ROWS + CLOSING
NO_FILE = Path("/nonexistent/.env")
BASES = ("backup_20260131_020000", "backup_20260201_020000")


@cache
def backups(*, encrypted: bool) -> tuple[Made, Made]:
    passphrase = PASSPHRASE if encrypted else None
    first, second = (make(SCRIPT, passphrase=passphrase, base=base) for base in BASES)
    tables = [manifests.Table("public", "a", 500)]
    return first.with_manifest(tables=tables), second.with_manifest(tables=tables)


def _changed(storage: Storage, key: str, change: Callable[[bytes], bytes]) -> None:
    with storage.read(key) as chunks:
        before = b"".join(chunks)
    after = change(before)
    assume(after != before)
    storage.put(key, after, storage.head(key).metadata)


def _position(data: bytes, at: float) -> int:
    return int(at * (len(data) - 1))


def _flipped(data: bytes, at: float, bit: int) -> bytes:
    index = _position(data, at)
    return data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]


def _holds_nothing(packed: bytes, at: float, bit: int) -> bool:
    """Tell whether the format of a companion that is not encrypted lets readers ignore this bit.

    There is none in an archive, whose stored bytes have a digest, nor in what is encrypted.
    """
    return holds_nothing(packed, _position(packed, at), bit)


def _swapped(made: Made, one: int, other: int) -> bytes:
    """Return a compressed stream with two of its members in each other's place."""
    pieces = [
        made.archive[each.offset : each.offset + each.stored] for each in made.manifest.members
    ]
    pieces[one], pieces[other] = pieces[other], pieces[one]
    return b"".join(pieces)


@st.composite
def damage(draw: st.DrawFn) -> Damage:
    """Return what is done in words, whether the backup is encrypted, the deed, and the key."""
    encrypted = draw(st.booleans())
    made, other = backups(encrypted=encrypted)
    key = draw(st.sampled_from([made.key, made.manifest_key]))
    at, bit = draw(st.floats(0, 1)), draw(st.integers(0, 7))
    passphrase = PASSPHRASE
    kind = draw(st.sampled_from(["flip", "cut", "append", "swap", "another's", "gone", "key"]))
    deed: Callable[[Storage], object] = lambda _storage: None  # noqa: E731 - one of many
    match kind:
        case "flip":
            assume(
                encrypted
                or key != made.manifest_key
                or not _holds_nothing(made.packed_manifest(), at, bit)
            )
            deed = lambda s: _changed(s, key, lambda data: _flipped(data, at, bit))  # noqa: E731
        case "cut":
            deed = lambda s: _changed(s, key, lambda data: data[: int(at * len(data))])  # noqa: E731
        case "append":
            deed = lambda s: _changed(s, key, lambda data: data + b"\0")  # noqa: E731
        case "swap":
            assume(not encrypted)  # of ciphertext a flipped bit is the same
            count = len(made.manifest.members)
            one, two = draw(st.integers(0, count - 1)), draw(st.integers(0, count - 1))
            deed = lambda s: _changed(s, made.key, lambda _data: _swapped(made, one, two))  # noqa: E731
        case "another's":
            deed = lambda s: _changed(s, made.manifest_key, lambda _: other.packed_manifest())  # noqa: E731
        case "gone":
            deed = lambda s: s.delete([key])  # noqa: E731
        case _:
            assume(encrypted)
            passphrase = draw(st.text("abc", min_size=8, max_size=8))
    return f"{kind} of {key}", encrypted, deed, passphrase


def _opened(storage: Storage, passphrase: str) -> archive.Archive:
    access = Access(passphrase, unverified=False, only_encrypted=False)
    return archive.open_stored(
        storage, catalog.find(catalog.read(storage, "p"), "latest", datetime.now(UTC)), access
    )


@pytest.fixture(scope="module")
def target(newest_cluster: Cluster) -> Database:
    name = f"damage_{os.getpid()}"
    return newest_cluster.create_database(name)


@given(damage())
@settings(max_examples=60)
def test_any_damage(
    newest_cluster: Cluster,
    target: Database,
    done: Damage,
) -> None:
    assert_found(newest_cluster, target, done, MemoryStorage())


@pytest.mark.long
@pytest.mark.parametrize("place", ["folder", "bucket", "container", "google_bucket"])
@given(done=damage())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_in_each_store(
    newest_cluster: Cluster,
    target: Database,
    request: pytest.FixtureRequest,
    place: str,
    done: Damage,
) -> None:
    found: FaultPlace = request.getfixturevalue(place)
    loaded = settings_of_pgstash.load(found.settings, NO_FILE, needs=["storage"], only_reads=True)
    storage = open_storage(loaded, events.ignore)
    storage.delete([each.key for each in storage.list("")])
    assert_found(newest_cluster, target, done, storage)


def assert_found(newest_cluster: Cluster, target: Database, done: Damage, storage: Storage) -> None:
    """Neither a restore nor a drill takes the damaged backup, and nothing is left of either."""
    what, encrypted, deed, passphrase = done
    made, _ = backups(encrypted=encrypted)
    made.store(storage)
    deed(storage)
    environment = clean_environment(target.bin_dir)
    plan = restore.Plan(
        target_url=target.uri,
        request=Request(any_name=True),
        environment=environment,
    )
    with pytest.raises((PipelineError, StorageError)) as caught:
        restore.run(plan, "latest", lambda: _opened(storage, passphrase), Runtime(events.ignore))
    assert caught.value.message, what
    held = target.run_sql(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace;"
        "SELECT oid FROM pg_largeobject_metadata"
    )
    assert held == "", what

    told: list[events.Event] = []
    tried = drill.Plan(
        prefix="p",
        place=Place(scratch_url=newest_cluster.maintenance.uri, source_url=None),
        jobs=1,
        expected=Expected(min_tables=None, statements=None),
        environment=environment,
    )
    with pytest.raises((PipelineError, StorageError)):
        drill.run(
            tried,
            storage,
            "latest",
            lambda: drill.Found(made.manifest.archive, lambda: _opened(storage, passphrase)),
            Runtime(told.append),
        )
    failed = [event for event in told if isinstance(event, events.DrillFailed)]
    assert [bool(event.message) for event in failed] == [True], what
    assert not [each for each in storage.list("p/") if ".proof_" in each.key], what


class Objects(dict[str, bytes]):
    """The objects of one backup by their keys."""

    def __repr__(self) -> str:
        return f"<{len(self)} objects>"


@pytest.fixture(scope="module")
def seekable(
    newest_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[bool, Objects]:
    """Return the objects of two backups that several sessions made, plain and encrypted."""
    source = newest_cluster.load_sample("mixed", f"seekable_{os.getpid()}")
    found = {}
    for encrypted in (False, True):
        folder = tmp_path_factory.mktemp("seekable")
        pieces.back_up(source, folder, encrypted=encrypted)
        files = (folder / PREFIX).glob("backup_*")
        found[encrypted] = Objects({f"p/{file.name}": file.read_bytes() for file in files})
    source.drop()
    return found


def _stored_again(objects: Mapping[str, bytes]) -> MemoryStorage:
    [manifest_key] = [key for key in objects if ".manifest." in key]
    storage = MemoryStorage()
    for key, data in objects.items():
        storage.put(key, data, {"id": manifest_key.split(".")[1]})
    return storage


@st.composite
def damage_of_seekable(draw: st.DrawFn) -> tuple[bool, str, str, float, int]:
    """Return whether it is encrypted, which object is hit, what is done in a word, and where."""
    encrypted, at, bit = draw(st.booleans()), draw(st.floats(0, 1)), draw(st.integers(0, 7))
    which = draw(st.sampled_from([".sql.gz", ".sql.gz", ".manifest.", ".schema."]))
    kind = draw(st.sampled_from(["flip", "flip", "cut", "gone"]))
    return encrypted, which, kind, at, bit


@given(damage_of_seekable())
@settings(max_examples=20)
def test_any_damage_is_found_by_several_sessions_too(
    newest_cluster: Cluster,
    seekable: Mapping[bool, Objects],
    done: tuple[bool, str, str, float, int],
) -> None:
    encrypted, which, kind, at, bit = done
    [key] = [key for key in seekable[encrypted] if which in key and ".privileges." not in key]
    packed = seekable[encrypted][key]
    storage = _stored_again(seekable[encrypted])
    # Without the schema one session restores.
    harmless = (which, kind) == (".schema.", "gone")
    if kind == "gone":
        storage.delete([key])
    elif kind == "cut":
        _changed(storage, key, lambda data: data[: int(at * len(data))])
    else:
        _changed(storage, key, lambda data: _flipped(data, at, bit))
        harmless = not encrypted and which != ".sql.gz" and _holds_nothing(packed, at, bit)
    name = f"damaged_{os.getpid()}"
    maintenance = newest_cluster.maintenance
    plan = restore.Plan(
        target_url=maintenance.uri,
        request=Request(create=name),
        environment=clean_environment(maintenance.bin_dir),
        jobs=2,
    )
    restored = True
    try:
        restore.run(plan, "latest", lambda: _opened(storage, BACKUP_KEY), Runtime(events.ignore))
    except (PipelineError, StorageError):
        restored = False
    if restored:
        newest_cluster.drop_database(name)
    assert restored == harmless
    left = f"SELECT datname FROM pg_database WHERE datname LIKE '{name}%'"
    assert maintenance.run_sql(left) == ""


def test_what_is_not_damaged_is_restored(
    newest_cluster: Cluster, make_database: MakeDatabase
) -> None:
    """The property above would hold of a restore that always fails."""
    for encrypted in (False, True):
        made, _ = backups(encrypted=encrypted)
        storage = MemoryStorage()
        made.store(storage)
        database = make_database(on=newest_cluster)
        plan = restore.Plan(
            target_url=database.uri,
            request=Request(any_name=True),
            environment=clean_environment(database.bin_dir),
        )
        find = partial(_opened, storage, PASSPHRASE)
        restore.run(plan, "latest", find, Runtime(events.ignore))
        assert database.run_sql("SELECT count(*) FROM a") == "500\n"
        assert gzip.decompress(made.archive).startswith(b"CREATE") if not encrypted else True
