"""What saving and several processes cost: bash launch/test.sh -n 0 -m slow -s tests/e2e/test_overheads.py"""

import time

import jax
import numpy as np
import pytest
from flax import nnx
from processes import finish_together
from small_world import train_arguments, write_embeddings

from mlclip_jax import methods
from mlclip_jax.configs import ml_decoder
from mlclip_jax.distributed.sharding import make_mesh, place, replicated
from mlclip_jax.nnx_boundary import split_trainable
from mlclip_jax.provenance import Origin
from mlclip_jax.training.checkpoints import Checkpoints
from mlclip_jax.training.optimizers import make_optimizer
from mlclip_jax.training.step import hyper_of, initial_state

pytestmark = pytest.mark.slow
FROZEN = Origin("overheads", "", "0" * 64)


def test_saving_blocks_less_than_a_twentieth_of_the_time(tmp_path):
    """One save each 10 seconds of an ML-Decoder for 80 labels, while its parameters are computed with."""
    config = ml_decoder.get_config()
    adapter = methods.find(config.method).make(np.zeros((80, 512), np.float32), rngs=nnx.Rngs(0))
    _, parameters, _ = split_trainable(adapter)
    mesh = make_mesh(jax.devices()[:1])
    state = place(initial_state(parameters, make_optimizer(config)(hyper_of(config))), replicated(mesh))
    decay = jax.jit(lambda state: jax.tree.map(lambda x: x * 1, state), donate_argnums=0)
    blocked, counts = [], {True: [], False: []}
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        for span in range(7):  # in turn with and without a save; the first one compiles
            start, count, saving = time.monotonic(), 0, span % 2 == 0
            if saving:
                checkpoints.save(span + 1, state)
                blocked.append(time.monotonic() - start)
            while time.monotonic() - start < 10:
                state = jax.block_until_ready(decay(state))
                checkpoints.check()
                count += 1
            counts[saving].append(count)
    megabytes = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    share = np.median(blocked[1:]) / 10
    fewer = 1 - np.median(counts[True][1:]) / np.median(counts[False])
    usual = 1000 * np.median(blocked[1:])
    print(f"\n{megabytes:.0f} MB: a save blocks {usual:.0f} ms, {100 * share:.1f}% of 10 s")
    print(f"the first {1000 * blocked[0]:.0f} ms; with the writing {100 * fewer:.1f}% fewer steps")
    assert share < 0.05


def test_two_processes_beside_one(tmp_path):
    """The time of a step, from runs of two lengths, with the same global batch; TaI-Adapter, 80 labels."""
    write_embeddings(tmp_path, width=512)
    settings = {
        "method__hidden": 512,
        "texts__number": 4000,
        "train__batch_size": 64,
        "train__log_every": 100,
        "train__checkpoint_every": 100_000,
        "evaluation__embeddings": "",
    }
    seconds = {}
    for repetition in range(3):
        for num_processes, num_devices in ((1, 1), (1, 2), (2, 1)):
            took = []
            for steps in (100, 1100):
                workdir = tmp_path / f"{repetition}-{num_processes}-{num_devices}-{steps}"
                start = time.monotonic()
                arguments = train_arguments(tmp_path, workdir, **settings, train__steps=steps)
                finish_together(arguments, num_processes, num_devices=num_devices)
                took.append(time.monotonic() - start)
            seconds.setdefault((num_processes, num_devices), []).append((took[1] - took[0]) / 1000)
    medians = {setting: 1000 * np.median(own) for setting, own in seconds.items()}
    one, two, apart = (medians[setting] for setting in ((1, 1), (1, 2), (2, 1)))
    print(f"\na step of 64 examples: {one:.2f} ms on 1 device, {two:.2f} on 2 devices of 1 process,")
    print(f"{apart:.2f} on 2 devices of 2 processes: {apart / two:.1f} times as long")
