"""Writing a target: the staging database, psql and COPY as sinks, and what was refused."""
