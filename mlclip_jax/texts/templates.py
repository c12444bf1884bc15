"""Training texts from templates: labels in, English sentences out.

Source of the idea: TaI-Adapter, section 4.3.1, prompt-based text generation ("there are {} in the photo.",
the one template that it states).
"""

import functools
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int8

from mlclip_jax.data.sources import read_lines
from mlclip_jax.errors import InputError
from mlclip_jax.options import nearest
from mlclip_jax.streams import Stream
from mlclip_jax.texts.shipped import shipped_lines

TEMPLATES = (
    "a photo of {labels}.",
    "a picture of {labels}.",
    "an image of {labels}.",
    "a photograph showing {labels}.",
    "a close-up of {labels}.",
    "a scene with {labels}.",
    "a snapshot of {labels}.",
    "there {is} {labels} in the photo.",
    "there {is} {labels} in this picture.",
    "here {is} {labels}.",
    "this is a photo of {labels}.",
    "a photo with {labels} in it.",
    "a blurry photo of {labels}.",
    "a cropped photo of {labels}.",
    "a photo of {labels} on a plain background.",
    "a photo of {labels} outdoors.",
    "a photo of {labels} indoors.",
)


# Nouns without a plural, hence without an article: what label sets like COCO's and NUS-WIDE's hold of them.
MASS_NOUNS = frozenset(
    """asparagus beach-sand bread broccoli butter cheese clothing coffee coral corn dirt fire fog food frost
    fruit fur furniture garbage grass gravel hair hay ice jewelry juice luggage meat milk mud nighttime paper
    pasta rain rice sand seafood sky smoke snow sugar traffic water wood wool""".split()
)
# Singular nouns that inflect takes for plurals.
SINGULAR_NOUNS = frozenset("autobus bus chess fish gas glass lens omnibus sheep tennis".split())


CLASS_TEMPLATE = "a photo of {labels}."  # the prompt of plain zero-shot classification


def imagenet_templates() -> tuple[str, ...]:
    """The 80 templates by which CLIP classifies ImageNet, "a bad photo of a {}." and so on, in order."""
    return shipped_lines("imagenet_templates.txt")


def tagclip_templates() -> tuple[str, ...]:
    """The 85 of TagCLIP: CLIP's 80, and five of the kind of "there is a {} in the scene."."""
    return (*imagenet_templates(), *shipped_lines("tagclip_templates.txt"))


TEMPLATE_SETS = {
    "templates": lambda: TEMPLATES,
    "imagenet": imagenet_templates,
    "tagclip": tagclip_templates,
}


def read_templates(given: str) -> tuple[str, ...]:
    """Templates to put names into, each of which `fill` can fill.

    Args:
      given: a name of `TEMPLATE_SETS`; a text file, a template a line; or templates themselves, one or, as
        `record_templates` writes them, one a line.

    Raises:
      InputError: there is no such set or file, or a template has not exactly one place for the name.
    """
    if "{" in given:
        templates = given.splitlines()
    elif given in TEMPLATE_SETS:
        return tuple(TEMPLATE_SETS[given]())
    elif Path(given).is_file():
        templates = read_lines(given)
    elif " " in given.strip():
        templates = [given]
    else:
        raise InputError(
            f"there is no set of templates or file {given!r}{nearest(given, TEMPLATE_SETS)}; give one of "
            f"{', '.join(TEMPLATE_SETS)}, a file with a template a line, or a template, {CLASS_TEMPLATE!r}"
        )
    for template in templates:
        check_template(template)
    return tuple(templates)


def record_templates(given: str) -> str:
    """What `read_templates` reads the same from anywhere: the name of a set, or the templates, one a line."""
    return given if given in TEMPLATE_SETS else "\n".join(read_templates(given))


def describe_templates(recorded: str) -> str:
    """What `record_templates` gave, in a line, with the number of templates where there are several."""
    templates = TEMPLATE_SETS[recorded]() if recorded in TEMPLATE_SETS else recorded.splitlines()
    if len(templates) == 1:
        return repr(templates[0])
    name = f"{recorded}, " if recorded in TEMPLATE_SETS else ""
    return f"{name}the mean of {len(templates)} templates, {templates[0]!r} to {templates[-1]!r}"


def write_texts(
    label_sets: Int8[np.ndarray, "N K"],
    label_names: Sequence[str],
    seed: int,
    templates: Sequence[str] = TEMPLATES,
) -> list[str]:
    """One sentence for each set of labels.

    Args:
      label_sets: int8 `(N, K)`, 1 where a set holds a label; no set is empty.
      label_names: K names.
      seed: decides each text's template and the order in which it names its labels.
      templates: what to fill in; see `fill`.

    Returns:
      N strings, such as "there are a dog, an umbrella and skis in the photo."
    """
    generator = np.random.default_rng([seed, Stream.TEXTS])
    texts = []
    for labels in label_sets:
        present = generator.permutation(np.flatnonzero(labels))
        template = templates[int(generator.integers(len(templates)))]
        texts.append(fill(template, [label_names[label] for label in present]))
    return texts


def fill(template: str, labels: Sequence[str]) -> str:
    """Writes labels into a template.

    Args:
      template: a sentence with `{labels}`, and `{is}` where a verb agrees with them; or with `{}`, as other
        programs write it, which takes the names without articles: "a photo of a {}."
      labels: one name or more, in singular or plural; underscores are read as spaces.

    Returns:
      The sentence, with commas and an "and" as in English, and for `{labels}` with articles.
    """
    names = _enumerate([_spaced(label) for label in labels])
    phrases = _enumerate([noun_phrase(label) for label in labels])
    verb = "are" if len(labels) > 1 or _is_plural(labels[0]) else "is"
    return template.format(names, **{"labels": phrases, "is": verb})


def _enumerate(names):
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def check_template(template: str) -> None:
    """Refuses a template that `fill` could not fill, or that has not exactly one place for the labels.

    Raises:
      InputError: it is one of those.
    """
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template)]
        places = sum(field in ("", "0", "labels") for field in fields)
        filled = fill(template, ["dog"]) if places < 2 else ""
    except (ValueError, KeyError, IndexError, AttributeError) as error:
        raise InputError(
            f"the template {template!r} cannot be filled ({error!r}); braces may hold labels, is, or nothing"
        ) from error
    if places > 1:
        raise InputError(f"the template {template!r} has {places} places for the name; leave one")
    if re.search(r"\b(a|an|the) a dog", filled, re.IGNORECASE):
        raise InputError(
            f"the template {template!r} repeats an article: {{labels}} brings its own, {filled!r}"
        )
    if not places:
        raise InputError(f"the template {template!r} has no place for the name: write {{labels}} in it")


@functools.cache
def noun_phrase(name: str) -> str:
    """A label's name with its article, if it takes one: "an umbrella", "scissors", "broccoli"."""
    spaced = _spaced(name)
    return spaced if _is_plural(name) or _head(name) in MASS_NOUNS else inflect_engine().a(spaced)


@functools.cache
def _is_plural(name):
    head = _head(name)
    return head != "" and head not in SINGULAR_NOUNS and bool(inflect_engine().singular_noun(head))


def _head(name):
    # "glass of water" is a glass, "sports ball" a ball.
    words = _spaced(name).lower().split(" of ")[0].split()
    return words[-1] if words else ""


def _spaced(name):
    return name.replace("_", " ").strip()


@functools.cache
def inflect_engine() -> Any:
    """English plurals, articles and lists: `inflect`'s engine."""
    import typeguard  # both only where texts are written, as they are slow to import

    # When inflect is imported, typeguard rewrites all of it to check the types of arguments: two seconds of
    # every start, and ours are strings.
    changed: Any = typeguard
    typechecked, changed.typechecked = typeguard.typechecked, typeguard.typeguard_ignore
    try:
        import inflect
    finally:
        changed.typechecked = typechecked
    return inflect.engine()
