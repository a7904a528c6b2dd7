"""The configuration file, ``pgstash.toml``: stores, servers, defaults and exceptions of many jobs.

A setting has the name of its variable in lower case. Sections are levels: a value of a database
takes precedence over one of its server, that over one of the store, that over a default, and that
over the environment.
"""
