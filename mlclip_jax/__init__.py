"""Multi-label image classification with a frozen CLIP and small trainable adapters, in JAX."""

import importlib
from typing import Any

__version__ = "0.2.0"
__all__ = ["InputError", "load", "load_backbone", "load_zero_shot"]

_NAMES = {
    "InputError": "errors",
    "load": "runs",
    "load_backbone": "backbones",
    "load_zero_shot": "untrained",
}
_MODULES = (
    "backbones",
    "calibration",
    "comparison",
    "losses",
    "methods",
    "metrics",
    "perturbation",
    "recipes",
    "runs",
    "zero_shot",
)


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `import mlclip_jax` and `mlclip --help` stay instant.
    if name in _NAMES:
        return getattr(importlib.import_module(f"mlclip_jax.{_NAMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"mlclip_jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, "__version__"])
