"""A restored database takes the place of another one at once, or that one stays as it is."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgstash import events
from pgstash.errors import Interrupted, TargetDatabaseError
from pgstash.postgres.restore import replaceable, replacement, staging_database, target
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import Outcome, TargetState
from pgstash.postgres.server import login
from pgstash.runtime import Runtime
from support.postgres import Cluster, Database
from support.tiers import later

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pgstash.postgres.server.connection import Server

AT = datetime(2026, 1, 31, 2, 0, 0, tzinfo=UTC)
KEPT = "_before_20260131_020000"
SETTINGS = {
    "wal_level": "logical",
    "max_wal_senders": "4",
    "max_replication_slots": "4",
    "max_prepared_transactions": "4",
}


@pytest.fixture(scope="module")
def able(major: int) -> Iterator[Cluster]:
    """A server with logical replication and prepared transactions."""
    with Cluster(major, settings=SETTINGS) as cluster:
        cluster.maintenance.run_sql(
            "CREATE ROLE maker LOGIN CREATEDB; CREATE ROLE visitor LOGIN; CREATE ROLE idler LOGIN;"
            "GRANT maker TO idler"
        )
        yield cluster


@dataclass
class Scene:
    """A database that is replaced, by default as its owner, who is no superuser."""

    cluster: Cluster
    name: str = field(default_factory=lambda: f"shop_{secrets.token_hex(4)}")
    state: TargetState = field(default_factory=TargetState)
    emitted: list[events.Event] = field(default_factory=list)
    sessions: list[psycopg.Connection[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.old = self.cluster.create_database(self.name)
        self.old.run_sql(f"CREATE TABLE old (n int);ALTER DATABASE {self.name} OWNER TO maker")
        self.act_as("maker")

    def act_as(self, role: str, database: str = "postgres") -> None:
        uri = Database(self.cluster, database).uri
        self.at = login.inspect(uri.replace(self.cluster.user, role, 1))

    def find(self) -> int | None:
        with target.connected(self.at) as session:
            return replaceable.find(session, self.name)

    def visit(self, role: str, name: str = "") -> psycopg.Connection[Any]:
        conninfo = Database(self.cluster, name or self.name).conninfo
        self.sessions.append(psycopg.connect(conninfo, user=role, autocommit=True))
        return self.sessions[-1]

    @contextlib.contextmanager
    def replaced(self) -> Iterator[Server]:
        self.state.replaced = self.find()
        runtime = Runtime(self.emitted.append, now=lambda: AT)
        request = Request(create=self.name, replace=True)
        with staging_database.created(self.at, request, None, self.state, runtime) as made:
            yield made

    def there(self) -> list[str]:
        """Return the databases that have to do with the scene, their random part as an ellipsis."""
        query = f"SELECT datname FROM pg_database WHERE datname ~ '^{self.name}' ORDER BY 1"
        names = self.cluster.maintenance.run_sql(query).split()
        return [name[:-8] + "…" if "_pgstash_" in name else name for name in names]

    def staging(self) -> str:
        query = f"SELECT datname FROM pg_database WHERE datname ~ '^{self.name}_pgstash_'"
        return self.cluster.maintenance.run_sql(query).strip()

    def assert_as_it_was(self, *, staging: bool) -> None:
        left = [self.name, f"{self.name}_pgstash_…"] if staging else [self.name]
        assert self.there() == left
        assert self.old.run_sql("SELECT count(*) FROM old") == "0\n"

    def assert_replaced(self) -> None:
        assert self.there() == [self.name, self.name + KEPT]
        assert Database(self.cluster, self.name + KEPT).run_sql("SELECT count(*) FROM old") == "0\n"
        assert self.old.run_sql("SELECT to_regclass('old') IS NULL") == "t\n"
        assert self.state.outcome is Outcome.COMMITTED
        assert f"is kept as {self.name}{KEPT} (" in self.state.kept


@pytest.fixture
def scene(able: Cluster) -> Iterator[Scene]:
    scene = Scene(able)
    yield scene
    for session in scene.sessions:
        session.close()
    maintenance = able.maintenance
    for name in maintenance.run_sql(
        f"SELECT datname FROM pg_database WHERE datname ~ '^{scene.name}'"
    ).split():
        maintenance.run_sql(f"ALTER DATABASE {name} IS_TEMPLATE false")
        able.drop_database(name)


def alive(session: psycopg.Connection[Any]) -> bool:
    try:
        session.execute("SELECT 1")
    except psycopg.Error:
        return False
    return True


def test_both_are_renamed_at_once(scene: Scene) -> None:
    with scene.visit("maker") as application, scene.replaced():
        assert alive(application)
        scene.assert_as_it_was(staging=True)
        assert alive(application)
    assert not alive(application)
    scene.assert_replaced()


def prepare(scene: Scene) -> None:
    scene.old.run_sql("BEGIN; INSERT INTO old VALUES (1); PREPARE TRANSACTION 'planted'")


def make_slot(scene: Scene) -> None:
    scene.old.run_sql("SELECT pg_create_logical_replication_slot('planted', 'test_decoding')")


def subscribe(scene: Scene) -> None:
    scene.old.run_sql(
        "CREATE SUBSCRIPTION planted CONNECTION 'host=127.0.0.1 port=1 dbname=none' PUBLICATION p"
        " WITH (connect = false, enabled = false, slot_name = 'planted');"
        "ALTER SUBSCRIPTION planted ENABLE"
    )


def free(scene: Scene) -> None:
    """Take away what keeps a database from being dropped."""
    of_scene = f"database = '{scene.name}'"
    for planted, undo in (
        ("pg_prepared_xacts", "ROLLBACK PREPARED 'planted'"),
        ("pg_replication_slots", "SELECT pg_drop_replication_slot('planted')"),
    ):
        if scene.old.run_sql(f"SELECT 1 FROM {planted} WHERE {of_scene}"):
            scene.old.run_sql(undo)
    if scene.old.run_sql("SELECT 1 FROM pg_subscription WHERE subname = 'planted'"):
        scene.old.run_sql(
            "ALTER SUBSCRIPTION planted DISABLE;"
            "ALTER SUBSCRIPTION planted SET (slot_name = NONE); DROP SUBSCRIPTION planted"
        )


PLANTED: dict[str, tuple[Callable[[Scene], object], str]] = {
    "prepared": (prepare, "1 prepared transaction: planted"),
    "slot": (make_slot, "1 logical replication slot: planted"),
    "subscription": (subscribe, "1 active subscription: planted"),
    "template": (
        lambda scene: scene.old.run_sql(f"ALTER DATABASE {scene.name} IS_TEMPLATE true"),
        "it is a template",
    ),
    "owner": (
        lambda scene: scene.act_as("idler"),
        "it belongs to the role maker, and idler is neither that role nor a superuser",
    ),
    "itself": (lambda scene: scene.act_as("maker", scene.name), "the database of this login"),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("kind", PLANTED)
def test_what_cannot_be_replaced_is_refused_before(scene: Scene, kind: str) -> None:
    plant, reason = PLANTED[kind]
    assert scene.find()
    plant(scene)
    try:
        with pytest.raises(TargetDatabaseError, match=reason) as caught:
            scene.find()
        assert caught.value.hint
    finally:
        free(scene)


@pytest.mark.newest_first
def test_sessions_that_may_not_be_ended_are_refused_before(scene: Scene) -> None:
    for role, remedy in (("visitor", "GRANT pg_signal_backend TO maker"), (scene.cluster.user, "")):
        with scene.visit(role):
            with pytest.raises(TargetDatabaseError, match=f"may not end .* 1 role: {role}"):
                scene.find()
            if remedy:
                scene.cluster.maintenance.run_sql(remedy)
                assert scene.find()
                scene.cluster.maintenance.run_sql("REVOKE pg_signal_backend FROM maker")
    # By its own sessions, and those of a superuser's login, nobody is kept from it.
    with scene.visit("maker"):
        assert scene.find()
    scene.act_as(scene.cluster.user)
    with scene.visit("visitor"), scene.visit(scene.cluster.user):
        assert scene.find()


MEANWHILE: dict[str, Callable[[Scene], object]] = {
    "prepared": prepare,
    "slot": make_slot,
    "session": lambda scene: scene.visit("visitor"),
    "refused": lambda scene: setattr(scene.state, "refused", True),
}


@pytest.mark.newest_first
@pytest.mark.parametrize("kind", MEANWHILE)
def test_what_comes_meanwhile_leaves_the_old_one_in_place(scene: Scene, kind: str) -> None:
    """The restored one is kept, and the sessions of the applications too."""
    application = scene.visit("maker")
    with pytest.raises(TargetDatabaseError) as caught, scene.replaced():
        MEANWHILE[kind](scene)
    assert alive(application)
    assert scene.state.outcome is Outcome.UNNAMED
    scene.assert_as_it_was(staging=True)
    assert f"cannot replace {scene.name}, which is as it was" in caught.value.message
    free(scene)
    # As the message says.
    statements = caught.value.hint.partition("and run:\n")[2]
    assert f"is called {scene.staging()}" in caught.value.hint
    scene.cluster.maintenance.run_sql(statements)
    assert scene.there() == [scene.name, scene.name + KEPT]
    assert not alive(application)
    assert alive(scene.visit("maker", scene.name + KEPT))


@pytest.mark.newest_first
def test_who_stays_in_the_restored_one_keeps_nobody_out_of_the_old_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacement, "_SECONDS_FOR_OTHERS_TO_LEAVE", 0.5)
    with scene.visit("maker") as application, contextlib.ExitStack() as stack:
        with pytest.raises(TargetDatabaseError, match="accessed by other users"), scene.replaced():
            stack.enter_context(scene.visit(scene.cluster.user, scene.staging()))
        assert alive(application)
        scene.assert_as_it_was(staging=True)


FAILURES = {
    "error": psycopg.OperationalError("planted"),
    "signal": Interrupted(15),
    "lost": None,
}


@pytest.mark.newest_first
@pytest.mark.parametrize("at", later([1, 2, 3], 3))
@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_between_the_renames_undoes_them(
    scene: Scene, kind: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: a signal, an error or a lost session."""
    calls: list[object] = []
    execute = replacement._execute_and_end_sessions  # noqa: SLF001 - a fault is planted in it

    def failing(*arguments: Any) -> None:
        execute(*arguments)
        calls.append(arguments)
        if len(calls) == at:
            if error := FAILURES[kind]:
                raise error
            arguments[2].execute("SELECT pg_terminate_backend(%(renaming)s)", arguments[3])

    monkeypatch.setattr(replacement, "_execute_and_end_sessions", failing)
    expected = Interrupted if kind == "signal" else TargetDatabaseError
    with pytest.raises(expected), scene.replaced():
        pass
    assert len(calls) == at
    # A signal drops the restored one, as at any other moment.
    scene.assert_as_it_was(staging=kind != "signal")
    assert alive(scene.visit("maker"))
    expected_outcome = Outcome.NOTHING if kind == "signal" else Outcome.UNNAMED
    assert scene.state.outcome is expected_outcome


@pytest.mark.newest_first
@pytest.mark.parametrize("error", [psycopg.OperationalError("planted"), Interrupted(15)])
def test_an_answer_that_is_lost_is_found_out(
    scene: Scene, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename_both = replacement._rename_both  # noqa: SLF001 - a fault is planted in it

    def lost(*arguments: Any) -> None:
        rename_both(*arguments)
        raise error

    monkeypatch.setattr(replacement, "_rename_both", lost)
    with scene.replaced():
        pass
    scene.assert_replaced()


@pytest.mark.newest_first
def test_another_database_of_that_name_is_not_replaced(scene: Scene) -> None:
    maintenance = scene.cluster.maintenance
    another = (
        f"ALTER DATABASE {scene.name} RENAME TO {scene.name}_mine;"
        f"CREATE DATABASE {scene.name} OWNER maker"
    )
    with pytest.raises(TargetDatabaseError, match="not the one that was"), scene.replaced():
        maintenance.run_sql(another)
    assert scene.there() == [scene.name, f"{scene.name}_mine", f"{scene.name}_pgstash_…"]


@pytest.mark.newest_first
def test_a_name_that_is_taken_gets_a_number(scene: Scene) -> None:
    taken = [scene.name + KEPT, *(f"{scene.name}{KEPT}_{number}" for number in range(2, 10))]
    scene.cluster.create_database(taken[0])
    with target.connected(scene.at) as session:
        assert replaceable.kept_name(session, scene.name, AT) == taken[1]
        for name in taken[1:]:
            scene.cluster.create_database(name)
        with pytest.raises(TargetDatabaseError, match=f"names from {taken[0]} on"):
            replaceable.kept_name(session, scene.name, AT)
