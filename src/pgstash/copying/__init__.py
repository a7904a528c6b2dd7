"""Copies complete backups from one store to another, byte for byte, without a key."""
