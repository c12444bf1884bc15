"""A broad vocabulary: what texts have in common is the mean of many of them, not of the labels at hand."""

from collections.abc import Sequence

from mlclip_jax.texts.shipped import shipped_lines


def everyday_nouns() -> tuple[str, ...]:
    """2,225 nouns for concrete things, in alphabetical order; `data/README.md` says how they were chosen.

    The mean direction of their embeddings, by the templates of the labels, is what `zero_shot.centred` takes
    from class embeddings.

    Example:
      >>> vocabulary = embed_names(backbone, everyday_nouns(), "imagenet")
      >>> classes = embed_names(backbone, label_names, "imagenet")
      >>> scores = cosine_scores(images, centred(classes.vectors, mean_direction(vocabulary.vectors)))
    """
    return shipped_lines("vocabulary.txt")


def background_words(label_names: Sequence[str] = ()) -> tuple[str, ...]:
    """45 words for what lies around objects, such as ground, wall and sky, but for those that are labels.

    In a softmax over labels, patches of the background give their probability to these, see
    `zero_shot.patch_probabilities`. TagCLIP (AAAI 2024) has 25 of the kind; this list is our own.

    Args:
      label_names: of which a word is left out in singular and plural: NUS-WIDE's labels "clouds" and "water"
        leave out "cloud" and "water".
    """
    labels = {name.replace("_", " ").strip().lower() for name in label_names}
    return tuple(word for word in shipped_lines("background_words.txt") if not {word, f"{word}s"} & labels)
