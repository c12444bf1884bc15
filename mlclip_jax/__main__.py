"""`python -m mlclip_jax` is `mlclip`."""

from mlclip_jax.cli import run

run()
