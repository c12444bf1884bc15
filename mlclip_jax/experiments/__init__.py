"""Whole experiments on the built-in world, from images to a table."""
