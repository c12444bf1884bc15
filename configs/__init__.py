"""Recipes: `--config=NAME` or `--config=NAME:variant`, and `--config.key=value` on top."""
