"""What counts as something that a user made in a target, and how a new one gets its name."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from pgstash import events
from pgstash.errors import Interrupted, TargetDatabaseError, TargetLostError
from pgstash.postgres.restore import drop_database, new_database, staging_database, target
from pgstash.postgres.restore.request import Request
from pgstash.postgres.restore.target import Outcome, TargetState
from pgstash.postgres.scratch import scratch_database
from pgstash.postgres.server import login
from pgstash.runtime import Runtime
from pgstash.signals import Interruption
from support import extension
from support.proxy import STALL, Behaviour, TcpProxy
from support.stored import DATABASE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pgstash.postgres.server.connection import Server
    from support.postgres import Cluster, MakeDatabase


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "made",
    [
        "CREATE SCHEMA a",
        "CREATE VIEW v AS SELECT 1",
        "CREATE SEQUENCE s",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE t AS (a int)",
        "CREATE TYPE t AS ENUM ('a')",
        "CREATE DOMAIN d AS int",
        'CREATE COLLATION c FROM "C"',
        "CREATE PUBLICATION p",
        "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
        "SELECT lo_create(0)",
    ],
)
def test_whatever_a_user_made_counts(
    made: str, cluster: Cluster, make_database: MakeDatabase
) -> None:
    database = make_database(on=cluster)
    server = login.inspect(database.uri)
    assert target.contents(server).count == 0
    database.run_sql(made)
    assert target.contents(server).count == 1


@pytest.mark.parametrize("name", ["dblink", "hstore", "with tables"])
def test_extensions_alone_do_not_count(
    name: str, cluster: Cluster, make_database: MakeDatabase
) -> None:
    """Not even their composite types, and their sequences of identity columns."""
    database = make_database(on=cluster)
    created = extension.install(cluster.major) if name == "with tables" else name
    database.run_sql(f"CREATE EXTENSION {created}")
    found = target.contents(login.inspect(database.uri))
    assert (found.count, found.some) == (0, ())
    database.run_sql(
        "CREATE TYPE t AS (a int); CREATE TABLE i (n int GENERATED ALWAYS AS IDENTITY)"
    )
    assert target.contents(login.inspect(database.uri)).count == 3


def test_no_question_that_the_target_refuses_is_unforeseen(newest_cluster: Cluster) -> None:
    server = login.inspect(newest_cluster.maintenance.uri)
    with (
        pytest.raises(TargetLostError, match="did not execute a statement: division by zero"),
        target.connected(server) as session,
    ):
        session.execute("SELECT 1 / 0")


class Naming:
    """A database that is made, and what is said to have become of it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.name = f"new_{secrets.token_hex(4)}"
        self.state = TargetState()
        self.told: list[events.Event] = []
        self.at = login.inspect(cluster.maintenance.uri)

    @contextlib.contextmanager
    def made(self, interruption: Interruption | None = None) -> Iterator[Server]:
        with staging_database.created(
            self.at,
            Request(create=self.name),
            None,
            self.state,
            Runtime(self.told.append, interruption or Interruption()),
        ) as made:
            yield made

    @property
    def outcome(self) -> Outcome:
        return self.state.outcome

    def there(self) -> list[str]:
        """Return the databases that are there, by name or working name."""
        query = f"SELECT datname FROM pg_database WHERE datname LIKE '{self.name[:12]}%' ORDER BY 1"
        return self.cluster.maintenance.run_sql(query).split()

    def comments(self) -> list[str]:
        """Return what is said of these databases, of each that something is said of."""
        query = (
            "SELECT description FROM pg_shdescription JOIN pg_database d ON d.oid = objoid"
            f" WHERE datname LIKE '{self.name[:12]}%'"
        )
        return self.cluster.maintenance.run_sql(query).splitlines()


@pytest.fixture
def naming(cluster: Cluster) -> Iterator[Naming]:
    naming = Naming(cluster)
    yield naming
    for name in naming.there():
        cluster.drop_database(name)


def test_who_looks_into_a_new_database_does_not_keep_it_from_its_name(naming: Naming) -> None:
    with naming.made() as made:
        visitor = psycopg.connect(made.connection.conninfo)
    assert (naming.there(), naming.outcome) == ([naming.name], Outcome.COMMITTED)
    with pytest.raises(psycopg.OperationalError):
        visitor.execute("SELECT 1")


def test_who_looks_into_a_new_database_does_not_keep_it_from_being_dropped(naming: Naming) -> None:
    with contextlib.suppress(ZeroDivisionError), naming.made() as made:
        visitor = psycopg.connect(made.connection.conninfo)
        raise ZeroDivisionError
    visitor.close()
    assert (naming.there(), naming.outcome) == ([], Outcome.NOTHING)


@pytest.mark.newest_first
def test_a_whole_database_that_cannot_be_named_is_kept(
    naming: Naming, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drop_database, "_SECONDS_FOR_OTHERS_TO_LEAVE", 0.5)
    maintenance = naming.cluster.maintenance
    maintenance.run_sql("DROP ROLE IF EXISTS maker; CREATE ROLE maker LOGIN CREATEDB")
    naming.at = login.inspect(maintenance.uri.replace(naming.cluster.user, "maker", 1))
    making = naming.made()
    made = making.__enter__()
    # A superuser, whom the role may not send away.
    parameters = {**made.connection.parameters, "user": naming.cluster.user}
    visitor = psycopg.connect(**parameters)  # type: ignore[arg-type]
    with pytest.raises(TargetDatabaseError, match="being accessed by other users") as caught:
        making.__exit__(None, None, None)
    [made_as] = naming.there()
    assert naming.comments() == []
    assert (made_as.partition("_pgstash_")[0], naming.outcome) == (naming.name, Outcome.UNNAMED)
    visitor.close()
    maintenance.run_sql(caught.value.hint.rpartition("by ")[2])
    assert naming.there() == [naming.name]
    maintenance.run_sql(f"ALTER DATABASE {naming.name} OWNER TO {naming.cluster.user}")
    maintenance.run_sql("DROP ROLE maker")


def test_a_comment_says_that_a_database_is_incomplete_until_it_is_whole(naming: Naming) -> None:
    with naming.made():
        assert naming.comments() == ["an incomplete restore by pgstash"]
    assert (naming.there(), naming.comments()) == ([naming.name], [])
    assert naming.told == []


@pytest.mark.parametrize("length", [12, 60])
def test_what_earlier_restores_left_is_told_and_stays(naming: Naming, length: int) -> None:
    naming.name = naming.name.ljust(length, "n")
    with naming.made():
        [incomplete] = naming.there()
        beginning = incomplete[:-8]
        whole, another = f"{beginning}0badcafe", f"{beginning[:-1]}-0badcafe"
        for name in (whole, another):
            naming.cluster.create_database(name)
        later = Naming(naming.cluster)
        later.name = naming.name
        with contextlib.suppress(ZeroDivisionError), later.made():
            raise ZeroDivisionError
        assert later.there() == sorted([incomplete, whole, another])
    said = {str(each) for each in later.told}
    assert len(said) == 2
    [of_incomplete] = [each for each in said if incomplete in each]
    assert "is incomplete: a restore into it is running, or was killed" in of_incomplete
    assert f'drop it by DROP DATABASE "{incomplete}"' in of_incomplete
    [of_whole] = [each for each in said if whole in each]
    assert "is not marked as incomplete" in of_whole


def test_who_may_end_the_sessions_of_others_need_not_see_what_they_are(naming: Naming) -> None:
    maintenance = naming.cluster.maintenance
    maintenance.run_sql(
        "DROP ROLE IF EXISTS ender, watcher; CREATE ROLE watcher LOGIN;"
        "CREATE ROLE ender LOGIN CREATEDB IN ROLE pg_signal_backend"
    )
    naming.at = login.inspect(maintenance.uri.replace(naming.cluster.user, "ender", 1))
    with naming.made() as made:
        parameters = {**made.connection.parameters, "user": "watcher"}
        maintenance.run_sql(f'GRANT CONNECT ON DATABASE "{parameters["dbname"]}" TO PUBLIC')
        visitor = psycopg.connect(**parameters)  # type: ignore[arg-type]
    assert (naming.there(), naming.outcome) == ([naming.name], Outcome.COMMITTED)
    visitor.close()
    maintenance.run_sql(f"ALTER DATABASE {naming.name} OWNER TO {naming.cluster.user}")
    maintenance.run_sql("DROP ROLE ender, watcher")


def test_who_logs_in_as_another_role_is_let_in(naming: Naming) -> None:
    maintenance = naming.cluster.maintenance
    maintenance.run_sql(
        "DROP ROLE IF EXISTS owning, entering; CREATE ROLE owning CREATEDB;"
        "CREATE ROLE entering LOGIN NOINHERIT IN ROLE owning;"
        "ALTER ROLE entering SET role = owning"
    )
    naming.at = login.inspect(maintenance.uri.replace(naming.cluster.user, "entering", 1))
    with naming.made() as made:
        # Whose session the role that is set may not end.
        left = psycopg.connect(**made.connection.parameters)  # type: ignore[arg-type]
    assert (naming.there(), naming.outcome) == ([naming.name], Outcome.COMMITTED)
    left.close()
    naming.cluster.drop_database(naming.name)
    maintenance.run_sql("DROP ROLE owning, entering")


def test_a_scratch_database_that_has_not_got_its_name_goes_too(naming: Naming) -> None:
    cluster = naming.cluster
    with scratch_database.name(naming.at, naming.told.append) as chosen:
        others = ["pgstash_drill_00000002", f"{chosen}_mine"]
        for name in (f"{chosen}_pgstash_12345678", *others):
            cluster.create_database(name)
        # One that runs.
        keeper = cluster.maintenance.connect()
        keeper.execute(f"SET application_name = '{others[0]}'")
    left = cluster.maintenance.run_sql(
        "SELECT datname FROM pg_database"
        f" WHERE datname ~ '^({chosen}|pgstash_drill_0000)' ORDER BY 1"
    )
    assert left.split() == sorted(others)
    keeper.close()
    for name in others:
        cluster.drop_database(name)


@pytest.mark.newest_first
def test_the_silence_of_a_scratch_server_is_waited_for_once(naming: Naming) -> None:
    with TcpProxy(naming.cluster.port) as proxy:
        uri = naming.cluster.maintenance.uri.replace(str(naming.cluster.port), str(proxy.port))
        naming.at = login.inspect(uri)
        with contextlib.suppress(Interrupted), scratch_database.name(naming.at, naming.told.append):
            proxy.behave(STALL)
            raise Interrupted(15)
    [warned] = naming.told
    assert "could not be dropped: the target cannot be reached" in str(warned)


class Signalled(Interruption):
    """Once the database is created, a signal comes at the end of a time of deferred signals."""

    created = False

    @contextlib.contextmanager
    def defer_signals(self) -> Iterator[None]:
        yield
        if self.created:
            raise Interrupted(15)


class SignalledAtOnce(Signalled):
    """Once the database is created, a signal comes just before signals are deferred."""

    @contextlib.contextmanager
    def defer_signals(self) -> Iterator[None]:
        if self.created:
            raise Interrupted(15)
        yield


def test_a_signal_after_the_naming(naming: Naming) -> None:
    signalled = Signalled()
    with naming.made(signalled):
        signalled.created = True
    assert (naming.there(), naming.outcome) == ([naming.name], Outcome.COMMITTED)


def test_a_signal_before_the_naming(naming: Naming) -> None:
    signalled = SignalledAtOnce()
    with pytest.raises(Interrupted), naming.made(signalled):
        signalled.created = True
    assert (naming.there(), naming.outcome) == ([], Outcome.NOTHING)


@pytest.mark.parametrize("for_ever", [False, True])
def test_an_answer_to_the_naming_that_is_lost(naming: Naming, *, for_ever: bool) -> None:
    with TcpProxy(naming.cluster.port) as proxy:
        proxy.behave(Behaviour(reset_answer_to=b"RENAME TO", then_refuse=for_ever))
        uri = naming.cluster.maintenance.uri.replace(str(naming.cluster.port), str(proxy.port))
        naming.at = login.inspect(uri)
        if for_ever:
            with pytest.raises(TargetDatabaseError, match="cannot find out"), naming.made():
                pass
        else:
            with naming.made():
                pass
    expected = Outcome.UNKNOWN if for_ever else Outcome.COMMITTED
    assert (naming.there(), naming.outcome) == ([naming.name], expected)


def test_a_new_database_sorts_by_the_rules_of_the_old_one() -> None:
    """No server with ICU is at hand: this is what one would be asked for."""
    like = replace(DATABASE, locale_provider="i", locale="und", icu_rules="&V << w <<< 'W'")
    made = new_database.statement("new", like, 16).as_string()
    assert made.endswith("LOCALE_PROVIDER 'icu' ICU_LOCALE 'und' ICU_RULES '&V << w <<< ''W'''")
    assert (
        "ICU_RULES"
        not in new_database.statement("new", replace(like, icu_rules=None), 16).as_string()
    )
