"""A bucket of Google Cloud Storage."""
