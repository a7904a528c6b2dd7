"""Reading a source: the snapshot, its rows, and what pg_dump leaves out."""
