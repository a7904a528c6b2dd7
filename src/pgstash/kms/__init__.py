"""AWS KMS: keys that encrypt the random passphrases of backups, and never leave the service."""
