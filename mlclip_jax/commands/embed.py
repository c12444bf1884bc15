"""Embeds images or texts once, and stores what comes out: `mlclip embed`."""

import shutil
from pathlib import Path

from absl import flags

from mlclip_jax.choices import SHARD_ROWS, STORAGE
from mlclip_jax.commands.flags import define_encoding_flags, define_process_flags, define_reading_flags
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.sources import read_lines
from mlclip_jax.errors import InputError
from mlclip_jax.files import make_folder
from mlclip_jax.texts.templates import TEMPLATE_SETS, read_templates
from mlclip_jax.wording import counted

INDEPENDENT_PROCESSES = True  # each writes shards of its own
OTHER_FILES = {".csv", ".h5", ".json", ".jsonl", ".npy", ".parquet", ".pkl", ".pt", ".txt"}


def main(values: flags.FlagValues) -> None:
    """mlclip embed --backbone=NAME (--images=FOLDER_OR_DATASET | --texts=FILE) --output=FOLDER_OR_NPZ"""
    import jax

    from mlclip_jax.backbones import ENCODING, load_backbone, read_encoding
    from mlclip_jax.embeddings.embed import embed_images, embed_texts
    from mlclip_jax.embeddings.shards import SKIPPED
    from mlclip_jax.embeddings.store import read_embeddings, read_manifest, write_embeddings

    if (values.images is None) == (values.texts is None):
        raise InputError("give either --images=FOLDER or --texts=FILE")
    if values.template is not None:
        read_templates(values.template)
    output = Path(values.output)
    if output.suffix == ".npz" and output.is_dir():
        raise InputError(f"cannot write {output}: it is a folder")
    if output.suffix in OTHER_FILES and not output.is_dir():
        raise InputError(f"cannot write {output}: give a folder, or a file whose name ends in .npz")
    make_folder(output.parent)
    source = open_images(values.images) if values.images is not None else None
    lines = read_lines(values.texts) if source is None else []
    encoding = read_encoding({name: values[name].value for name in ENCODING})
    backbone = load_backbone(values.backbone, revision=values.revision, **encoding)
    # An .npz is a folder first, so that it too resumes where it was stopped.
    folder = output.with_name(f"{output.name}.partial") if output.suffix == ".npz" else output
    finished = output.with_name(f".{output.name}.finished")
    shutil.rmtree(finished, ignore_errors=True)
    if folder != output and jax.process_count() > 1:
        raise InputError(f"several processes cannot write {output} together; give a folder")
    if source is not None:
        embed_images(
            backbone,
            source,
            folder,
            features=values.features or ["image"],
            storage=values.storage,
            batch_size=values.batch_size,
            max_skipped=values.max_skipped,
            num_workers=values.num_workers,
            shard_rows=values.shard_rows,
        )
    else:
        embed_texts(
            backbone,
            lines,
            folder,
            features=values.features or ["text"],
            templates=values.template or "",
            storage=values.storage,
        )
    if not (read_manifest(folder) or {}).get("complete"):
        print(f"{folder}: this process has done its share")
        return
    embeddings = read_embeddings(folder)
    shapes = {name: "x".join(map(str, x.shape[1:])) for name, x in embeddings.features.items()}
    described = ", ".join(f"{name} ({shape})" for name, shape in shapes.items())
    if folder != output:
        write_embeddings(output, embeddings)
        if (folder / SKIPPED).is_file():
            (folder / SKIPPED).replace(output.with_name(f"{output.name}.{SKIPPED}"))
        folder.rename(finished)  # at once: a folder that is half removed could not be resumed
        shutil.rmtree(finished)
    print(f"{counted(len(embeddings), 'embedding')} in {output}: {described}")


def define_flags(values: flags.FlagValues, _: list[str]) -> None:
    flags.DEFINE_string("backbone", None, "folder or hub name of the encoder", flag_values=values)
    flags.DEFINE_string("revision", None, "commit, branch or tag on the hub", flag_values=values)
    define_encoding_flags(values)
    flags.DEFINE_string(
        "images", None, "folder of images, or a dataset such as voc:FOLDER,split=test", flag_values=values
    )
    flags.DEFINE_list(
        "features",
        None,
        "of image (default), image_local and, of images with captions, text, text_local, pair; of texts, of "
        "text (default) and text_local",
        flag_values=values,
    )
    flags.DEFINE_string("texts", None, "text file, one text or name per line", flag_values=values)
    flags.DEFINE_string(
        "template",
        None,
        'what to put each name into: "a photo of {labels}."; or, averaged, a file with a template a line, or '
        f"one of {', '.join(TEMPLATE_SETS)}",
        flag_values=values,
    )
    flags.DEFINE_alias("templates", "template", flag_values=values)
    flags.DEFINE_string("output", None, "folder to write, or .npz file", flag_values=values)
    flags.DEFINE_enum("storage", "float32", STORAGE, "of the numbers in the files", flag_values=values)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "images encoded at once; default: 32 on CPUs, 256 for each accelerator",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "shard_rows", SHARD_ROWS, "images in one file, at most", lower_bound=1, flag_values=values
    )
    define_reading_flags(values)
    define_process_flags(values)
    flags.mark_flags_as_required(["backbone", "output"], values)
