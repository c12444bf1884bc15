"""What is saved comes back; what was trained on other frozen weights does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlclip_jax import InputError
from mlclip_jax.distributed.sharding import make_mesh, replicated
from mlclip_jax.provenance import Origin
from mlclip_jax.training.checkpoints import Checkpoints, abstract

FROZEN = Origin("openai/clip", "0123456789abcdef", "aa" * 32, labels="ee" * 32)


def state_of(value, num_devices=2):
    state = {
        "parameters": {"layers": {"10": {"kernel": jnp.full((3, 4), value)}}},
        "optimizer": {"count": jnp.int32(7)},
    }
    return jax.device_put(state, replicated(make_mesh(jax.devices()[:num_devices])))


@pytest.mark.devices(4)
def test_the_newest_comes_back_on_any_number_of_devices(tmp_path):
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        assert checkpoints.latest_step is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(float(step)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]
    for num_devices in (1, 2, 4):
        wanted = abstract(state_of(0.0), replicated(make_mesh(jax.devices()[:num_devices])))
        with Checkpoints(tmp_path, FROZEN) as checkpoints:
            assert checkpoints.latest_step == 3
            restored = checkpoints.restore(wanted)[1]
        np.testing.assert_array_equal(restored["parameters"]["layers"]["10"]["kernel"], 3.0)
        assert restored["optimizer"]["count"] == 7
        assert all(len(x.sharding.device_set) == num_devices for x in jax.tree.leaves(restored))


def test_a_part_can_be_restored_alone(tmp_path):
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        checkpoints.save(1, state_of(2.0))
        wanted = abstract(state_of(0.0), replicated(make_mesh()))
        restored = checkpoints.restore({"parameters": wanted["parameters"]})[1]
    assert list(restored) == ["parameters"]


def test_other_frozen_weights_are_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        checkpoints.save(1, state_of(1.0))
    other = Origin("some/folder", "", "bb" * 32, labels="ee" * 32)
    with Checkpoints(tmp_path, other) as checkpoints, pytest.raises(InputError) as raised:
        checkpoints.restore(abstract(state_of(0.0), replicated(make_mesh())))
    for part in (
        "openai/clip@0123456789ab (sha256 aaaaaaaaaaaa, labels eeeeeeeeeeee)",
        "some/folder (sha256 bbbbbbbbbbbb, labels eeeeeeeeeeee)",
        "--workdir",
    ):
        assert part in str(raised.value)


def test_the_best_is_that_of_the_newest_images(tmp_path):
    """Metrics on different images do not compare."""
    for step, metric, scored_on in ((1, 0.9, "validation"), (2, 0.3, "test"), (3, 0.2, "test")):
        with Checkpoints(tmp_path, FROZEN, scored_on=scored_on) as checkpoints:
            checkpoints.save(step, state_of(1.0), metric)
    with Checkpoints(tmp_path, FROZEN, read_only=True) as checkpoints:
        assert checkpoints.best == (2, 0.3)


def test_no_checkpoint(tmp_path):
    with Checkpoints(tmp_path, FROZEN) as checkpoints, pytest.raises(InputError, match="no checkpoint in"):
        checkpoints.restore({})


def test_a_half_written_checkpoint_is_not_taken(tmp_path):
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        checkpoints.save(1, state_of(1.0))
        checkpoints.save(2, state_of(2.0))
    (tmp_path / "2" / "commit_success.txt").unlink()  # what a kill before the commit leaves behind
    (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp-123")
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        assert checkpoints.latest_step == 1
        _, restored = checkpoints.restore(abstract(state_of(0.0), replicated(make_mesh())))
        np.testing.assert_array_equal(restored["parameters"]["layers"]["10"]["kernel"], 1.0)
        checkpoints.save(2, state_of(5.0))
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        assert checkpoints.latest_step == 2


def test_arrays_of_another_shape_are_refused_by_name(tmp_path):
    with Checkpoints(tmp_path, FROZEN) as checkpoints:
        checkpoints.save(1, state_of(1.0))
    wanted = {"parameters": {"layers": {"10": {"kernel": jnp.zeros((3, 5))}}}}
    with Checkpoints(tmp_path, FROZEN) as checkpoints, pytest.raises(InputError) as raised:
        checkpoints.restore(abstract(wanted, replicated(make_mesh())))
    assert "of its parameters, " in str(raised.value)
    assert "(3, 4)" in str(raised.value)
    assert "(3, 5)" in str(raised.value)
