"""The source database: its session, its client tools and pg_dump."""
