"""Listeners to events: the log, and progress on a terminal."""
