"""What works and what does not: the preflight, and whether the newest backup is fresh."""
