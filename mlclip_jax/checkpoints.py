"""Checkpoints of a run, through orbax's v1 API: what is trained, and the fingerprint of what is frozen."""

from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from mlclip_jax.errors import InputError


class Checkpoints:
    """The checkpoints in a folder; a context manager that waits for pending saves when it is left.

    A save returns at once and is written in the background, to a temporary name that is renamed when it is
    whole: a killed run leaves the checkpoint before it.

    Args:
      folder: where they are kept, one subfolder per step.
      frozen: fingerprint of what was frozen in training (see `weights.fingerprint`), with the hash of the
        `labels`, and where it matters that of the `examples`.
      read_only: leave the folder as it is; a run may be writing there. Only one process may do otherwise.
      keep: how many of the latest are kept.

    Raises:
      InputError: there is no checkpoint to read.
    """

    def __init__(self, folder, frozen, *, read_only=False, keep=2):
        if read_only and not any(path.name.isdigit() for path in Path(folder).glob("*")):
            raise InputError(f"no checkpoint in {folder}: start the command of this run again")
        self._frozen = frozen
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            # The caller decides when to save.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=not read_only,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._checkpointer.close()

    @property
    def latest_step(self):
        """Step of the newest whole checkpoint, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def folder(self):
        """Where they are kept."""
        return self._checkpointer.directory

    def save(self, step, state):
        """Saves a dict of trees of arrays, as of after `step` steps."""
        self._checkpointer.save_checkpointables_async(step, state, custom_metadata={"frozen": self._frozen})

    def restore(self, abstract_state):
        """The newest checkpoint: those trees of it that `abstract_state` holds, placed as it says.

        Raises:
          InputError: there is no checkpoint, it cannot be read, or it was trained on other frozen weights.
        """
        self._checkpointer.wait()  # for a save that is still being written
        folder, step = self.folder, self.latest_step
        if step is None:
            raise InputError(f"no checkpoint in {folder}: train first")
        try:
            frozen = self._checkpointer.metadata(step).custom_metadata["frozen"]
            compared = {"sha256", "labels", "examples"} & self._frozen.keys()
            matches = all(frozen.get(key) == self._frozen[key] for key in compared)
            if matches:
                return self._checkpointer.load_checkpointables(step, abstract_state)
        except Exception as error:  # orbax has no common base for what a damaged checkpoint raises
            raise InputError(
                f"cannot read the checkpoint {folder}/{step} ({type(error).__name__}); "
                "if it is damaged, remove it to go on from the one before; if other settings or another "
                "version made it, give another --workdir"
            ) from error
        raise InputError(
            f"the checkpoint in {folder} was trained on {describe(frozen)}, "
            f"not on {describe(self._frozen)}; give what it was trained on, or another --workdir"
        )


def abstract(tree, sharding):
    """Shapes and dtypes of a tree of arrays, each with `sharding`, for `Checkpoints.restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def describe(frozen):
    """A fingerprint in words: name, revision and the first digits of the hashes."""
    revision = f"@{frozen['revision'][:12]}" if frozen["revision"] else ""
    labels = f", labels {frozen['labels'][:12]}" if "labels" in frozen else ""
    examples = f", examples {frozen['examples'][:12]}" if "examples" in frozen else ""
    return f"{frozen['name']}{revision} (sha256 {frozen['sha256'][:12]}{labels}{examples})"
