"""Containers of Azure and buckets of Google that refuse, break or go away: as test_store_faults.py.

Each test names the request by its part in a backup, because each store has other names for it.
"""

from __future__ import annotations

import re
import signal
import threading
from typing import TYPE_CHECKING

import pytest

from faults.scene import (
    Scene,
    archives_in,
    assert_failed,
    assert_succeeds,
    complete_archives,
    wait_until,
)
from support.cli import environment, run_pgstash
from support.fake_tools import MIB, FakePgDump
from support.proxy import Change, Cut, Drop
from support.stored import CLOSING, Made, make
from support.tiers import later

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from faults.other_places import OtherStore
    from support.proxy import Action

LARGE = FakePgDump(size=24 * MIB, noisy=True)  # more than one part of any store, compressed
LOST = Drop(forward=False)
ANSWER_LOST = Drop(forward=True)
PASSPHRASE = "correct horse battery staple, and more"
ROWS = b"".join(b"%d\n" % number for number in range(20_000))
SCRIPT = (
    b"CREATE TABLE public.a (n integer);\n\nCOPY public.a (n) FROM stdin;\n"
    + ROWS
    + b"\\.\n\n"
    + CLOSING
)
ROLES = ["listing", "begin", "part", "companion", "compare", "look", "commit"]
NOT_COMMIT = ROLES[:-1]
# How the requests of each store fail is shown in tests/contracts; what a backup does then is the
# same for all.
OF_AZURE_FIRST = pytest.mark.parametrize(
    "other", later(["azure", "google"], "google"), indirect=True
)


@pytest.fixture
def scene(other_scene: Scene) -> Scene:
    """The store behind its proxy, and a dump of several parts."""
    other_scene.fake(LARGE)
    return other_scene


def request_of(other: OtherStore, role: str) -> str:
    found: str | None = getattr(other.kind, role)
    if found is None:
        pytest.skip(f"there is no request to {role} in this store")
    return found


def assert_no_archive(scene: Scene) -> None:
    assert archives_in(scene.place.objects()) == []
    assert scene.processes() == []


def assert_directly_succeeds(scene: Scene, other: OtherStore) -> None:
    """Once the store is well, the next run succeeds, of however little."""
    other.http.rules.clear()
    scene.fake(FakePgDump())
    assert_succeeds(scene)


def test_each_request_of_a_backup_may_be_answered_late(scene: Scene, other: OtherStore) -> None:
    """What all the other tests rest on: these are its requests, and it has several parts."""
    for request_ in other.kind.requests:
        other.http.rule(request_, other.kind.busy, times=1)
    said = assert_succeeds(scene)
    made = {other.kind.operation_of(request) for request in other.http.requests}
    assert made - {"Status"} == set(other.kind.requests)  # Google is asked what it has
    assert other.http.count(other.kind.part) > 2
    assert len(re.findall(r"WARNING .* failed .*; retry 1 of 3 in", said)) == len(
        other.kind.requests
    )


@OF_AZURE_FIRST
@pytest.mark.parametrize("role", later(NOT_COMMIT, *(set(NOT_COMMIT) - {"part"})))
@pytest.mark.parametrize("fault", later(["broken", "lost"], "lost"))
def test_what_does_not_pass(role: str, fault: str, scene: Scene, other: OtherStore) -> None:
    action: Action = other.kind.broken if fault == "broken" else LOST
    rule = other.http.rule(request_of(other, role), action)
    done = scene.once(RETRY_ATTEMPTS="1")
    assert_failed(done, 20, other.kind.endpoint, nothing_left=None)
    assert "retry 1 of 1" in done.stderr
    assert rule.applied >= 2
    assert_no_archive(scene)
    assert scene.place.unfinished() == []
    if role != "look":  # which tells whether the manifest may go
        assert scene.place.objects() == {}
    assert_directly_succeeds(scene, other)


@OF_AZURE_FIRST
@pytest.mark.parametrize("role", later(ROLES, *NOT_COMMIT))
def test_a_denial(role: str, scene: Scene, other: OtherStore) -> None:
    other.http.rule(request_of(other, role), other.kind.denied, times=1)
    done = scene.once()
    assert_failed(done, 21, other.kind.denies, nothing_left=scene)
    assert "retry" not in done.stderr


@pytest.mark.long
def test_an_upload_that_cannot_be_removed_is_named(scene: Scene, other: OtherStore) -> None:
    other.http.rule(other.kind.part, other.kind.denied, skip=1)
    other.http.rule("Cancel" if other.kind.commit == "Commit" else other.kind.commit,
                    other.kind.denied)  # fmt: skip
    done = scene.once()
    assert_failed(done, 21, other.kind.denies, nothing_left=None)
    assert re.search(r"WARNING The upload of \S+ could not be aborted.*upload id: \S+", done.stderr)
    assert_no_archive(scene)
    assert scene.place.objects() == {}
    assert len(scene.place.unfinished()) == 1


@OF_AZURE_FIRST
@pytest.mark.parametrize(
    "times", [1, pytest.param(100, marks=pytest.mark.long)], ids=["once", "for ever"]
)
def test_a_commit_whose_answer_is_lost_is_a_success(
    times: int, scene: Scene, other: OtherStore
) -> None:
    rule = other.http.rule(other.kind.commit, ANSWER_LOST, times=times)
    assert_succeeds(scene, RETRY_ATTEMPTS="2")
    assert rule.applied >= 1
    assert len(scene.place.objects()) == 3  # the archive, its manifest and the roles


@OF_AZURE_FIRST
def test_a_commit_of_which_nothing_is_known_is_reported_and_left_alone(
    scene: Scene, other: OtherStore
) -> None:
    rule = other.http.rule(other.kind.commit, LOST)
    done = scene.once(RETRY_ATTEMPTS="1")
    words = ["cannot determine whether", "if it is there it is complete"]
    assert_failed(done, 22, *words, nothing_left=None)
    assert rule.applied == 2
    assert len(scene.place.unfinished()) == 1
    assert_no_archive(scene)
    # Without its manifest an archive that becomes visible yet could not be read.
    [manifest] = [key for key in scene.place.objects() if ".manifest." in key]
    other.http.rules.clear()
    scene.fake(FakePgDump())
    assert scene.once().returncode == 0
    assert len(complete_archives(scene.place)) == 1
    assert manifest in scene.place.objects()


@pytest.mark.long
def test_what_became_visible_unseen_keeps_its_manifest(scene: Scene, other: OtherStore) -> None:
    other.http.rule(other.kind.commit, ANSWER_LOST)
    # The first one asks whether the name is free.
    other.http.rule(other.kind.look, other.kind.broken, skip=1)
    done = scene.once(RETRY_ATTEMPTS="1")
    words = ["cannot determine whether", "if it is there it is complete"]
    assert_failed(done, 22, *words, nothing_left=None)
    assert len(complete_archives(scene.place)) == 1


@OF_AZURE_FIRST
@pytest.mark.parametrize(
    ("before", "what"), later([(0, "globals"), (1, "manifest")], (0, "globals"))
)
@pytest.mark.parametrize("fault", later(["answer lost", "denied", "lost"], "lost", "denied"))
def test_without_what_belongs_to_it_there_is_no_archive(
    fault: str, before: int, what: str, scene: Scene, other: OtherStore
) -> None:
    actions: dict[str, Action] = {
        "answer lost": ANSWER_LOST,
        "denied": other.kind.denied,
        "lost": LOST,
    }
    other.http.rule(other.kind.companion, actions[fault], skip=before)
    done = scene.once(RETRY_ATTEMPTS="1")
    assert_failed(done, 21 if fault == "denied" else 20, what, nothing_left=None)
    assert_no_archive(scene)
    assert scene.place.unfinished() == []
    assert other.http.count(other.kind.commit) <= 1  # Azure drops blocks by such a request
    assert_directly_succeeds(scene, other)


@OF_AZURE_FIRST
def test_a_name_that_is_taken_meanwhile(scene: Scene, other: OtherStore) -> None:
    """Someone else stores an archive of that name just after pgstash asked whether it is free."""
    place = other.place

    def take(body: bytes) -> bytes:
        path = other.http.requests[-1].path
        [base] = {key.split(".")[0] for key in place.objects()}
        assert base.rpartition("/")[2] in path
        place.put(f"{base}.sql.gz", b"somebody else's")
        return body

    rule = other.http.rule(other.kind.look, Change(take), times=1)
    done = scene.once()
    assert_failed(done, 23, "taken", "BACKUP_PREFIX", nothing_left=None)
    assert rule.applied == 1
    assert [*place.objects().values()] == [b"somebody else's"]
    assert place.unfinished() == scene.processes() == []


@pytest.mark.long
def test_killed_while_the_store_commits(scene: Scene, other: OtherStore) -> None:
    """The store has done it, and nobody reads its answer: the backup is there, and whole."""
    stored, ended = threading.Event(), threading.Event()

    def answer_late(body: bytes) -> bytes:
        stored.set()
        ended.wait(30)
        return body

    other.http.rule(other.kind.commit, Change(answer_late))
    with scene.started() as process:
        wait_until(stored.is_set, "the store has it")
        process.kill()
        process.communicate(timeout=60)
    ended.set()
    assert len(complete_archives(scene.place)) == 1
    wait_until(lambda: not scene.processes(), "pg_dump is gone")
    assert_directly_succeeds(scene, other)


@pytest.mark.long
@pytest.mark.parametrize("role", ["part", "companion", "look"])
def test_a_signal_while_the_store_does_not_answer(
    role: str, scene: Scene, other: OtherStore
) -> None:
    waits = threading.Event()

    def hold(body: bytes) -> bytes:
        waits.set()
        threading.Event().wait(2)
        return body

    other.http.rule(getattr(other.kind, role), Change(hold), times=1)
    with scene.started() as process:
        wait_until(waits.is_set, "the request was sent")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM or process.returncode == -signal.SIGTERM
    wait_until(lambda: not scene.processes(), "pg_dump is gone")
    assert_no_archive(scene)  # pruning removes the rest
    assert scene.place.unfinished() == []


# What is read back.


@pytest.fixture
def made(other: OtherStore) -> Made:
    """A backup in the store."""
    made = make(SCRIPT, passphrase=PASSPHRASE, member_bytes=8000)
    for key, data in ((made.key, made.archive), (made.manifest_key, made.packed_manifest())):
        other.place.put(key, data, {"id": made.manifest.id})
    return made


def run(scene: Scene, command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    given = {"BACKUP_PREFIX": "p", "BACKUP_ENCRYPTION_KEY": PASSPHRASE}
    database = scene.database
    settings = {**other_settings(scene), **given, **more}
    return run_pgstash(command, environment(database.bin_dir, **settings))


def other_settings(scene: Scene) -> dict[str, str]:
    return {**scene.place.settings, **scene.settings}


def restored(scene: Scene) -> subprocess.CompletedProcess[str]:
    return run(scene, ["restore", "--to", scene.database.uri])


def flipped(made: Made) -> bytes:
    middle = len(made.archive) // 2
    return made.archive[:middle] + bytes([made.archive[middle] ^ 4]) + made.archive[middle + 1 :]


DAMAGE: dict[str, Callable[[Made], bytes]] = {
    "a flipped bit": flipped,
    "cut by a byte": lambda made: made.archive[:-1],
    "longer by a byte": lambda made: made.archive + b"\0",
    "empty": lambda _: b"",
}


@OF_AZURE_FIRST
@pytest.mark.parametrize("kind", later(DAMAGE, *(set(DAMAGE) - {"cut by a byte"})))
def test_what_is_damaged_is_neither_restored_nor_proven(
    kind: str, made: Made, other_scene: Scene, other: OtherStore
) -> None:
    other.place.put(made.key, DAMAGE[kind](made), {"id": made.manifest.id})
    done = restored(other_scene)
    assert done.returncode in (26, 31), done.stderr
    assert "Traceback" not in done.stderr
    assert other_scene.database.run_sql("SELECT relname FROM pg_class WHERE relname = 'a'") == ""
    scratch = other_scene.database.cluster.maintenance.uri
    drilled = run(other_scene, ["drill"], VERIFY_DATABASE_URL=scratch)
    assert drilled.returncode in (26, 31), drilled.stderr
    assert [key for key in other.place.objects() if ".proof_" in key] == []


@pytest.mark.long
def test_a_manifest_that_is_missing(made: Made, other_scene: Scene, other: OtherStore) -> None:
    other.place.remove(made.manifest_key)
    done = restored(other_scene)
    assert done.returncode == 32, done.stderr
    other.place.remove(made.key)
    assert restored(other_scene).returncode == 25


@OF_AZURE_FIRST
@pytest.mark.parametrize("end", later(["comes back", "stays away"], "comes back"))
def test_the_connection_breaks_while_it_is_read(
    end: str, made: Made, other_scene: Scene, other: OtherStore
) -> None:
    stays = end == "stays away"
    other.http.rule(other.kind.reading, Cut(after=1000), skip=1, times=1000 if stays else 2)
    done = restored(other_scene)
    assert made.key
    # Azure's SDK reads on by itself first, and logs that.
    assert "retry 1 of 3" in done.stderr or "Incomplete download" in done.stderr
    found = other_scene.database.run_sql("SELECT relname FROM pg_class WHERE relname = 'a'")
    assert (done.returncode, found) == ((20, "") if stays else (0, "a\n")), done.stderr
