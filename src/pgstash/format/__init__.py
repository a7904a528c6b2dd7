"""Pure values of the stored format: the contract with the backups of every version."""
