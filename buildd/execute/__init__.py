"""One build: its scope, its phases in a sandbox, its output."""
