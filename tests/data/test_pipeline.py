"""Which examples make up which batch, and that reading ahead changes nothing of it."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbered import Numbered, prepare

from mlclip_jax import InputError
from mlclip_jax.data import pipeline
from mlclip_jax.data.pipeline import OnceOrder, Skipped, TrainingOrder, batch_indices, read_batches


@given(st.integers(0, 9), st.integers(1, 40), st.integers(1, 50))
def test_every_epoch_visits_every_example_once(seed, num_examples, batch_size):
    steps = 3 * num_examples // batch_size + 1
    order = np.concatenate([batch_indices(seed, t, num_examples, batch_size) for t in range(steps)])
    for epoch in range(len(order) // num_examples):
        visited = order[epoch * num_examples : (epoch + 1) * num_examples]
        np.testing.assert_array_equal(np.sort(visited), np.arange(num_examples))


def test_a_batch_depends_on_seed_and_step_alone():
    forwards = [batch_indices(3, t, 100, 16) for t in range(20)]
    backwards = [batch_indices(3, t, 100, 16) for t in reversed(range(20))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    assert not np.array_equal(forwards[0], batch_indices(4, 0, 100, 16))


def test_epochs_are_shuffled_anew():
    first, second = (batch_indices(0, t, 50, 50) for t in (0, 1))
    assert not np.array_equal(first, second)


def test_no_two_epochs_of_any_seeds_share_an_order():
    """One seed's second epoch must not be the next seed's first, or runs would not be independent."""
    orders = [tuple(batch_indices(seed, epoch, 50, 50)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize(("step", "epochs"), [(0, 1), (10**9, 1), (10**9 + 15, 2)])
def test_far_steps_cost_no_more_than_near_ones(step, epochs):
    """No epoch is drawn but those that the batch lies in."""
    pipeline._permutation.cache_clear()
    indices = batch_indices(0, step, 1000, 64)
    assert pipeline._permutation.cache_info().misses == epochs
    assert indices.dtype == np.int32
    assert ((indices >= 0) & (indices < 1000)).all()


def test_a_global_batch_is_the_same_for_any_number_of_processes_threads_and_workers():
    source, size, steps = Numbered(23), 8, range(2, 6)  # over the end of an epoch
    expected = [batch_indices(7, t, 23, size) for t in steps]
    for num_processes in (1, 2, 4):
        for num_threads, num_workers in ((1, 0), (3, 0), (1, 2)) if num_processes < 4 else ((2, 0),):
            shares = []
            for process in range(num_processes):
                order = TrainingOrder(7, 23, size, steps.start, steps.stop, process, num_processes)
                batches = read_batches(
                    source,
                    order,
                    size // num_processes,
                    prepare,
                    num_threads=num_threads,
                    num_workers=num_workers,
                )
                shares.append(list(batches))
            for t, (step, parts) in enumerate(zip(steps, zip(*shares, strict=True))):
                indices = np.concatenate([part.indices for part in parts])
                np.testing.assert_array_equal(indices, expected[t])
                positions = np.concatenate([part.data["position"] for part in parts])
                np.testing.assert_array_equal(positions, np.arange(step * size, (step + 1) * size))
                for part in parts:
                    np.testing.assert_array_equal(part.data["pixels"][:, 0, 0, 0], part.indices)


def test_going_on_from_a_step_is_as_if_it_had_not_stopped():
    source = Numbered(23)
    whole = list(read_batches(source, TrainingOrder(1, 23, 4, 0, 12), 4, prepare))
    rest = list(read_batches(source, TrainingOrder(1, 23, 4, 5, 12), 4, prepare))
    for one, other in zip(whole[5:], rest, strict=True):
        np.testing.assert_array_equal(one.data["position"], other.data["position"])
        np.testing.assert_array_equal(one.indices, other.indices)


@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 2, 3]))
def test_evaluation_visits_all_once_in_as_many_steps_on_every_process(number, share, num_processes):
    orders = [OnceOrder(range(number), share * num_processes, p, num_processes) for p in range(num_processes)]
    assert len({len(order) for order in orders}) == 1
    assert len(orders[0]) % share == 0
    indices = [index for order in orders for _, index in (order[i] for i in range(len(order)))]
    assert sorted(i for i in indices if i >= 0) == list(range(number))


def test_batches_are_padded_with_a_mask():
    (first, second) = read_batches(Numbered(5), OnceOrder(range(5), 4), 4, prepare)
    assert first.indices.tolist() == [0, 1, 2, 3]
    assert second.indices.tolist() == [4, -1, -1, -1]
    assert second.data["pixels"].shape == (4, 2, 3, 3)
    assert not second.data["pixels"][1:].any()


@pytest.mark.parametrize("broken", [{0}, {3, 4}, {9}, {0, 1, 2, 3}, set(range(10))])
def test_what_is_skipped_leaves_its_place_empty_and_shifts_no_label(broken):
    source = Numbered(10, broken)
    batches = list(read_batches(source, OnceOrder(range(10), 4), 4, prepare))
    assert {i for batch in batches for i, _ in batch.skipped} == broken
    read = [int(i) for batch in batches for i in batch.indices if i >= 0]
    assert read == [i for i in range(10) if i not in broken]
    for batch in batches:
        for row in np.flatnonzero(batch.indices >= 0):
            assert batch.data["pixels"][row, 0, 0, 0] == batch.data["label"][row] == batch.indices[row]


def test_in_training_the_next_one_takes_the_place_of_a_broken_one():
    broken = {3, 4, 9}
    source = Numbered(12, broken)  # the last two are held out, and take nobody's place
    batches = list(read_batches(source, TrainingOrder(0, 10, 5, 0, 4), 5, prepare, replace=10))
    for step, batch in enumerate(batches):
        wanted = [{3: 5, 4: 5, 9: 0}.get(int(i), int(i)) for i in batch_indices(0, step, 10, 5)]
        assert batch.indices.tolist() == batch.data["label"].tolist() == wanted
    assert {i for batch in batches for i, _ in batch.skipped} == broken
    (batch,) = read_batches(Numbered(3, range(3)), TrainingOrder(0, 3, 3, 0, 1), 3, prepare, replace=3)
    assert batch.indices.tolist() == [-1, -1, -1]
    assert batch.data == {}


def test_processes_must_divide_a_batch():
    for make in (
        lambda: TrainingOrder(0, 10, 5, 0, 1, 0, 2),
        lambda: OnceOrder(range(10), 5, 0, 2),
    ):
        with pytest.raises(InputError, match="a batch of 5 cannot be split over 2 processes"):
            make()


def test_skipped_images_are_counted_listed_and_limited(tmp_path):
    names = [f"{i}.jpg" for i in range(300)]
    skipped = Skipped(names, tmp_path / "skipped.jsonl")
    skipped.write()
    assert not (tmp_path / "skipped.jsonl").exists()
    skipped.add([(7, "truncated"), (2, "empty"), (7, "truncated")])
    skipped.add([(3, "a directory")])
    skipped.write()
    again = Skipped(names, tmp_path / "skipped.jsonl")
    again.read()
    assert again.reasons == skipped.reasons
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines[0] == {"name": "2.jpg", "reason": "empty"}
    assert [line["name"] for line in lines] == ["2.jpg", "3.jpg", "7.jpg"]
    with pytest.raises(
        InputError, match=r"4 of 300 images cannot be read, and max_skipped=0\.01 allows fewer"
    ) as e:
        skipped.add([(299, "missing")])
    assert "2.jpg (empty), 3.jpg (a directory), 7.jpg (truncated)" in str(e.value)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 4
    assert "skipped.jsonl lists them" in str(e.value)
    Skipped(names, None, max_fraction=0.02).add([(i, "missing") for i in range(6)])
