"""The client tools of PostgreSQL: which are installed, how they are run, what they write."""
