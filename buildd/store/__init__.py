"""What survives: the database, the event journal, logs and artifacts."""
