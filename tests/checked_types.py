"""Imported before the package, so that all its annotations are checked while tests run, and nowhere else."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# As type checkers have it: an int is a float.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
install_import_hook("mlclip_jax", "checked_types.checked")
