"""The long-running service: the loop, and when the next run is due."""
