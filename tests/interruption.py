"""A run that is stopped between two chunks, as a kill would."""

import contextlib

import pytest

from mlclip_jax.training.metric_log import Log


@contextlib.contextmanager
def stopped_after(last_step):
    """Within the block a run stops, without its last words, once it has logged `last_step`."""

    class Stop(Exception):
        pass

    def add_or_stop(self, step, metrics, add=Log.add):
        if step > last_step:
            raise Stop
        add(self, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "add", add_or_stop)
        try:
            yield
        except Stop:
            return
    pytest.fail(f"the run went on beyond step {last_step}")
