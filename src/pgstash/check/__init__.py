"""The preflight of a backup, and the rule for a fresh backup."""
