"""Pruning: run.py deletes old backups, retention.py decides which, sweep.py deletes leftovers."""
