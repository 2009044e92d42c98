"""Recipes: what providers find in a revision, as `Package`s."""
