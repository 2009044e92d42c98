"""A build daemon: clones git repositories, plans, builds in sandboxes, records and cleans up."""

__version__ = "0.1.0"
