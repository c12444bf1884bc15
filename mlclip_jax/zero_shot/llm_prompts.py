"""Prompts that a language model writes, for Top-all: captions of images that contain the classes.

Source: MMM-CLIP, "Multi-method to Prompt CLIP", method 4: Qwen-14B is asked "Please caption an image that
contains ...", its answers take the place of Top-all's texts, and other details stay. There is no code; how
the names of several classes are joined, and what becomes of long answers, are decided here.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from mlclip_jax.errors import InputError
from mlclip_jax.texts.conversations import Combination, converse
from mlclip_jax.texts.files import read_objects
from mlclip_jax.texts.generate import is_empty, rejected_beside, write_answers
from mlclip_jax.texts.language_model import local_model, served_model
from mlclip_jax.wording import counted, listed
from mlclip_jax.zero_shot.prompts import Write

TITLE = "Top-all with prompts of a language model"

INSTRUCTION = "Please caption an image that contains {}."


def caption_writer(
    answers: str | os.PathLike,
    *,
    model: str = "",
    address: str = "",
    temperature: float = 0.7,
    max_tokens: int = 100,
    timeout_seconds: float = 60.0,
    max_words: int = 50,
    concurrency: int = 8,
    retries: int = 6,
    retry_seconds: float = 1.0,
) -> Write:
    """What writes prompts by asking a language model, for both stages of `top_all`.

        write = caption_writer("captions.jsonl", model="qwen2.5:14b", address="http://localhost:11434/v1")
        top_all(images, backbone.encode_texts, names, write_class=write, write=write)

    Each set of classes is asked for once, whatever the order of its classes, which are told in that of the
    alphabet. Answers are kept in a file, one line of JSON for each, and never asked for again: with all that
    is needed in it, no model is.

    Args:
      answers: the file, of JSON Lines, as `mlclip generate` writes them.
      model: its name at the server; or, without an address, a folder or hub name for this process.
      address: of a server that speaks as OpenAI's does, up to `/v1`.
      temperature: of sampling.
      max_tokens: of an answer; 0: as the model has it.
      timeout_seconds: after which an answer of a server does not come.
      max_words: of a caption; the model is asked to make a longer one shorter, for contexts are short.
      concurrency: conversations at once.
      retries: how many times an answer that did not come is asked for again.
      retry_seconds: before the first of them.

    Returns:
      A function of combinations that gives their prompts. It raises InputError where a prompt is missing and
      there is no model, the model gives no answer, or the file cannot be used or is another model's.
    """
    path = Path(answers)

    def ask(combinations):
        answers_of = functools.partial(
            converse,
            combinations=combinations,
            instruction=INSTRUCTION,
            max_words=max_words,
            concurrency=concurrency,
            retries=retries,
            retry_seconds=retry_seconds,
        )
        sampling = {"temperature": temperature, "max_tokens": max_tokens}
        if address:
            with served_model(model, address, timeout_seconds=timeout_seconds, **sampling) as model_there:
                yield from answers_of(model_there)
        else:
            yield from answers_of(local_model(model, **sampling))

    def write(combinations: Sequence[Sequence[str]]) -> list[str]:
        wanted = [tuple(sorted(names)) for names in combinations]
        known = _read_answers(path, model)
        missing = [names for names in dict.fromkeys(wanted) if names not in known]
        if missing:
            if not model:
                raise InputError(_no_model(path, missing))
            write_answers(path, _combinations(path, missing), ask, model=model)
            known = _read_answers(path, model)
        left = [names for names in missing if names not in known]
        if left:
            raise InputError(
                f"{model} wrote no usable caption of {counted(len(left), 'combination')} of classes, the "
                f"first {', '.join(left[0])!r:.80}; {rejected_beside(path)} says why; start the same command "
                "again, or choose another model"
            )
        return [known[names] for names in wanted]

    return write


def _no_model(path, missing):
    sets = listed((", ".join(names) for names in missing), most=1)
    return (
        f"{path} lacks the captions of {counted(len(missing), 'combination')} of classes ({sets:.60}), and "
        "no language model is named to write them; start one, such as `ollama serve` after `ollama pull "
        "qwen2.5:14b`, and give its name and address, http://localhost:11434/v1"
    )


def _read_answers(path, model):
    """The caption of each set of classes in a file."""
    return {labels: text for _, labels, text in _answers(path, model)}


def _answers(path, model=""):
    """Number, classes and caption of each line of a file, none if it is not there."""
    for number, line in [] if is_empty(path) else read_objects(path):
        place, labels, text = (line.get(key) for key in ("combination", "labels", "text"))
        named = isinstance(labels, list) and all(isinstance(name, str) for name in labels)
        if not (named and type(place) is int and isinstance(text, str)):
            raise InputError(
                f"{path}, line {number} is no caption of a combination of classes: {line!r:.80}; remove it, "
                "or choose another file"
            )
        if model and line.get("model") != model:
            raise InputError(
                f"{path} holds captions of {line.get('model')!r}, not of {model!r}; choose another file, or "
                "that model"
            )
        yield place, tuple(labels), text


def _combinations(path, missing):
    """Those of a file, by their numbers in it, and behind them those that it lacks."""
    held = {place: labels for place, labels, _ in _answers(path)}
    first = max(held, default=-1) + 1
    # A number that no line has is of a combination whose answers were rejected: nothing is asked for it here.
    before = [Combination(i, held.get(i, ()), int(i in held), {}) for i in range(first)]
    return before + [Combination(first + i, names, 1, {}) for i, names in enumerate(missing)]
