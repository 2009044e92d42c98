"""How large a source may be. A hostile tree costs its author nothing: a pack of a few kilobytes unfolds into
billions of files, or into directories without end."""

MAX_DEPTH = 128
"""Directories within directories."""
MAX_ENTRIES = 2_000_000
"""Files, links and directories in one source."""
