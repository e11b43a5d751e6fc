"""The PostgreSQL that the service starts when no database is configured."""
