"""What a server allows, checked before a backup begins."""
