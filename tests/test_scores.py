"""Scores as files: what is written comes back, anybody's are read, rows and columns find each other."""

import re

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from mlclip_jax import InputError
from mlclip_jax.cli import main
from mlclip_jax.comparison import compare
from mlclip_jax.scores import Scores, read_scores, read_together, write_scores

RANDOM = np.random.default_rng(0)
LABELS = ("cat", "dog", "owl")
NAMES = tuple(f"{i}.jpg" for i in range(40))
TRUTH = (RANDOM.random((40, 3)) < 0.4).astype(np.int8)
SCORES = (TRUTH + RANDOM.normal(size=(40, 3))).astype(np.float32)
KNOWN = Scores(SCORES, LABELS, NAMES, TRUTH, "somebody's")
ROWS, COLUMNS = RANDOM.permutation(40), [2, 0, 1]
SHUFFLED = Scores(
    2 * SCORES[ROWS][:, COLUMNS],
    tuple(LABELS[k] for k in COLUMNS),
    tuple(NAMES[i] for i in ROWS),
    TRUTH[ROWS][:, COLUMNS],
)


def assert_same(ours, expected):
    for name, value in expected._asdict().items():
        np.testing.assert_array_equal(getattr(ours, name), value, err_msg=name)


@pytest.mark.parametrize("known", [KNOWN, Scores(SCORES.astype(np.float64), LABELS)])
def test_what_is_written_comes_back(tmp_path, known):
    write_scores(tmp_path / "x.npz", known)
    assert_same(read_scores(tmp_path / "x.npz"), known)


def test_rows_and_columns_come_in_the_order_of_the_first_file(tmp_path):
    write_scores(tmp_path / "a.npz", KNOWN)
    write_scores(tmp_path / "b.npz", SHUFFLED)
    [first, second], labels = read_together([tmp_path / "a.npz", tmp_path / "b.npz"])
    assert_same(first, KNOWN)
    np.testing.assert_array_equal(second.scores, 2 * SCORES)
    np.testing.assert_array_equal(second.labels, TRUTH)
    np.testing.assert_array_equal(labels, TRUTH)


def test_labels_may_come_from_a_table(tmp_path):
    write_scores(tmp_path / "b.npz", SHUFFLED._replace(labels=None))
    rows = ("|".join(np.array(LABELS)[row == 1]) for row in TRUTH)
    table = "filename,labels\n" + "".join(f"{name},{row}\n" for name, row in zip(NAMES, rows))
    (tmp_path / "x.csv").write_text(table)
    _, labels = read_together([tmp_path / "b.npz"], tmp_path / "x.csv")
    np.testing.assert_array_equal(labels, TRUTH[ROWS][:, COLUMNS])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_names": None}, "holds no array 'label_names'; it has scores, names, labels, origin"),
        ({"scores": SCORES[0]}, "scores must be floats (N, K); got float32[3]"),
        ({"scores": SCORES.astype(int)}, "scores must be floats (N, K); got int64[40, 3]"),
        (
            {"scores": np.where(np.arange(40)[:, None] == 7, np.nan, SCORES)},
            "NaN or infinity, the first in row 7",
        ),
        ({"label_names": LABELS[:2]}, "2 label_names for scores of shape [40, 3]"),
        ({"label_names": ("cat", "dog", "dog")}, "names 'dog' more than once"),
        ({"names": NAMES[:7]}, "7 names for scores of shape [40, 3]"),
        ({"labels": TRUTH[:, :2]}, "labels must be 1, 0 or -1, one for each score"),
        ({"labels": TRUTH + 1}, "labels must be 1, 0 or -1, one for each score"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, changes, message):
    arrays = {name: value for name, value in (KNOWN._asdict() | changes).items() if value is not None}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=re.escape(message)):
        read_scores(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (KNOWN._replace(label_names=("cat", "dog", "eel")), "score different labels"),
        (Scores(SCORES[:7], LABELS), "score 40 and 7 images"),
        (KNOWN._replace(names=(*NAMES[:39], "x.jpg")), "score different images"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, other, message):
    write_scores(tmp_path / "a.npz", KNOWN)
    write_scores(tmp_path / "b.npz", other)
    with pytest.raises(InputError, match=message):
        read_together([tmp_path / "a.npz", tmp_path / "b.npz"])


def test_comparison_knows_scores_alone():
    rows = compare({"one": SCORES, "noise": [SCORES + 9, -SCORES]}, TRUTH, num_samples=20)
    assert [(row["method"], row["scoring"]) for row in rows[:2]] == [("one", "raw"), ("noise", "raw")]
    assert {row["scoring"] for row in rows} == {"raw", "standardised"}  # nothing to fuse with
    expected = 100 * average_precision_score(TRUTH, SCORES)
    assert rows[0]["mAP"] == pytest.approx(expected, abs=1e-3)
    assert rows[0]["over_cosine"] is rows[0]["over_first"] is None
    assert rows[1]["seeds"] == 2
    assert rows[1]["over_first"][0] == pytest.approx(rows[1]["mAP"] - rows[0]["mAP"])


def test_the_command_evaluates_files_of_anybody(tmp_path, capsys):
    write_scores(tmp_path / "mine.npz", KNOWN)
    write_scores(tmp_path / "theirs.npz", SHUFFLED)
    files = f"--scores={tmp_path / 'mine.npz'},{tmp_path / 'theirs.npz'}"
    assert main(["evaluate", files, "--bootstrap=20", "--protocol=voc07"]) == 0
    output = capsys.readouterr().out
    assert "images      40, somebody's\n" in output
    # The same ranking: no difference in any resample.
    assert re.search(r"\| theirs +\| raw +\| 1 +\| [\d.]+ +\| \+0.0 \[\+0.0, \+0.0\] \|", output), output
    for arguments, message in (
        ([], "give one of --workdir=RUN[,RUN...], --scores=FILE[,FILE...] and --config=zero_shot:all"),
        ([files, "--workdir=x"], "give one of --workdir"),
        ([files, "--images=x"], "--scores are about images and labels of their own"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
