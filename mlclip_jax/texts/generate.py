"""Files of generated texts: which labels they are about, how they are resumed, and what they hold."""

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mlclip_jax.errors import InputError
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.streams import Stream
from mlclip_jax.texts.conversations import Answer, Combination
from mlclip_jax.texts.files import line_of, read_objects, read_texts
from mlclip_jax.texts.label_sets import sample_label_sets
from mlclip_jax.wording import counted

BLOCK = 1_000  # combinations that are drawn at once


def draw_combinations(
    seed: int,
    number: int,
    label_names: Sequence[str],
    max_labels: int,
    *,
    per_combination: int = 2,
    size_weights: Sequence[float] = (),
) -> list[Combination]:
    """The labels of each conversation: every label once alone, then drawn sets, see `sample_label_sets`.

    A larger number begins with the same combinations, so that a file of texts can grow: they are drawn in
    blocks, each with a seed of its own.

    Args:
      seed: integer, at least 0.
      number: how many texts there are to be.
      label_names: K names.
      max_labels: of a combination.
      per_combination: how many texts each has; the last may have fewer.
      size_weights: see `sample_label_sets`.
    """
    num_labels, drawn = len(label_names), -(-number // per_combination)
    sets = [np.array([k]) for k in range(num_labels)]
    for block in range(-(-(drawn - num_labels) // BLOCK)):
        labels = sample_label_sets(
            (seed << 32) + block, num_labels + BLOCK, num_labels, max_labels, size_weights=size_weights
        )
        sets += [np.flatnonzero(row) for row in labels[num_labels:]]
    combinations = []
    for i, labels in enumerate(sets[:drawn]):
        order = np.random.default_rng([seed, Stream.TEXTS, i]).permutation(labels)
        size = min(per_combination, number - i * per_combination)
        combinations.append(Combination(i, tuple(label_names[k] for k in order), size, {}))
    return combinations


def write_answers(
    output: str | os.PathLike,
    combinations: Sequence[Combination],
    converse: Callable[[Sequence[Combination]], Generator[Answer]],
    *,
    model: str,
) -> None:
    """Writes the texts of conversations to a file, each as soon as it is there.

    Texts that the file holds are told to the model and not asked for again: a file resumes where a process
    was killed. Answers that were rejected are written to `rejected_beside` it.

    Args:
      output: the file, of JSON Lines.
      combinations: what it is to hold texts of.
      converse: gives answers to combinations of which some texts are known, see `conversations.converse`.
      model: its name, for the file.

    Raises:
      InputError: the file holds other texts, another process writes there, it cannot be written, or the model
        gives no answer.
    """
    output = Path(output)
    if is_empty(output):
        rejected_beside(output).unlink(missing_ok=True)  # of an earlier file
    with _appending(output) as texts, _appending(rejected_beside(output)) as rejected:
        combinations = _with_known_texts(output, combinations)
        total, done = sum(c.size for c in combinations), sum(len(c.known) for c in combinations)
        unfinished = [c for c in combinations if len(c.known) < c.size]
        if done:
            note(f"{output} has {done:,} of {counted(total, 'text')}; resuming")
        if not unfinished:
            return
        with (
            progress_bar(total, "generating", "texts", done) as bar,
            contextlib.closing(converse(unfinished)) as answers,
        ):
            for answer in answers:
                line = {
                    "text": answer.text,
                    "labels": answer.combination.labels,
                    "combination": answer.combination.number,
                    "turn": answer.turn,
                    "model": model,
                }
                if answer.rejected:
                    _append(rejected, line | {"rejected": answer.rejected})
                else:
                    _append(texts, line)
                    bar.update()


def rejected_beside(output: str | os.PathLike) -> Path:
    """The file of the answers that became no text, with the reasons."""
    return Path(f"{output}.rejected.jsonl")


def is_empty(path: Path) -> bool:
    """Whether a file holds nothing, or is not there."""
    return not (path.exists() and path.stat().st_size)


@contextlib.contextmanager
def _appending(path: Path) -> Generator[BinaryIO]:
    """Opens a file of lines for this process alone, without what a killed one did not write to its end."""
    try:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another process writes {path}; wait for it, or name another") from error
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
            yield file
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; make room, or choose another location"
        ) from error


def _append(file, line):
    """Writes a line in one call, so that a process which is killed leaves it whole, or cut off at the end."""
    file.write(line_of(line))
    file.flush()


def _with_known_texts(output, combinations):
    """The combinations with the texts that a file holds."""
    known = [{} for _ in combinations]
    for number, line in read_objects(output):
        i, turn, text = (line.get(key) for key in ("combination", "turn", "text"))
        there = type(i) is int and 0 <= i < len(combinations) and type(turn) is int and isinstance(text, str)
        if not there or line.get("labels") != list(combinations[i].labels):
            raise InputError(
                f"{output}, line {number} is no text that this config asks for: {line!r:.80}; remove it, or "
                "choose another --output"
            )
        known[i][turn] = text
    return [combination._replace(known=own) for combination, own in zip(combinations, known)]


def summarise(
    output: str | os.PathLike,
    label_names: Sequence[str],
    find: Callable[[Iterable[str]], Iterable[list[int]]],
    number: int,
) -> dict[str, Any]:
    """What a file of texts holds, and what was rejected.

    Args:
      output: the file.
      label_names: K names.
      find: gives the indices of the labels that each text names, see `naming.label_finder`.
      number: how many texts there were to be.

    Returns:
      A dict for JSON: `texts`, `distinct` and `missing` ones, `words` (of a text, on average), `names_none`
      and `names_some` (texts that name none of their labels, and only some), `rejected` (answers, by the
      reason), and `labels` (for each, how many `texts` are about it, and in how many it is `unnamed`).
    """
    texts, values = read_texts(output, label_names)
    named = np.zeros(values.shape, bool)
    for row, own in zip(named, find(texts)):
        row[own] = True
    there = values == 1
    unnamed = there & ~named
    none = (unnamed == there).all(axis=1)
    rejected = rejected_beside(output)
    lines = read_objects(rejected) if rejected.exists() else []
    counts = zip(label_names, there.sum(axis=0).tolist(), unnamed.sum(axis=0).tolist())
    return {
        "texts": len(texts),
        "distinct": len(set(texts)),
        "missing": max(number - len(texts), 0),
        "words": float(np.mean([len(text.split()) for text in texts])),
        "names_none": int(none.sum()),
        "names_some": int((unnamed.any(axis=1) & ~none).sum()),
        "rejected": dict(Counter(str(line.get("rejected")) for _, line in lines)),
        "labels": {name: {"texts": count, "unnamed": lacking} for name, count, lacking in counts},
    }
