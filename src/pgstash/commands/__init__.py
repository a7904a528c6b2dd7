"""One file for each command: turns settings into a plan and runs the operation."""
