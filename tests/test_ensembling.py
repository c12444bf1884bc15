"""Scores of several methods as one: the published policies, by their own formulas."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlclip_jax import InputError
from mlclip_jax.cli import main
from mlclip_jax.ensembling import ENSEMBLES, mean, standardised, tai_adapter, tai_dpt
from mlclip_jax.scores import Scores, read_scores, write_scores

matrices = arrays(np.float64, (4, 3), elements=st.floats(-50, 50))


@given(matrices, matrices, matrices)
def test_tai_adapter_averages_probabilities_with_scaled_scores(first, second, third):
    probabilities = 1 / (1 + np.exp(-first)) if first.min() < 0 or first.max() > 1 else first
    scaled = [(x - x.min()) / (np.ptp(x) or 1) for x in (second, third)]
    np.testing.assert_allclose(
        tai_adapter([first, second, third]), (probabilities + sum(scaled)) / 3, atol=1e-9
    )


@given(matrices, matrices)
def test_tai_dpt_scales_both_and_weighs_the_second(first, second):
    scaled = [(x - x.min()) / (np.ptp(x) or 1) for x in (first, second)]
    np.testing.assert_allclose(tai_dpt([first, second]), 0.1 * scaled[0] + 0.9 * scaled[1], atol=1e-9)


def test_standardised_scores_do_not_depend_on_an_images_scale():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 6, 5))
    scale, offset = random.uniform(1, 9, (6, 1)), random.normal(size=(6, 1))
    together = standardised([first, second])
    np.testing.assert_allclose(standardised([scale * first + offset, second]), together, atol=1e-5)


def test_seeds_are_averaged_as_they_come():
    np.testing.assert_array_equal(mean([np.array([[1.0, -2.0]]), np.array([[3.0, 5.0]])]), [[2.0, 1.5]])


def test_the_command_aligns_the_files_and_keeps_labels_and_names(tmp_path):
    random = np.random.default_rng(1)
    names, labels = ("a.jpg", "b.jpg", "c.jpg", "d.jpg"), np.eye(4, 3, dtype=np.int8)
    ours = Scores(random.normal(size=(4, 3)), ("cat", "dog", "owl"), names, None, "ours")
    other = Scores(random.normal(size=(4, 3)), ("owl", "cat", "dog"), names[::-1], labels[::-1][:, [2, 0, 1]])
    write_scores(tmp_path / "ours.npz", ours)
    write_scores(tmp_path / "other.npz", other)
    flags = [f"--scores={tmp_path}/ours.npz,{tmp_path}/other.npz", f"--output={tmp_path}/both.npz"]
    for by, policy in ENSEMBLES.items():
        assert main(["ensemble", *flags, f"--by={by}"]) == 0
        both = read_scores(tmp_path / "both.npz")
        assert both.names == names
        np.testing.assert_array_equal(both.labels, labels)
        np.testing.assert_array_equal(both.scores, policy([ours.scores, other.scores[::-1][:, [1, 2, 0]]]))
        assert both.origin.startswith(f"{by} of ours, ")


def test_one_file_is_no_ensemble_and_tai_dpt_takes_two(tmp_path, capsys):
    write_scores(tmp_path / "a.npz", Scores(np.ones((2, 1)), ("cat",)))
    assert main(["ensemble", f"--scores={tmp_path}/a.npz", f"--output={tmp_path}/x.npz"]) == 2
    assert "an ensemble is of two files or more" in capsys.readouterr().err
    with pytest.raises(InputError, match="tai_dpt weighs two methods, and was given 3"):
        tai_dpt([np.ones((2, 1))] * 3)
