"""The journey of a drill: run.py is the way."""
