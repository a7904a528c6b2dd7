"""Sample databases: each a script that fills an empty database, on every supported major.

They are small and hard: what a backup may get wrong is in one of them. ``big`` is the
exception: easy, and of any size.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent

# Those that plain ``pg_dump --clean --if-exists`` and psql carry into an empty database
# without an error. ``breaks_under_clean`` is not among them: its first lines say why.
ROUND_TRIPPING = (
    "empty",
    "mixed",
    "large_objects",
    "bytea_all",
    "nasty_text",
    "structure",
    "odd_names",
    "sql_ascii",
    "latin1",
    "euc_jp",
)

# One by one what plain ``pg_dump --clean --if-exists`` cannot carry into an empty database.
_SERVER = "CREATE EXTENSION postgres_fdw; CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw;"
BREAKING_UNDER_CLEAN = {
    "view": """
        CREATE SCHEMA shop;
        CREATE TABLE shop.orders (id int PRIMARY KEY, customer text);
        CREATE VIEW shop.names AS SELECT id, customer FROM shop.orders GROUP BY id;
    """,
    "domain": """
        CREATE DOMAIN word AS text;
        ALTER DOMAIN word ADD CONSTRAINT is_short CHECK (length(VALUE) < 10) NOT VALID;
    """,
    "inherited default": f"""
        {_SERVER} CREATE TABLE parent (a int DEFAULT 5);
        CREATE FOREIGN TABLE child () INHERITS (parent) SERVER s;
    """,
    "default of an inherited column": f"""
        {_SERVER} CREATE TABLE parent (a int);
        CREATE FOREIGN TABLE child () INHERITS (parent) SERVER s;
        ALTER FOREIGN TABLE child ALTER a SET DEFAULT 7;
    """,
}

_ENCODINGS = {"sql_ascii": "SQL_ASCII", "latin1": "LATIN1", "euc_jp": "EUC_JP"}


def path(sample: str) -> Path:
    """Return the script that fills a sample database."""
    return _FOLDER / f"{sample}.sql"


def encoding(sample: str) -> str:
    """Return the encoding that a sample's database is created with."""
    return _ENCODINGS.get(sample, "UTF8")


def big(scale: float = 1.0) -> str:
    """Return a script for a database whose plain dump has about ``scale`` times 950 MB."""
    return f"\\set scale {scale}\n" + path("big").read_text(encoding="utf-8")
