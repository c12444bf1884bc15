"""Frozen encoders: images and texts to embeddings in one joint space."""

import importlib
import os
from typing import Any

__all__ = [
    "ENCODING",
    "Backbone",
    "Encoded",
    "default_dtype",
    "load_backbone",
    "load_backbone_of",
    "read_encoding",
]

_BACKBONE = ("Backbone", "Encoded")  # in `backbone.py`; the others are in `loading.py`

# Whatever here imports transformers: it would advise to install torch, which nothing needs.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a module beside these does not bring JAX and the towers with it.
    if name in __all__:
        module = "backbone" if name in _BACKBONE else "loading"
        return getattr(importlib.import_module(f"mlclip_jax.backbones.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
