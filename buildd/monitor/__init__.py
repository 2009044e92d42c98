"""Watching the machine and the daemon itself."""
