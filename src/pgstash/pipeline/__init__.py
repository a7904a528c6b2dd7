"""Plain transformations of byte chunks on their way from the dump to the store."""
