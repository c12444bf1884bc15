"""`python -m mlclip_jax` is `mlclip`."""

import sys

from mlclip_jax.cli import main

sys.exit(main())
