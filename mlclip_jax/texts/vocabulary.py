"""A broad vocabulary: what texts have in common is the mean of many of them, not of the labels at hand."""

import functools
import importlib.resources


@functools.cache
def everyday_nouns() -> tuple[str, ...]:
    """2,225 nouns for concrete things, in alphabetical order; `data/README.md` says how they were chosen.

    The mean direction of their embeddings, by the templates of the labels, is what `zero_shot.centred` takes
    from class embeddings.

    Example:
      >>> vocabulary = embed_names(backbone, everyday_nouns(), "imagenet")
      >>> classes = embed_names(backbone, label_names, "imagenet")
      >>> scores = cosine_scores(images, centred(classes.vectors, mean_direction(vocabulary.vectors)))
    """
    file = importlib.resources.files("mlclip_jax.texts") / "data/vocabulary.txt"
    return tuple(file.read_text(encoding="utf-8").splitlines())
