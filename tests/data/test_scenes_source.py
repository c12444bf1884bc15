"""The built-in world as a dataset: two splits that share no scene, and as hard as it says."""

import numpy as np
import pytest

from mlclip_jax import InputError
from mlclip_jax.data.datasets import open_images
from mlclip_jax.data.scenes import LABELS


def test_splits_are_sources_with_labels_and_captions_and_share_no_scene():
    train, test = (open_images(f"scenes:{split},number=3") for split in ("train", "test"))
    assert train.label_names == LABELS
    assert (train.labels.sum(axis=1) >= 1).all()
    assert all(train.captions)
    assert len({source.read(i) for source in (train, test) for i in range(3)}) == 6
    again = open_images("scenes:train,number=3")
    assert (train.digest, train.read(2)) == (again.digest, again.read(2))


def test_hard_scenes_hold_more_objects_than_plain_ones():
    numbers = [
        open_images(f"scenes:test,number=40,difficulty={difficulty}").labels.sum(axis=1).mean()
        for difficulty in ("plain", "hard")
    ]
    assert np.diff(numbers) > 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("scenes:val", "scenes: has no split 'val'; there are train, test"),
        ("scenes:test,difficulty=soft", "scenes: has no difficulty 'soft'; there are plain, hard"),
        ("scenes:test,labels=some", "scenes: has no set of labels 'some'; there are first, other, all"),
        ("scenes:test,number=0", "scenes:test,number=0 holds none"),
    ],
)
def test_what_the_world_does_not_have_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        open_images(spec)
