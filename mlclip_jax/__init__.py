"""Multi-label image classification with a frozen CLIP and small trainable adapters, in JAX."""

__version__ = "0.1.0"
__all__ = ["InputError", "load", "load_backbone"]


def __getattr__(name):
    # Imported on first use, so that `import mlclip_jax` and `mlclip --help` stay instant.
    if name == "load":
        from mlclip_jax.runs import load

        return load
    if name == "load_backbone":
        from mlclip_jax.backbones import load_backbone

        return load_backbone
    if name == "InputError":
        from mlclip_jax.errors import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
