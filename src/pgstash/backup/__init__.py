"""The backup: run.py sends the data from pg_dump to the store, the other modules are its parts."""
