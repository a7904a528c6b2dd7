"""A server: how it is reached, what it is, and how pgstash asks it."""
