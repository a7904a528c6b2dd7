"""A role that lacks a right: the check names what, and the GRANT that it prints mends it."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pgstash.check import database as checks
from pgstash.check.finding import Finding
from pgstash.postgres.dump import required_tables
from pgstash.postgres.tools import pg_dump_options
from support.postgres import Cluster, Database, MakeDatabase, clean_environment
from support.tiers import later

NAMES = 'CREATE SCHEMA "Odd; Schema"; CREATE TABLE "Odd; Schema"."It\'s" (a int);'
CONTENTS = f"""
    CREATE TABLE plain (a int); INSERT INTO plain VALUES (1);
    CREATE TABLE numbered (a int GENERATED ALWAYS AS IDENTITY);
    CREATE TABLE tagged (a serial);
    CREATE TABLE parted (a int) PARTITION BY LIST (a);
    CREATE TABLE parted_1 PARTITION OF parted FOR VALUES IN (1);
    CREATE SEQUENCE counter;
    CREATE VIEW seen AS SELECT * FROM plain;
    CREATE MATERIALIZED VIEW kept AS SELECT * FROM plain;
    SELECT lo_from_bytea(4711, 'x');
    {NAMES}
"""
STATEMENT = re.compile(r"^[A-Z]+ .*;$", re.MULTILINE)


class Role:
    """A role of its own, in quotes, that may read nothing."""

    def __init__(self, database: Database, options: str = "") -> None:
        self.database = database
        self.name = f"Ro'le {uuid.uuid4().hex[:6]}"
        self.quoted = f'"{self.name}"'
        database.run_sql(f"CREATE ROLE {self.quoted} LOGIN {options}")

    @property
    def uri(self) -> str:
        return self.database.uri.replace(
            f"{self.database.cluster.user}@", f"{quote(self.name, safe='')}@"
        )

    def grant(self, what: str) -> None:
        self.database.run_sql(f"GRANT {what} TO {self.quoted}")

    def check(self, *options: str) -> dict[str, Finding]:
        plan = checks.Plan(self.uri, {"PATH": str(self.database.bin_dir)}, _clock, options)
        return {finding.topic: finding for finding in checks.look(plan)}

    def dump(self, *options: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.database.bin_dir / "pg_dump"), "-d", self.uri, *options]
        return subprocess.run(
            command, env=clean_environment(), capture_output=True, text=True, check=False
        )

    def drop(self) -> None:
        self.database.run_sql(f"DROP OWNED BY {self.quoted}; DROP ROLE {self.quoted}")


def _clock() -> float:
    return 0.0


def failed(findings: dict[str, Finding]) -> list[str]:
    return [topic for topic, finding in findings.items() if finding.state == "failure"]


@pytest.fixture
def role(cluster: Cluster, make_database: MakeDatabase) -> Iterator[Role]:
    database = make_database(on=cluster)
    database.run_sql(CONTENTS)
    role = Role(database)
    yield role
    role.drop()


def allow_all(role: Role, *but: str) -> None:
    """Grant everything that is needed, one by one, but for some of it."""
    grants = {
        "schema": 'USAGE ON SCHEMA public, "Odd; Schema"',
        "tables": 'SELECT ON ALL TABLES IN SCHEMA public, "Odd; Schema"',
        "sequences": "SELECT ON ALL SEQUENCES IN SCHEMA public",
        "objects": "SELECT ON LARGE OBJECT 4711",
    }
    for kind, grant in grants.items():
        if kind not in but:
            role.grant(grant)


def test_the_superuser_may_read_everything(cluster: Cluster, make_database: MakeDatabase) -> None:
    database = make_database(on=cluster)
    database.run_sql(CONTENTS + "ALTER TABLE plain ENABLE ROW LEVEL SECURITY")
    plan = checks.Plan(database.uri, {"PATH": str(database.bin_dir)}, time.time)
    states = {finding.topic: finding.state for finding in checks.look(plan)}
    assert set(states.values()) == {"ok"}
    assert len(states) == 10


def test_views_and_what_extensions_own_need_no_right(role: Role) -> None:
    allow_all(role)
    role.database.run_sql(
        f"REVOKE ALL ON seen, kept FROM {role.quoted};"
        "CREATE EXTENSION citext; CREATE TABLE theirs (a int); ALTER EXTENSION citext ADD TABLE "
        "theirs"
    )
    assert failed(role.check()) == []
    done = role.dump()
    assert (done.returncode, done.stderr) == (0, "")


LACKING = {
    "schema": ("tables", "Odd; Schema"),
    "tables": ("tables", "It's"),
    "sequences": ("sequences", "public.counter"),
    "objects": ("large objects", "4711"),
    "row security": ("row security", "public.plain"),
}


@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize("remedy", later(["whole", "one by one"], "whole"))
def test_what_is_lacking_is_named_and_the_statements_mend_it(
    lacking: str, remedy: str, role: Role
) -> None:
    allow_all(role, lacking)
    if lacking == "tables":  # few enough to be named one by one
        role.grant("SELECT ON ALL TABLES IN SCHEMA public")
    if lacking == "row security":
        role.database.run_sql("ALTER TABLE plain ENABLE ROW LEVEL SECURITY")
    topic, name = LACKING[lacking]
    assert role.dump().returncode != 0
    findings = role.check()
    assert failed(findings) == [topic]
    assert name in findings[topic].found

    whole, _, exact = findings[topic].remedy.partition("or, one by one:")
    statements = STATEMENT.findall(exact if exact and remedy == "one by one" else whole)
    assert statements
    role.database.run_sql("\n".join(statements))
    assert failed(role.check()) == []
    done = role.dump()
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.newest_first
def test_many_are_counted_and_one_statement_mends_them(role: Role) -> None:
    role.database.run_sql(
        "SELECT lo_create(g) FROM generate_series(5000, 5119) g;"
        "DO $$ BEGIN FOR i IN 1..120 LOOP EXECUTE 'CREATE TABLE t' || i || '()'; END LOOP; END $$"
    )
    findings = role.check()
    assert failed(findings) == ["tables", "sequences", "large objects"]
    assert re.search(r"may not read 126 of 126: .* and 121 more$", findings["tables"].found)
    assert "\nand 122 more" in findings["tables"].remedy  # the schema too
    assert findings["large objects"].found.endswith("5003 and 116 more")
    role.database.run_sql(findings["tables"].remedy.partition("\n")[0])
    role.database.run_sql(findings["large objects"].remedy.partition("\n")[0])
    assert failed(role.check()) == []
    assert role.dump().returncode == 0


def test_a_role_that_does_not_inherit_is_told_so(
    cluster: Cluster, make_database: MakeDatabase
) -> None:
    database = make_database(on=cluster)
    database.run_sql("CREATE TABLE plain (a int)")
    role = Role(database, "NOINHERIT")
    remedy = role.check()["tables"].remedy.partition("or, one by one:")[0]
    database.run_sql("\n".join(STATEMENT.findall(remedy)))
    assert failed(role.check()) == []
    assert role.dump().returncode == 0
    role.drop()


def test_a_table_that_an_extension_registered_is_read(role: Role) -> None:
    allow_all(role)
    role.database.run_sql(
        "CREATE EXTENSION citext; CREATE TABLE config (a int); ALTER EXTENSION citext ADD TABLE "
        "config; UPDATE pg_extension SET extconfig = ARRAY['config'::regclass], "
        "extcondition = ARRAY[''] WHERE extname = 'citext'"
    )
    assert role.dump().returncode != 0
    findings = role.check()
    assert failed(findings) == ["tables"]
    assert "public.config" in findings["tables"].found


def test_the_owner_is_not_bound_by_policies_unless_they_are_forced(role: Role) -> None:
    allow_all(role)
    role.database.run_sql(
        f"ALTER TABLE plain ENABLE ROW LEVEL SECURITY; ALTER TABLE plain OWNER TO {role.quoted}"
    )
    assert failed(role.check()) == []
    assert role.dump().returncode == 0
    role.database.run_sql("ALTER TABLE plain FORCE ROW LEVEL SECURITY")
    assert failed(role.check()) == ["row security"]
    assert role.dump().returncode != 0
    role.database.run_sql("ALTER TABLE plain OWNER TO CURRENT_USER")


def test_large_objects_of_the_owner_of_public_and_of_a_role_one_is_in(role: Role) -> None:
    allow_all(role, "objects")
    group = f'"{role.name} group"'
    role.database.run_sql(
        f"SELECT lo_create(1), lo_create(2); CREATE ROLE {group}; GRANT {group} TO {role.quoted};"
        f"ALTER LARGE OBJECT 4711 OWNER TO {role.quoted};"
        f"GRANT SELECT ON LARGE OBJECT 1 TO PUBLIC; GRANT SELECT ON LARGE OBJECT 2 TO {group}"
    )
    assert failed(role.check()) == []
    assert role.dump().returncode == 0
    role.database.run_sql(f"REVOKE SELECT ON LARGE OBJECT 4711 FROM {role.quoted}")
    assert failed(role.check()) == ["large objects"]
    assert role.dump().returncode != 0
    role.database.run_sql(f"DROP OWNED BY {group}; DROP ROLE {group}")


def test_a_subscription_that_is_left_out_is_a_warning(role: Role) -> None:
    allow_all(role)
    role.database.run_sql(
        "CREATE SUBSCRIPTION feed CONNECTION 'dbname=x' PUBLICATION p "
        "WITH (connect = false, slot_name = NONE)"
    )
    findings = role.check()
    assert failed(findings) == []
    assert findings["subscriptions"].state == "warning"
    assert "subscriptions not dumped" in role.dump().stderr
    role.database.run_sql("DROP SUBSCRIPTION feed")


@pytest.mark.newest_first
def test_user_mappings_without_their_options_are_a_warning(role: Role) -> None:
    allow_all(role)
    role.database.run_sql(
        "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
        "CREATE USER MAPPING FOR CURRENT_USER SERVER s OPTIONS (password 'theirs');"
        "CREATE USER MAPPING FOR PUBLIC SERVER s OPTIONS (password 'everybody''s');"
        f"CREATE USER MAPPING FOR {role.quoted} SERVER s OPTIONS (password 'its own')"
    )
    assert passwords(role) == set()
    found = role.check()["user mappings"]
    assert found.state == "warning"
    assert "options of 3 user mappings" in found.found
    assert f"{role.quoted} on s" in found.found
    assert "user mappings" not in role.check("--schema=public")

    role.grant("USAGE ON FOREIGN SERVER s")
    assert passwords(role) == {"its own"}
    assert "options of 2 user mappings" in role.check()["user mappings"].found

    role.database.run_sql(f"ALTER SERVER s OWNER TO {role.quoted}")
    assert passwords(role) == {"its own", "everybody''s"}
    assert "options of 1 user mapping" in role.check()["user mappings"].found

    role.database.run_sql(f"ALTER ROLE {role.quoted} SUPERUSER")
    assert passwords(role) == {"its own", "everybody''s", "theirs"}
    assert "user mappings" not in role.check()
    role.database.run_sql(
        f"DROP FOREIGN DATA WRAPPER w CASCADE; ALTER ROLE {role.quoted} NOSUPERUSER"
    )


def passwords(role: Role) -> set[str]:
    return set(re.findall(r"password '(.*)'", role.dump().stdout))


def test_the_rights_of_the_role_that_pg_dump_takes_count(role: Role) -> None:
    assert "tables" in failed(role.check())
    role.grant(f'"{role.database.cluster.user}"')
    option = f"--role={role.database.cluster.user}"
    assert failed(role.check(option)) == []
    assert role.dump(option).returncode == 0


def test_no_login_leaves_the_rest_out(make_database: MakeDatabase) -> None:
    uri = make_database().uri.replace("admin@", "nobody@")
    findings = list(checks.look(checks.Plan(uri, {}, _clock)))
    assert (findings[0].topic, findings[0].state) == ("login", "failure")
    assert {finding.state for finding in findings[1:]} == {"skipped"}


def test_tools_that_do_not_fit_are_named_and_the_rest_is_looked_at(
    make_database: MakeDatabase, tmp_path: Path
) -> None:
    plan = checks.Plan(make_database().uri, {"PATH": str(tmp_path)}, _clock)
    findings = {finding.topic: finding for finding in checks.look(plan)}
    if findings["client tools"].state == "ok":
        pytest.skip("this machine has tools of its own")
    assert "postgresql-client-" in findings["client tools"].remedy
    assert findings["tables"].state == "ok"


def test_a_clock_that_differs_is_a_warning(make_database: MakeDatabase) -> None:
    findings = {
        finding.topic: finding
        for finding in checks.look(checks.Plan(make_database().uri, {}, lambda: 0.0))
    }
    assert findings["database clock"].state == "warning"
    assert "ahead of ours" in findings["database clock"].found


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "given",
    [
        ["--exclude-schema=Odd; Schema"],
        ["--exclude-schema=odd; schema"],
        ['--exclude-schema="Odd; Schema"', "--exclude-table=numbered"],
        ['--exclude-schema="Odd*"', "--exclude-table=public.num*"],
        ['--exclude-schema="Odd"*', "--exclude-table=public.num*"],
        ["--exclude-schema=*odd*", "--exclude-table=numbered"],
        ['--exclude-table="Odd; Schema".*', "--exclude-table=numbered*"],
        ['--exclude-table="It\'s"', "--exclude-table=numbered"],
        ['--exclude-table=*."It\'s"', "--exclude-table=numbered"],
        ["--exclude-table-data=*.*"],
        ["--table=plain"],
        ["--table=plain", "--table=numbered"],
        ["--schema=public"],
        ["--schema=public", "--exclude-table=numbered"],
        ["--schema=public", "--table=p*"],
        ["-n", "pub*", "-T", "numbered", "-Ttagged*"],
        ['-N"Odd; Schema"', "-Tnumbered", "-Ttagged*"],
        ['-N"Odd; Schema"', "-Tnumbered", "-Ttagged"],
        ['-N"Odd; Schema"', "-Tnumbered_a_seq", "-Ttagged*"],
        ['-N"Odd; Schema"', "-Tnumbered", "-Ttagged_a_seq"],
        ["-tplain", "-ttagged_a_seq"],
    ],
    ids=" ".join,
)
def test_what_is_left_out_needs_no_right(given: list[str], role: Role) -> None:
    """As pg_dump itself finds it."""
    role.grant("USAGE ON SCHEMA public")
    role.grant("SELECT ON plain, seen, kept, parted, parted_1, counter")
    role.grant("SELECT ON LARGE OBJECT 4711")
    assert_as_pg_dump_finds_it(role, given)


def assert_as_pg_dump_finds_it(role: Role, given: list[str]) -> None:
    done = role.dump(*given)
    found = failed(role.check(*pg_dump_options.allowed(shlex.join(given))))
    assert (found == []) == (done.returncode == 0), (found, done.stderr)


@pytest.mark.newest_first
@pytest.mark.parametrize("table", ["numbered", "tagged"])
@pytest.mark.parametrize("lacking", ["the table", "the sequence", "nothing"])
def test_the_sequence_of_a_table_that_is_chosen(lacking: str, table: str, role: Role) -> None:
    role.grant("USAGE ON SCHEMA public")
    role.grant(f"SELECT ON {table}_a_seq" if lacking == "the table" else f"SELECT ON {table}")
    if lacking == "nothing":
        role.grant(f"SELECT ON {table}_a_seq")
    for given in ([f"--table={table}"], ["--table=plain", f"--exclude-table={table}"]):
        assert_as_pg_dump_finds_it(role, given)


@pytest.mark.newest_first
@pytest.mark.parametrize(
    "given", [[], ["-B"], ["-b"], ["-t", "plain"], ["-bt", "plain"], ["-n", "public"]], ids=" ".join
)
def test_large_objects_that_are_not_dumped(given: list[str], role: Role) -> None:
    allow_all(role, "objects")
    assert_as_pg_dump_finds_it(role, given)


def test_policies_of_a_table_without_its_rows(role: Role) -> None:
    allow_all(role)
    role.database.run_sql("ALTER TABLE plain ENABLE ROW LEVEL SECURITY")
    for given in (["--exclude-table-data=plain"], ["--exclude-table-data=numbered"], []):
        assert_as_pg_dump_finds_it(role, given)


def test_tables_that_are_required(role: Role) -> None:
    allow_all(role)

    def finding(text: str) -> Finding:
        plan = checks.Plan(
            role.uri, {"PATH": str(role.database.bin_dir)}, _clock, (), required_tables.parse(text)
        )
        return {found.topic: found for found in checks.look(plan)}["required tables"]

    assert finding("plain, parted").state == "ok"
    assert finding("plain, plane").state == "failure"
    assert "public.plane does not exist" in finding("plain, plane").found
