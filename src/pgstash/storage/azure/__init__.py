"""A container of Azure Blob Storage."""
