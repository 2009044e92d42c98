"""Publishing: packed forms of what was built."""
