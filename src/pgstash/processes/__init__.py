"""Child processes, and the user's hooks, which run as such."""
