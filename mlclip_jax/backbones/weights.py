"""Weights in Hugging Face's format, from a folder or the hub, every one accounted for."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from mlclip_jax.errors import InputError

# Backbones that come with the package, by name.
BUILT_IN = {"scenes-clip": Path(__file__).parent / "scenes_clip"}

# All that is downloaded of a repository: never a pickle.
HUB_FILES = ["*.json", "model.safetensors"]

# How an array of the file becomes one of ours.
identity = np.asarray
linear = np.transpose  # torch keeps (out, in), flax (in, out)


def conv(array):
    """(out, in, height, width) to (height, width, in, out)."""
    return np.transpose(array, (2, 3, 1, 0))


# And back.
INVERSE = {identity: identity, linear: linear, conv: lambda array: np.transpose(array, (3, 2, 0, 1))}


def find_checkpoint(name_or_folder, revision=None):
    """The folder of a checkpoint, given by the name of one in `BUILT_IN`, itself, or by hub name.

    What the hub names is downloaded first.

    Returns:
      The folder and the revision: a commit hash for the hub, "" for a folder.

    Raises:
      InputError: there is neither such a folder nor such a repository within reach.
    """
    if str(name_or_folder) in BUILT_IN:
        return BUILT_IN[str(name_or_folder)], ""
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder, ""
    if folder.is_absolute() or str(name_or_folder).startswith((".", "~")):
        raise InputError(f"no such folder of a backbone: {name_or_folder}")
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(str(name_or_folder), revision=revision, allow_patterns=HUB_FILES)
    except Exception as error:  # the hub's own errors have no common base
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"backbone {name_or_folder!r} is no folder here, and cannot be downloaded by that name: {reason}"
        ) from error
    return Path(snapshot), Path(snapshot).name


def read_json(path):
    """A JSON object from a checkpoint's file.

    Raises:
      InputError: the file is missing or no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing: a backbone's folder must hold it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__} where a JSON object was expected")
    return content


def load_parameters(path, table, abstract, ignored=()):
    """Reads a safetensors file into a tree of parameters.

    Args:
      path: the file.
      table: rows (pattern, path in our tree, transform). A pattern is matched in full against a key of the
        file; the path may refer to its groups (`\\1`) and is split at "/".
      abstract: nested dict of `jax.ShapeDtypeStruct`, the parameters to be filled.
      ignored: patterns of keys that carry no parameter.

    Returns:
      A nested dict like `abstract`, of NumPy arrays in its dtypes.

    Raises:
      InputError: the file cannot be read, one of its keys has no place, a parameter stays unfilled, or a
        shape differs; the names are listed.
    """
    try:
        arrays = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} is missing: only safetensors weights are read, never a pickle") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot read {path} as safetensors: {error}") from error

    expected = _flatten(abstract)
    filled, unused = {}, []
    for key, array in arrays.items():
        if any(re.fullmatch(pattern, key) for pattern in ignored):
            continue
        target, transform = _look_up(table, key)
        if target not in expected:
            unused.append(key)
            continue
        if array.dtype.kind in "biu":
            raise InputError(f"{path}: {key} is {array.dtype}; only floating-point weights are read")
        if array.ndim != len(expected[target].shape):
            raise InputError(
                f"{path}: {key} has {array.ndim} dimensions where {len(expected[target].shape)} are expected"
            )
        array = transform(array)
        if array.shape != expected[target].shape:
            raise InputError(
                f"{path}: {key} has shape {array.shape} where config.json asks for {expected[target].shape}"
            )
        filled[target] = array.astype(expected[target].dtype)
    unfilled = sorted(expected.keys() - filled.keys())
    if unused or unfilled:
        raise InputError(
            f"{path} does not fit its config.json: {_listed(unused)} unused, {_listed(unfilled)} unfilled"
        )
    return _unflatten(filled)


def save_parameters(path, table, parameters):
    """Writes a tree of parameters as the safetensors file from which `load_parameters` reads it.

    Args:
      path: the file to write.
      table: as in `load_parameters`; the only groups in its patterns are numbers, `(\\d+)`.
      parameters: nested dict of arrays, one for each path that the table leads to.
    """
    number = r"(\d+)"
    backwards = [
        (re.escape(target).replace(r"\\1", number), key.replace(number, r"\1").replace(r"\.", "."), transform)
        for key, target, transform in table
    ]
    arrays = {}
    for target, array in _flatten(parameters).items():
        key, transform = _look_up(backwards, target)
        # safetensors stores memory as it lies, whatever the strides.
        arrays[key] = np.array(INVERSE[transform](np.asarray(array)), order="C")
    # Not by safetensors itself, which would let only the owner read the file.
    Path(path).write_bytes(save(arrays, metadata={"format": "pt"}))


def fingerprint(name, revision, paths):
    """What identifies frozen weights: `name`, `revision`, and the SHA-256 over the files at `paths`."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return {"name": str(name), "revision": revision, "sha256": digest.hexdigest()}


def _look_up(table, key):
    for pattern, target, transform in table:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(target), transform
    return None, None


def _flatten(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= _flatten(value, f"{path}/") if isinstance(value, dict) else {path: value}
    return flat


def _unflatten(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _listed(names, most=4):
    shown = ", ".join(names[:most])
    return f"{len(names)} keys ({shown}{', ...' if len(names) > most else ''})" if names else "no key"
