"""Extensions that are in the target already, and belong to another role than the restoring one.

Managed services and administrators create extensions for their users. CREATE EXTENSION IF NOT
EXISTS accepts one that is there. Its comment and the extension itself can be changed by its owner
alone, so a restore leaves out the statements that would change nothing, or drop the extension.
"""

from __future__ import annotations

from pgstash.postgres.restore import target
from pgstash.postgres.server.connection import Server

_OF_OTHERS = """
    SELECT pg_catalog.quote_ident(extname), pg_catalog.obj_description(oid, 'pg_extension')
    FROM pg_catalog.pg_extension WHERE NOT pg_catalog.pg_has_role(extowner, 'USAGE')
"""


def needless_statements(server: Server) -> list[bytes]:
    """Return statements of a dump, as pg_dump writes them, that only an owner may run.

    They give an extension the comment that it has, or drop it before it is created again. Raises
    TargetLostError.
    """
    with target.connected(server, "SQL_ASCII") as session:  # text is bytes
        found = session.execute(_OF_OTHERS).fetchall()
    drops = [b"DROP EXTENSION IF EXISTS %b;\n" % name for name, _ in found]
    return drops + [comment_on(name, comment) for name, comment in found if comment is not None]


def comment_on(name: bytes, comment: bytes) -> bytes:
    """Return the statement, as pg_dump writes it, that gives an extension its comment.

    ``name`` is quoted if SQL needs it.
    """
    return b"COMMENT ON EXTENSION %b IS '%b';\n" % (name, comment.replace(b"'", b"''"))
