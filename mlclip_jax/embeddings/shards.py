"""Embeddings as a folder of shards: written whole or not at all, and resumed where it was stopped."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Int, Int8
from pyarrow import parquet

from mlclip_jax import __version__
from mlclip_jax.choices import SHARD_ROWS
from mlclip_jax.data.pipeline import Skipped
from mlclip_jax.embeddings.rows import refused_parquet
from mlclip_jax.embeddings.store import LABELS, MANIFEST, METADATA, VERSION, read_manifest, shard_path
from mlclip_jax.errors import InputError
from mlclip_jax.files import locked, make_folder, replacing, write_json
from mlclip_jax.progress import note, progress_bar
from mlclip_jax.provenance import Origin

SHARD_BYTES = 1 << 28  # of a shard, at most, as `SHARD_ROWS`
SKIPPED = "skipped.jsonl"


@dataclasses.dataclass(frozen=True)
class Work:
    """What is to be embedded into a folder.

    Attributes:
      widths: how many numbers of each feature an example has, by the feature's name.
      origin: the backbone, and how it computes.
      names: of the N examples.
      digest: what else tells which they are.
      dtype: in the files.
      named: what the column of names is called.
      title, folder, remarks: of the source, for people.
      labels: int8 (N, K), where there are `label_names`.
      label_names: K names.
      captions: N sentences about the images, or None.
    """

    widths: dict[str, int]
    origin: Origin
    names: Sequence[str]
    digest: str
    dtype: str
    named: str = "image_path"
    title: str = ""
    folder: str | None = None
    remarks: Sequence[str] = ()
    labels: Int8[np.ndarray, "N K"] | None = None
    label_names: Sequence[str] = ()
    captions: Sequence[str] | None = None

    @property
    def unit(self) -> str:
        """What is embedded, in words."""
        return "images" if self.named == "image_path" else "texts"

    def describe(self) -> dict:
        """The beginning of a manifest."""
        return {
            "version": VERSION,
            "features": list(self.widths),
            "origin": self.origin,
            "source": self.title,
            "folder": self.folder,
            "digest": self.digest,
            "examples": len(self.names),
            "label_names": list(self.label_names),
            "remarks": list(self.remarks),
            "dtype": self.dtype,
        }


def write_shards(
    folder: str | os.PathLike,
    work: Work,
    batch_size: int,
    encode: Callable[[Int[np.ndarray, " N"]], Generator[tuple[Int[np.ndarray, " B"], dict]]],
    skipped: Skipped,
    *,
    shard_rows: int = SHARD_ROWS,
) -> None:
    """Writes the shards that are missing, and the manifest once none is.

    Args:
      folder: to write; it may hold the beginning of the same work, and no other.
      work: what is to be embedded.
      batch_size: examples that `encode` yields at once, which must not fall into two shards.
      encode: a generator: `encode(indices)` yields indices, -1 for none, and a dict of features by name, in
        the order of the indices.
      skipped: with the names of all examples.
      shard_rows: examples of a shard, at most.

    Raises:
      InputError: the folder holds other work, or cannot be written; or a value is too large for the `dtype`.
    """
    folder, number = Path(folder), len(work.names)
    row_bytes = sum(work.widths.values()) * jnp.dtype(work.dtype).itemsize
    rows = max(1, min(shard_rows, SHARD_BYTES // row_bytes) // batch_size) * batch_size
    make_folder(folder)
    process, num_processes = jax.process_index(), jax.process_count()
    with locked(folder, process):
        manifest = _begin(folder, work.describe() | {"shard_rows": rows})
        rows = manifest["shard_rows"]
        shards = range(-(-number // rows))
        if manifest["complete"]:
            note(f"{folder}: all {number} were embedded before")
            for shard in shards:
                skipped.add(_read_skipped(folder, shard))
            return
        if rows % batch_size:
            raise InputError(
                f"{folder} was begun with shards of {rows}, which batches of {batch_size} do not fill; "
                "give the --batch_size of before"
            )
        own = {s: range(s * rows, min((s + 1) * rows, number)) for s in shards[process::num_processes]}
        done = {shard for shard in own if shard_path(folder, METADATA, shard).is_file()}
        for shard in done:
            skipped.add(_read_skipped(folder, shard))
        spans = [span for shard, span in own.items() if shard not in done]
        total = sum(map(len, own.values()))
        with (
            ThreadPoolExecutor(1) as writer,
            progress_bar(total, "embedding", work.unit, done=total - sum(map(len, spans))) as bar,
        ):
            if done and spans:
                note(f"{folder}: {bar.n} of {total} {work.unit} were embedded before")
            if spans:
                indices = np.concatenate([np.arange(span.start, span.stop) for span in spans])
                with contextlib.closing(encode(indices)) as outputs_of:
                    _fill_shards(folder, work, rows, spans, outputs_of, skipped, writer, bar)
        _finish(folder, work.describe() | {"shard_rows": rows}, shards, skipped)


def _fill_shards(folder, work, rows, spans, outputs_of, skipped, writer, bar):
    """Fills one shard after the other, and writes each while the next is computed."""
    dtype, writing = jnp.dtype(work.dtype), None
    for span in spans:
        seen, kept, parts = 0, [], {}
        while seen < len(span):
            indices, outputs = next(outputs_of)
            here = min(len(indices), len(span) - seen)
            seen += here
            there = indices >= 0
            first = sum(map(len, kept))
            kept.append(indices[there])
            for name, output in outputs.items():
                if name not in parts:
                    parts[name] = np.empty((min(rows, len(span)), *output.shape[1:]), dtype)
                with np.errstate(over="ignore"):  # said below
                    parts[name][first : first + len(kept[-1])] = output[there]
            bar.update(here)
        kept = np.concatenate(kept)
        parts = {name: part[: len(kept)] for name, part in parts.items()}
        for part in parts.values():
            if not np.isfinite(part.astype(np.float32)).all():
                raise InputError(f"some values are too large for {dtype}; give --storage=bfloat16 or float32")
        own = {i: skipped.reasons[i] for i in span if i in skipped.reasons}
        if writing is not None:
            writing.result()
        writing = writer.submit(_write_shard, folder, work, span.start // rows, kept, parts, own)
    if writing is not None:
        writing.result()


def _write_shard(folder, work, shard, kept, parts, skipped):
    """Writes one shard; the file of metadata comes last, and says that the others are there."""
    arrays = dict(parts)
    if work.label_names:
        arrays[LABELS] = work.labels[kept]
    for kind, array in arrays.items():
        with replacing(shard_path(folder, kind, shard)) as temporary, temporary.open("wb") as file:
            np.save(file, array.view(np.uint16) if array.dtype == jnp.bfloat16 else array)
    columns = {work.named: pa.array([work.names[i] for i in kept], pa.large_string())}
    if work.captions is not None:
        columns["caption"] = pa.array([work.captions[i] for i in kept], pa.large_string())
    table = pa.table(columns).replace_schema_metadata({"skipped": json.dumps(skipped)})
    with replacing(shard_path(folder, METADATA, shard)) as temporary:
        parquet.write_table(table, temporary)


def _begin(folder, description):
    """Notes what is to be done in a folder, if it is empty; returns its manifest.

    Raises:
      InputError: the folder holds other work.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        others = any(not path.name.startswith(".") for path in folder.iterdir())
        manifest = read_manifest(folder)  # which another process may just have written
        if manifest is None and others:
            raise InputError(f"{folder} holds other files; name an empty folder")
    if manifest is not None:
        same = description.keys() - {"source", "remarks", "shard_rows"}
        was, now = _comparable(manifest), _comparable(description)
        differing = [key for key in description if key in same and now[key] != was.get(key)]
        if differing:
            key = differing[0]
            there, here = (json.dumps(of.get(key))[:200] for of in (was, now))
            raise InputError(
                f"{folder} holds embeddings with another {key}: {there}, not {here}; "
                "give another --output, or remove it"
            )
        return manifest
    manifest = description | {"complete": False}
    _write_manifest(folder, manifest)
    return manifest


def _comparable(manifest):
    """A manifest as JSON has it, without what its backbone is called: the hash tells which it is."""
    origin = manifest["origin"]
    return manifest | {"origin": origin.replace(name="", revision="").to_dict()}


def _finish(folder, description, shards, skipped):
    """Writes the manifest, once all shards are there, and the report of what was skipped."""
    metadata = [shard_path(folder, METADATA, shard) for shard in shards]
    if not all(path.is_file() for path in metadata):
        return  # another process is still at it
    skipped = Skipped(skipped.names, skipped.path, skipped.max_fraction)  # of all processes
    for shard in shards:
        skipped.add(_read_skipped(folder, shard))
    skipped.write()
    for left in folder.glob("*/.*.tmp"):  # by processes that were killed; nobody writes shards any more
        left.unlink(missing_ok=True)
    with refused_parquet(folder):
        numbers = [parquet.read_metadata(path).num_rows for path in metadata]
    _write_manifest(
        folder,
        description
        | {
            "complete": True,
            "embeddings": sum(numbers),
            "skipped": len(skipped.reasons),
            "made_by": f"mlclip-jax {__version__}",
        },
    )


def _write_manifest(folder, manifest):
    write_json(folder / MANIFEST, manifest | {"origin": manifest["origin"].to_dict()})


def _read_skipped(folder, shard):
    """Pairs of index and reason of the images that a shard left out."""
    with refused_parquet(shard_path(folder, METADATA, shard)):
        stored = parquet.read_schema(shard_path(folder, METADATA, shard)).metadata[b"skipped"]
        return [(int(index), reason) for index, reason in json.loads(stored).items()]
