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
      frozen: fingerprint of what was frozen in training (see `weights.fingerprint`).
      keep: how many of the latest are kept.
    """

    def __init__(self, folder, frozen, *, keep=2):
        self._frozen = frozen
        self._checkpointer = ocp.training.Checkpointer(
            Path(folder).absolute(),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            # The caller decides when to save.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=True,
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

    def save(self, step, state):
        """Saves a dict of trees of arrays, as of after `step` steps."""
        self._checkpointer.save_checkpointables_async(step, state, custom_metadata={"frozen": self._frozen})

    def restore(self, abstract_state):
        """The newest checkpoint: those trees of it that `abstract_state` holds, placed as it says.

        Raises:
          InputError: there is no checkpoint, or it was trained on other frozen weights.
        """
        self._checkpointer.wait()  # for a save that is still being written
        step = self.latest_step
        if step is None:
            raise InputError(f"no checkpoint in {self._checkpointer.directory}: train first")
        frozen = self._checkpointer.metadata(step).custom_metadata["frozen"]
        if frozen["sha256"] != self._frozen["sha256"]:
            raise InputError(
                f"the checkpoint in {self._checkpointer.directory} was trained on {describe(frozen)}, "
                f"not on {describe(self._frozen)}; give what it was trained on, or another --workdir"
            )
        return self._checkpointer.load_checkpointables(step, abstract_state)


def abstract(tree, sharding):
    """Shapes and dtypes of a tree of arrays, each with `sharding`, for `Checkpoints.restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def describe(frozen):
    """A fingerprint in words: name, revision and the first digits of the hash."""
    revision = f"@{frozen['revision'][:12]}" if frozen["revision"] else ""
    return f"{frozen['name']}{revision} (sha256 {frozen['sha256'][:12]})"
