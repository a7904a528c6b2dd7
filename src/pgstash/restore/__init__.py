"""The journey of a restore: run.py is the way, the rest are its parts."""
