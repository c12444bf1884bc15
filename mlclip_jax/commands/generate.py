"""Writes labelled texts to train on: `mlclip generate --config=texts:VARIANT --output=FILE`."""

import json
from pathlib import Path
from urllib.parse import urlsplit

from absl import flags

from mlclip_jax import recipes
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder, read_json, write_json
from mlclip_jax.ranges import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, POSITIVE
from mlclip_jax.wording import counted

USES_JAX = False
MAY_CHANGE = (  # where a file is resumed; of the labels' file, its names tell whether it is the same
    "labels",
    "language_model.address",
    "language_model.timeout_seconds",
    "conversation.attempts",
    "conversation.concurrency",
    "conversation.retries",
    "conversation.retry_seconds",
)
WORST = 10  # labels of the report that are printed: those that texts leave out most


def main(values: flags.FlagValues) -> None:
    """mlclip generate --config=texts:VARIANT --output=FILE [--config.key=value ...]"""
    from mlclip_jax.texts import generate
    from mlclip_jax.texts.label_sets import read_names
    from mlclip_jax.texts.naming import label_finder, read_synonyms

    config, output = values.config, Path(values.output)
    _check(config)
    label_names = read_names(config.labels)
    synonyms = read_synonyms(config.synonyms, label_names) if config.get("synonyms") else None
    find = label_finder(label_names, synonyms, spacy_model=config.get("spacy_model"))
    _hold_config(output, config, label_names)
    if "language_model" in config:
        _write_conversations(output, config, label_names, find)
    elif "captions" in config:
        _write_captions(output, config, label_names, synonyms)
    else:
        _write_templates(output, config, label_names)
    figures = generate.summarise(output, label_names, find, config.get("number", 0))
    write_json(_beside(output, "report"), figures)
    print(_described(output, figures))


def _hold_config(output, config, label_names):
    """Refuses a file that holds texts of another config; else writes this one beside it."""
    from mlclip_jax.texts.generate import is_empty

    if output.is_dir():
        raise InputError(f"cannot write {output}: it is a folder; name a file in it")
    make_folder(output.parent)
    path = _beside(output, "config")
    here = recipes.flat_config(json.loads(config.to_json())) | {"label_names": list(label_names)}
    if not is_empty(output):
        if not path.exists():
            raise InputError(
                f"{output} is there without {path.name}, which says what it holds; name another file"
            )
        there = recipes.flat_config(read_json(path))
        may_change = (*MAY_CHANGE, "number") if there.get("number", 0) < here.get("number", 0) else MAY_CHANGE
        differing = [
            f"{key} {there.get(key)!r:.60}, not {here.get(key)!r:.60}"
            for key in sorted(there.keys() | here.keys())
            if there.get(key) != here.get(key) and key not in may_change
        ]
        if differing:
            raise InputError(
                f"{output} holds texts with {'; '.join(differing)}: give what it has, or another --output"
            )
    write_json(path, here)


def _beside(output, what):
    return Path(f"{output}.{what}.json")


def _write_templates(output, config, label_names):
    from mlclip_jax.texts.files import save_texts
    from mlclip_jax.texts.sources import label_sets
    from mlclip_jax.texts.templates import write_texts

    labels = label_sets(config, config.number, len(label_names), config.seed)
    save_texts(output, write_texts(labels, label_names, config.seed), labels, label_names)


def _write_captions(output, config, label_names, synonyms):
    from mlclip_jax.texts.captions import label_captions, read_captions
    from mlclip_jax.texts.files import save_texts

    captions = read_captions(config.captions, caption_column=config.caption_column)
    kept, labels = label_captions(captions, label_names, synonyms, spacy_model=config.spacy_model)
    save_texts(output, [captions[i] for i in kept], labels, label_names)


def _write_conversations(output, config, label_names, find):
    from mlclip_jax.texts import generate
    from mlclip_jax.texts.conversations import converse
    from mlclip_jax.texts.label_sets import read_size_weights
    from mlclip_jax.texts.language_model import local_model, served_model

    model, how = config.language_model.to_dict(), config.conversation.to_dict()

    def is_about(text, labels):
        return any(label_names[k] in labels for k in next(find([text])))

    how["is_about"] = is_about if how.pop("reject_unnamed") else None

    def answers(combinations):
        if model["address"]:
            with served_model(**model) as ask:
                yield from converse(ask, combinations, **how)
        else:
            sampling = {key: model[key] for key in ("temperature", "max_tokens")}
            yield from converse(local_model(model["model"], **sampling), combinations, **how)

    combinations = generate.draw_combinations(
        config.seed,
        config.number,
        label_names,
        config.max_labels,
        per_combination=config.per_combination,
        size_weights=read_size_weights(config.size_weights, config.max_labels),
    )
    generate.write_answers(output, combinations, answers, model=model["model"])
    if generate.is_empty(output):
        raise InputError(
            f"all of the model's answers were rejected; {generate.rejected_beside(output)} has them and why"
        )


def _described(output, figures):
    """The report for people; see `generate.summarise`."""
    from mlclip_jax.report import markdown_table

    number, rejected = figures["texts"], figures["rejected"]
    lines = [
        f"{output}: {counted(number, 'text')} ({figures['distinct']:,} distinct), "
        f"{figures['words']:.1f} words on average",
        f"  name none of their labels  {_share(figures['names_none'], number)}",
        f"  name only some of them     {_share(figures['names_some'], number)}",
    ]
    if rejected:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.items())
        lines.append(f"  rejected answers           {sum(rejected.values()):,} ({reasons})")
    if figures["missing"]:
        lines.append(
            f"  missing texts              {figures['missing']:,}; the same command asks for them again"
        )
    counts = [
        (own["unnamed"], own["texts"], name) for name, own in figures["labels"].items() if own["unnamed"]
    ]
    worst = sorted(counts, key=lambda own: -own[0] / own[1])[:WORST]
    rows = [[name, f"{texts:,}", _share(unnamed, texts)] for unnamed, texts, name in worst]
    if rows:
        lines += ["", markdown_table(["label", "texts", "without its name"], rows, "lrr")]
    return "\n".join(lines)


def _share(number, total):
    return f"{number:,} ({number / total:.1%})"


def _check(config):
    from mlclip_jax.texts.label_sets import read_size_weights

    conditions = {
        "seed": AT_LEAST_0,
        "number": AT_LEAST_1,
        "max_labels": AT_LEAST_1,
        "per_combination": AT_LEAST_1,
        "language_model.address": (_is_address, "empty, or such as http://localhost:8000/v1"),
        "language_model.temperature": NOT_NEGATIVE,
        "language_model.max_tokens": AT_LEAST_0,
        "language_model.timeout_seconds": POSITIVE,
        "conversation.instruction": (lambda number: number in (1, 2), "1 or 2"),
        **{f"conversation.{name}": AT_LEAST_1 for name in ("max_words", "attempts", "concurrency")},
        "conversation.retries": AT_LEAST_0,
        "conversation.retry_seconds": NOT_NEGATIVE,
    }
    recipes.check(config, recipes.schema(config), ("labels", "captions", "language_model.model"), conditions)
    if "size_weights" in config:
        read_size_weights(config.size_weights, config.max_labels)


def _is_address(text):
    """Whether it is none, or a server can be there."""
    try:
        parts = urlsplit(text)
        return not text or (parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0)
    except ValueError:
        return False


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    recipes.define_config(values, argv)
    flags.DEFINE_string("output", None, "file to write, of JSON Lines", flag_values=values)
    flags.mark_flag_as_required("output", values)
