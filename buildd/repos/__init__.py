"""Repositories: cloning them in child processes, keeping the clones, reading and checking out their trees."""
