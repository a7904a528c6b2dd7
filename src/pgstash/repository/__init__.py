"""The stored backups: the catalog, and archives that are read and verified."""
