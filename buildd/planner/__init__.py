"""Decisions without I/O: the order of packages, their keys, what to start next, the states of a run."""
