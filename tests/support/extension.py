"""A small extension of the tests' own, in SQL alone: tables with rows, a sequence, a function.

Its files go into the share folder of a test server's installation, which several checkouts may
share: so their name holds a digest of what they are, and they are put there in one step.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from support.postgres import installation

if TYPE_CHECKING:
    from support.postgres import Database

# ``units`` is dumped whole, and CREATE EXTENSION fills it; of ``rates`` only what is one's own is
# dumped, and CREATE EXTENSION makes such a row too; so it is with ``notes``, whose rows go when
# those of ``systems`` do; ``log`` is in no dump.
_SCRIPT = """
CREATE SCHEMA kit;
CREATE TABLE kit.units (name text PRIMARY KEY, factor numeric NOT NULL);
INSERT INTO kit.units VALUES ('metre', 1), ('foot', 0.3), ('yard', 0.9);
CREATE TABLE kit.rates (
    id serial PRIMARY KEY, unit text NOT NULL REFERENCES kit.units, rate numeric,
    own boolean NOT NULL DEFAULT true, made boolean NOT NULL DEFAULT true
);
INSERT INTO kit.rates (unit, rate, own) VALUES ('metre', 1, false), ('foot', 2, true);
CREATE TABLE kit.systems (name text PRIMARY KEY);
INSERT INTO kit.systems VALUES ('SI');
CREATE TABLE kit.notes (system text REFERENCES kit.systems ON DELETE CASCADE, own boolean);
INSERT INTO kit.notes VALUES ('SI', false);
CREATE SEQUENCE kit.numbers;
CREATE TABLE kit.numbered (n bigint PRIMARY KEY DEFAULT nextval('kit.numbers'), what text);
CREATE TABLE kit.keyed (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
CREATE TABLE kit.log (n serial PRIMARY KEY, what text);
CREATE FUNCTION kit.factor(wanted text) RETURNS numeric IMMUTABLE LANGUAGE plpgsql AS $$
DECLARE found numeric;
BEGIN
    SELECT factor INTO STRICT found FROM kit.units WHERE name = wanted;
    RETURN found;
END $$;
SELECT pg_catalog.pg_extension_config_dump('kit.units', '');
SELECT pg_catalog.pg_extension_config_dump('kit.rates', 'WHERE own AND made');
SELECT pg_catalog.pg_extension_config_dump('kit.systems', '');
SELECT pg_catalog.pg_extension_config_dump('kit.notes', 'WHERE own');
SELECT pg_catalog.pg_extension_config_dump('kit.numbered', '');
SELECT pg_catalog.pg_extension_config_dump('kit.keyed', '');
"""
_CONTROL = "default_version = '1.0'\nrelocatable = false\n"


# It can be made in the database of one name alone, as pg_cron can.
_BOUND = """
DO $$ BEGIN
    IF current_database() <> current_setting('NAME.database_name') THEN
        RAISE EXCEPTION 'can only create extension in database %',
            current_setting('NAME.database_name');
    END IF;
END $$;
CREATE SCHEMA bound;
CREATE TABLE bound.job (id serial PRIMARY KEY, what text);
INSERT INTO bound.job (what) VALUES ('made');
SELECT pg_catalog.pg_extension_config_dump('bound.job', '');
SELECT pg_catalog.pg_extension_config_dump('bound.job_id_seq', '');
"""
BOUND = "pgstash_bound"
"""An extension that :func:`install_bound` makes available; its setting is NAME.database_name."""


def install_bound(major: int) -> None:
    """Make an extension available that a setting of the server binds to one database."""
    folder = installation(major) / "share" / "extension"
    _put(folder / f"{BOUND}.control", _CONTROL)
    _put(folder / f"{BOUND}--1.0.sql", _BOUND.replace("NAME", BOUND))


def install(major: int, script: str = _SCRIPT, control: str = _CONTROL) -> str:
    """Make an extension available on servers of this major, and return its name."""
    name = f"pgstash_{hashlib.sha256((script + control).encode()).hexdigest()[:12]}"
    folder = installation(major) / "share" / "extension"
    for file, text in {f"{name}.control": control, f"{name}--1.0.sql": script}.items():
        _put(folder / file, text)
    return name


def _put(path: Path, text: str) -> None:
    if path.exists():
        return
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".pgstash-")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)


def fill(database: Database) -> str:
    """Make the extension in a database and change its tables as users do; return its name.

    A table that is large enough to be cut computes by rows of the extension.
    """
    name = install(database.cluster.major)
    database.run_sql(
        f"CREATE EXTENSION {name};"
        "DELETE FROM kit.units WHERE name = 'yard';"
        "UPDATE kit.units SET factor = 0.3048 WHERE name = 'foot';"
        "INSERT INTO kit.units VALUES ('ell', 0.6);"
        "INSERT INTO kit.rates (unit, rate) VALUES ('ell', 3), ('foot', 4);"
        "DELETE FROM kit.rates WHERE rate = 2;"
        "SELECT setval('kit.rates_id_seq', 70);"
        "INSERT INTO kit.notes VALUES ('SI', true);"
        "INSERT INTO kit.numbered (what) VALUES ('a'), ('b');"
        "INSERT INTO kit.keyed (what) VALUES ('a'), ('b'), ('c');"
        "CREATE SCHEMA before_kit;"
        "CREATE TABLE before_kit.measures (n int, unit text CHECK (kit.factor(unit) > 0),"
        " metres numeric GENERATED ALWAYS AS (n * kit.factor(unit)) STORED);"
        "INSERT INTO before_kit.measures SELECT n, 'ell' FROM generate_series(1, 20000) AS n;"
        "CREATE TABLE before_kit.parts (n int, unit text) PARTITION BY LIST (kit.factor(unit));"
        "CREATE TABLE before_kit.ells PARTITION OF before_kit.parts FOR VALUES IN (0.6);"
        "INSERT INTO before_kit.parts SELECT n, 'ell' FROM generate_series(1, 2000) AS n"
    )
    return name
