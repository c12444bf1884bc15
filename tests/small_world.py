"""A small world of class texts and images in one embedding space, with a gap between the two."""

import numpy as np

LABELS = ("cat", "dog", "owl", "bus", "kite", "scissors")
WIDTH = 32


def write_embeddings(folder, *, width=WIDTH, seed=0, num_images=60):
    """Writes class_embeddings.npz, images.npz with labels, and labels.csv into a folder."""
    generator = np.random.default_rng(seed)
    classes = 3 * generator.normal(size=(len(LABELS), width)).astype(np.float32)
    labels = (generator.random((num_images, len(LABELS))) < 0.3).astype(np.int8)
    labels[labels.sum(axis=1) == 0, 0] = 1
    gap = 2 * generator.normal(size=width)
    images = labels / labels.sum(axis=1, keepdims=True) @ classes + gap
    images += generator.normal(size=images.shape)
    names = [f"{i:03}.jpg" for i in range(num_images)]
    np.savez(folder / "class_embeddings.npz", embeddings=classes, names=LABELS)
    np.savez(
        folder / "images.npz",
        image_embeddings=images.astype(np.float32),
        filenames=names,
        labels=labels,
        class_names=LABELS,
    )
    rows = ("|".join(np.array(LABELS)[row == 1]) for row in labels)
    table = "".join(f"{name},{row}\n" for name, row in zip(names, rows))
    (folder / "labels.csv").write_text("filename,labels\n" + table)
    return folder


def train_arguments(world, workdir, **changes):
    """The command line of a short run in this world, with some config values changed."""
    values = {
        "texts.class_embeddings": world / "class_embeddings.npz",
        "texts.number": 300,
        "evaluation.embeddings": world / "images.npz",
        "method.hidden": 32,
        "perturbation.radius": 3.0,
        "train.steps": 60,
        "train.batch_size": 8,
        "train.log_every": 10,
        "train.checkpoint_every": 20,
    }
    values |= {name.replace("__", "."): value for name, value in changes.items()}
    settings = [f"--config.{name}={value}" for name, value in values.items()]
    return ["train", "--config=tai:embeddings", f"--workdir={workdir}", *settings]
