"""Bare programs that the daemon and its client are measured against. They import nothing of buildd."""
