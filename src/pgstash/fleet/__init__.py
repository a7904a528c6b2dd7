"""The queue of a fleet, in PostgreSQL: what runs, ran and failed, for workers on many machines.

procrastinate has the tables and their functions. Its own worker is not used: it stops when the
database does, and calls Python functions, while a worker here goes on and runs processes.
"""
