"""A sample application: its database, its roles, and a suite that shows that it works.

The owner holds everything, the migrator acts as the owner, the application reads and writes what
it may of its own tenant, and reporting reads some columns. The suite logs in as each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgres import Database

ROLES = ("shop_owner", "shop_app", "shop_reporting", "shop_migrator")

CREATE_ROLES = """
    CREATE ROLE shop_owner NOLOGIN;
    CREATE ROLE shop_app LOGIN;
    CREATE ROLE shop_reporting LOGIN CONNECTION LIMIT 5;
    CREATE ROLE shop_migrator LOGIN;
    GRANT shop_owner TO shop_migrator;
"""

CREATE = """
    ALTER DATABASE :"DBNAME" OWNER TO shop_owner;
    COMMENT ON DATABASE :"DBNAME" IS 'the shop';
    ALTER DATABASE :"DBNAME" CONNECTION LIMIT 50;
    REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC;
    GRANT CONNECT ON DATABASE :"DBNAME" TO shop_app, shop_reporting, shop_migrator;
    ALTER DATABASE :"DBNAME" SET work_mem = '7MB';
    ALTER ROLE shop_app IN DATABASE :"DBNAME" SET search_path = shop;
    ALTER ROLE shop_reporting IN DATABASE :"DBNAME" SET default_transaction_read_only = on;
    REVOKE ALL ON SCHEMA public FROM PUBLIC;
    GRANT USAGE ON SCHEMA public TO shop_owner;

    CREATE TABLE public.changes (tag text);
    CREATE FUNCTION public.note_change() RETURNS event_trigger LANGUAGE plpgsql
        SECURITY DEFINER SET search_path = pg_catalog AS $$
        BEGIN
            INSERT INTO public.changes VALUES (tg_tag);
        END $$;
    ALTER TABLE public.changes OWNER TO shop_owner;
    ALTER FUNCTION public.note_change() OWNER TO shop_owner;

    CREATE SCHEMA shop AUTHORIZATION shop_owner;
    CREATE SCHEMA billing AUTHORIZATION shop_owner;
    SET ROLE shop_owner;
    ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT SELECT, INSERT ON TABLES TO shop_app;
    ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
    GRANT USAGE ON SCHEMA shop TO shop_app, shop_reporting;

    CREATE TYPE shop.state AS ENUM ('open', 'paid');
    CREATE TABLE shop.customers (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        tenant text NOT NULL,
        email text NOT NULL UNIQUE,
        secret text NOT NULL
    );
    CREATE TABLE shop.orders (
        id serial PRIMARY KEY,
        customer integer NOT NULL REFERENCES shop.customers,
        state shop.state NOT NULL DEFAULT 'open'
    );
    CREATE TABLE billing.ledger (id bigserial PRIMARY KEY, amount numeric CHECK (amount > 0));
    GRANT USAGE ON SEQUENCE shop.orders_id_seq TO shop_app;
    GRANT UPDATE (state) ON shop.orders TO shop_app;
    GRANT SELECT (id, tenant) ON shop.customers TO shop_reporting;

    ALTER TABLE shop.customers ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own_tenant ON shop.customers TO shop_app
        USING (tenant = current_setting('shop.tenant'));
    CREATE POLICY all_tenants ON shop.customers FOR SELECT TO shop_reporting USING (true);

    CREATE VIEW shop.open_orders AS SELECT * FROM shop.orders WHERE state = 'open';
    GRANT SELECT ON shop.open_orders TO shop_reporting;
    CREATE FUNCTION billing.book(amount numeric) RETURNS bigint LANGUAGE sql SECURITY DEFINER
        SET search_path = billing AS 'INSERT INTO ledger (amount) VALUES ($1) RETURNING id';
    GRANT USAGE ON SCHEMA billing TO shop_app;
    GRANT EXECUTE ON FUNCTION billing.book TO shop_app;

    INSERT INTO shop.customers (tenant, email, secret)
        SELECT CASE WHEN n % 2 = 0 THEN 'north' ELSE 'south' END, n || '@example.com', 'x'
        FROM generate_series(1, 10) n;
    INSERT INTO shop.orders (customer) SELECT id FROM shop.customers;
    INSERT INTO billing.ledger (amount) SELECT generate_series(1, 3);
    RESET ROLE;
    CREATE EVENT TRIGGER note_change ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
        EXECUTE FUNCTION public.note_change();
"""

DENIED = "42501"
VIOLATES_KEY = "23503"
READ_ONLY = "25006"


@dataclass(frozen=True)
class Step:
    """What a role does, and what it gets: a value, or the SQLSTATE of a refusal."""

    role: str
    statement: str
    result: object


# Everything a step changes is rolled back, but for what its sequences have given out.
SUITE = [
    Step("shop_app", "SELECT count(*) FROM customers", 5),
    Step("shop_app", "SELECT current_setting('work_mem')", "7MB"),
    Step("shop_app", "INSERT INTO orders (customer) VALUES (2) RETURNING (id > 10)::text", "true"),
    Step("shop_app", "INSERT INTO orders (customer) VALUES (99)", VIOLATES_KEY),
    Step("shop_app", "UPDATE orders SET state = 'paid' WHERE id = 1 RETURNING state", "paid"),
    Step("shop_app", "UPDATE orders SET customer = 1 WHERE id = 1", DENIED),
    Step("shop_app", "DELETE FROM orders", DENIED),
    Step("shop_app", "SELECT (billing.book(5) > 3)::text", "true"),
    Step("shop_app", "SELECT count(*) FROM billing.ledger", DENIED),
    Step("shop_app", "CREATE TABLE public.t ()", DENIED),
    Step("shop_reporting", "SELECT count(*) FROM shop.open_orders", 10),
    Step("shop_reporting", "SELECT max(id) FROM shop.customers", 10),
    Step("shop_reporting", "SELECT max(secret) FROM shop.customers", DENIED),
    Step("shop_reporting", "SELECT billing.book(5)", DENIED),
    Step("shop_reporting", "CREATE TEMP TABLE t ()", READ_ONLY),
    Step("shop_reporting", "SELECT current_setting('transaction_read_only')", "on"),
    Step(
        "shop_migrator",
        "SET ROLE shop_owner; CREATE TABLE shop.added (n int);"
        "SELECT has_table_privilege('shop_app', 'shop.added', 'insert')::text",
        "true",
    ),
    Step(
        "shop_migrator",
        "SET ROLE shop_owner; CREATE TABLE shop.added (n int); SELECT tag FROM public.changes",
        "CREATE TABLE",
    ),
    Step(
        "shop_migrator",
        "SET ROLE shop_owner; CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql AS 'SELECT 1';"
        "SELECT has_function_privilege('shop_app', 'shop.f()', 'execute')::text",
        "false",
    ),
    Step("shop_migrator", "SET ROLE shop_owner; ALTER TABLE shop.orders ADD note text", None),
]


def failures(database: Database) -> Iterator[str]:
    """Run the suite; yield what a step got instead of what it should."""
    for step in SUITE:
        found = _result(database, step)
        if found != step.result:
            yield f"{step.role}: {step.statement}: {found!r} instead of {step.result!r}"


def _result(database: Database, step: Step) -> object:
    url = database.uri.replace(f"//{database.cluster.user}@", f"//{step.role}@")
    try:
        with psycopg.connect(url) as session:
            session.execute("SET shop.tenant = 'north'")
            try:
                cursor = session.execute(step.statement.encode())
                while cursor.nextset():
                    pass
                row = cursor.fetchone() if cursor.description else None
                return row[0] if row else None
            finally:
                session.rollback()
    except psycopg.Error as error:
        return error.sqlstate or str(error)
