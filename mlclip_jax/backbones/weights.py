"""Weights as safetensors, from a folder or the hub, every one of them accounted for."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlclip_jax.backbones.open_clip_names import repository_of
from mlclip_jax.errors import InputError
from mlclip_jax.files import read_json

# Backbones that come with the package, by name.
BUILT_IN = {"scenes-clip": Path(__file__).parent / "scenes_clip"}

# A nested dict of arrays by name.
Parameters = dict[str, Any]
# Rows: a pattern of keys in a file, where in our tree that goes ("/" between names; several paths where one
# array becomes several of ours), and how it becomes what it is there.
Transform = Callable[[np.ndarray], Any]
KeyTable = list[tuple[str, str | list[str], Transform]]

FLAX = "flax_model.msgpack"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# How an array of the file becomes one of ours, or several. A file may hold any shape under a key: what does
# not fit is a ValueError.
identity = np.asarray
transposed = np.transpose  # torch keeps (out, in), flax (in, out)


def conv(array: np.ndarray) -> np.ndarray:
    """(out, in, height, width) to (height, width, in, out)."""
    return np.transpose(array, (2, 3, 1, 0))


def scalar(array: np.ndarray) -> np.ndarray:
    """A number, of shape () or (1,), as one of shape ()."""
    return np.reshape(array, ())


def split_three(array: np.ndarray) -> list[np.ndarray]:
    """What is stacked along the first dimension: query, key and value."""
    if len(array) % 3:
        raise ValueError("its first dimension is no multiple of 3")
    return np.split(array, 3)


def split_three_transposed(array: np.ndarray) -> list[np.ndarray]:
    """Stacked (3 out, in) to three of (in, out)."""
    return [transposed(part) for part in split_three(array)]


def norm_rows(key: str, target: str) -> KeyTable:
    """Key-table rows of a layer norm; keys are patterns."""
    return [(rf"{key}\.weight", f"{target}/scale", identity), (rf"{key}\.bias", f"{target}/bias", identity)]


def linear_rows(key: str, target: str) -> KeyTable:
    """Key-table rows of a linear layer with a bias."""
    return [
        (rf"{key}\.weight", f"{target}/kernel", transposed),
        (rf"{key}\.bias", f"{target}/bias", identity),
    ]


def stacked_attention_rows(weight_key: str, bias_key: str, target: str) -> KeyTable:
    """Key-table rows of an attention's query, key and value where a file stacks them in one array."""
    paths = [f"{target}/{name}" for name in ("query", "key", "value")]
    return [
        (weight_key, [f"{path}/kernel" for path in paths], split_three_transposed),
        (bias_key, [f"{path}/bias" for path in paths], split_three),
    ]


# And back, for what is written.
INVERSE: dict[Transform, Transform] = {
    identity: identity,
    scalar: identity,
    transposed: transposed,
    conv: lambda array: np.transpose(array, (3, 2, 0, 1)),
}


class Checkpoint(NamedTuple):
    """Where a backbone's files are.

    Attributes:
      name: what it was asked for by: a folder, the name of a repository on the hub, or one in `BUILT_IN`.
      folder: where its JSON files lie; its weights too, once `find_weights` has returned.
      revision: the commit hash of the hub's repository; "" for a folder.
    """

    name: str
    folder: Path
    revision: str


def find_checkpoint(name_or_folder: str | os.PathLike, revision: str | None = None) -> Checkpoint:
    """The `Checkpoint` of this name. Of a repository on the hub, the JSON files are downloaded.

    Raises:
      InputError: there is neither such a folder nor such a repository and revision within reach.
    """
    name = str(name_or_folder)
    path = BUILT_IN.get(name, Path(name))
    if path.is_dir():
        if revision is not None:
            raise InputError(f"{name} is a folder here, and has no revision {revision!r}; leave that out")
        return Checkpoint(name, path, "")
    if path.is_file():
        what = "a pickle, which is never read" if path.suffix in PICKLES else "a file"
        raise InputError(f"{name} is {what}; give the folder that holds safetensors weights and their config")
    if path.is_absolute() or name.startswith((".", "~")):
        raise InputError(f"no such folder of a backbone: {name}")
    name = repository_of(name)
    snapshot = _download(name, revision, ["*.json", "merges.txt"])
    return Checkpoint(name, snapshot, snapshot.name)


def find_weights(checkpoint: Checkpoint, stem: str) -> list[Path]:
    """The safetensors files of a model, downloaded from the hub if need be.

    Args:
      checkpoint: a `Checkpoint`.
      stem: of the file's name: "model" for `model.safetensors`, or the shards that
        `model.safetensors.index.json` lists.

    Returns:
      List of paths; empty where the checkpoint has no such model.

    Raises:
      InputError: a shard is missing, or the index is damaged.
    """
    folder = checkpoint.folder
    if checkpoint.revision:
        # By name, so that neither a pickle nor another model beside it is downloaded.
        _download(checkpoint.name, checkpoint.revision, [f"{stem}.safetensors", f"{stem}-*-of-*.safetensors"])
    whole, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return _flax_weights(checkpoint) if stem == "model" else []
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise InputError(f"{index} holds no weight_map from keys to files beside it")
    shards = [folder / name for name in sorted(set(weight_map.values()))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing or not shards:
        raise InputError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards that {index.name} lists: "
            f"{', '.join(missing) or 'it lists none'}; fetch them again"
        )
    return shards


def _flax_weights(checkpoint: Checkpoint) -> list[Path]:
    """The file in which transformers keeps Flax's weights, where there are no others."""
    if checkpoint.revision:
        _download(checkpoint.name, checkpoint.revision, [FLAX])
    path = checkpoint.folder / FLAX
    return [path] if path.is_file() else []


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object from a checkpoint's file.

    Raises:
      InputError: the file is missing or no JSON object.
    """
    if not Path(path).exists():
        raise InputError(f"{path} is missing: a backbone's folder must hold it")
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} where a JSON object was expected")
    return content


def load_parameters(
    paths: Sequence[str | os.PathLike],
    table: KeyTable,
    abstract: Parameters,
    ignored: Iterable[str] = (),
    optional: Mapping[str, float] | None = None,
) -> Parameters:
    """Reads safetensors files into a tree of parameters.

    Args:
      paths: the file, or the shards.
      table: rows (pattern, path in our tree, transform). A pattern is matched in full against a key of the
        file; the path may refer to its groups (`\\1`) and is split at "/". A transform that gives several
        arrays has a list of paths.
      abstract: nested dict of `jax.ShapeDtypeStruct`, the parameters to be filled.
      ignored: patterns of keys that carry no parameter.
      optional: values of parameters that the files may lack, by their paths.

    Returns:
      A nested dict like `abstract`, of NumPy arrays in its dtypes.

    Raises:
      InputError: a file cannot be read, one of its keys has no place or comes twice, a parameter stays
        unfilled, or a shape differs; the names are listed.
    """
    expected = flatten_dict(abstract, sep="/")
    filled, unused = {}, []
    for path, key, array in _arrays(paths, ignored):
        targets, transform = _look_up(table, key)
        if not targets or not expected.keys() >= set(targets):
            unused.append(key)
            continue
        if array.dtype.kind in "biu":
            raise InputError(f"{path}: {key} is {array.dtype}; only floating-point weights are read")
        try:
            parts = transform(array)
        except (ValueError, IndexError, TypeError) as error:  # too many dimensions, or too few
            raise InputError(f"{path}: {key} has shape {array.shape}, which does not fit: {error}") from error
        for target, part in zip(targets, parts if len(targets) > 1 else [parts]):
            if part.shape != expected[target].shape:
                raise InputError(
                    f"{path}: {key} has shape {array.shape}, which becomes {part.shape} where the config "
                    f"asks for {expected[target].shape}"
                )
            if target in filled:
                raise InputError(f"{path}: {key} comes twice in these files, or under two names")
            filled[target] = part.astype(expected[target].dtype, copy=False)
    for target in (optional or {}).keys() & (expected.keys() - filled.keys()):
        filled[target] = np.full(expected[target].shape, (optional or {})[target], expected[target].dtype)
    unfilled = sorted(expected.keys() - filled.keys())
    if unused or unfilled:
        raise InputError(
            f"{paths[0]} does not fit its config: {_listed(unused)} unused, {_listed(unfilled)} unfilled"
        )
    return unflatten_dict(filled, sep="/")


def save_parameters(path: str | os.PathLike, table: KeyTable, parameters: Parameters) -> None:
    """Writes a tree of parameters as the safetensors file from which `load_parameters` reads it.

    Args:
      path: the file to write.
      table: as in `load_parameters`; the only groups in its patterns are numbers, `(\\d+)`.
      parameters: nested dict of arrays, one for each path that the table leads to.
    """
    number = r"(\d+)"
    backwards: KeyTable = []
    for key, target, transform in table:
        assert isinstance(target, str)  # what is several arrays of ours has no inverse
        pattern = re.escape(target).replace(r"\\1", number)
        backwards.append((pattern, key.replace(number, r"\1").replace(r"\.", "."), transform))
    arrays = {}
    for target, array in flatten_dict(parameters, sep="/").items():
        (key,), transform = _look_up(backwards, target)
        # safetensors stores memory as it lies, whatever the strides.
        arrays[key] = np.array(INVERSE[transform](np.asarray(array)), order="C")
    # Not by safetensors itself, which would let only the owner read the file.
    Path(path).write_bytes(save(arrays, metadata={"format": "pt"}))


def _download(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of a hub repository's snapshot, with its files of these patterns."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{name} has no revision {revision!r} on the hub; give a commit, branch or tag of it"
        ) from error
    except errors.RepositoryNotFoundError as error:  # gated ones too
        reason = "the hub has no such repository, or not for you (`hf auth login`)"
        raise InputError(_no_download(name, reason)) from error
    except errors.LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached, and the cache does not hold it; give the folder of a copy"
        raise InputError(_no_download(name, reason)) from error
    except Exception as error:  # what else goes wrong on the way has no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(_no_download(name, reason)) from error


def _no_download(name: str, reason: str) -> str:
    return f"backbone {name!r} is no folder here, and cannot be downloaded by that name: {reason}"


def _arrays(
    paths: Iterable[str | os.PathLike], ignored: Iterable[str]
) -> Iterator[tuple[str | os.PathLike, str, np.ndarray]]:
    """Yields (path, key, array) for every key of the files but the ignored ones, one in memory at a time."""
    for path in paths:
        if Path(path).name == FLAX:
            for key, array in _flax_arrays(path):
                if not any(re.fullmatch(pattern, key) for pattern in ignored):
                    yield path, key, array
            continue
        try:
            with safe_open(path, framework="np") as file:
                for key in file.keys():  # noqa: SIM118  (it is no dict)
                    if not any(re.fullmatch(pattern, key) for pattern in ignored):
                        yield path, key, file.get_tensor(key)
        except (OSError, SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy has not
            raise InputError(
                f"cannot read {path} as safetensors: {error}; it may be cut short, fetch it again"
            ) from error


def _flax_arrays(path: str | os.PathLike) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of transformers' Flax models, under the names and in the shapes of its torch models."""
    from flax.serialization import msgpack_restore

    try:
        tree = flatten_dict(msgpack_restore(Path(path).read_bytes()), sep=".")
    except Exception as error:  # msgpack and flax stumble over a damaged file in many ways
        raise InputError(f"cannot read {path}: {error}; it may be cut short, fetch it again") from error
    for name, array in tree.items():
        key, _, kind = str(name).rpartition(".")
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path}: {name} is no array")
        if kind == "kernel":  # (in, out), or (height, width, in, out)
            array = np.transpose(array, (3, 2, 0, 1) if array.ndim == 4 else None)
        yield (f"{key}.weight" if kind in ("kernel", "scale", "embedding") else str(name)), array


def _look_up(table: KeyTable, key: str) -> tuple[list[str], Transform]:
    """The paths in our tree, none for an unknown key, and the transform."""
    for pattern, targets, transform in table:
        match = re.fullmatch(pattern, key)
        if match:
            targets = [targets] if isinstance(targets, str) else targets
            return [match.expand(target) for target in targets], transform
    return [], identity


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return f"{len(names)} keys ({shown}{', ...' if len(names) > most else ''})" if names else "no key"
