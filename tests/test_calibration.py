"""Probabilities and thresholds against scikit-learn and slow searches; the command; what becomes of it."""

import json
import shutil

import numpy as np
import pytest
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, f1_score, log_loss
from small_world import LABELS, train_arguments, write_embeddings

from mlclip_jax import InputError, calibration
from mlclip_jax.calibration import METHODS, RULES, apply, cross_validated, fit
from mlclip_jax.cli import main
from mlclip_jax.embeddings.labelled import read_images
from mlclip_jax.runs import read_run
from mlclip_jax.scores import read_scores, write_scores

GENERATOR = np.random.default_rng(0)
NUMBER, CLASSES = 400, 4
# Probabilities of these logits are far too sure, and lie too low.
TRUTH = GENERATOR.normal(size=(NUMBER, CLASSES)) - np.array([0, 1, 2, 3])
PRESENT = (GENERATOR.random(TRUTH.shape) < expit(TRUTH)).astype(np.int8)
LOGITS = 4 * TRUTH - 3
UNKNOWN = GENERATOR.random(TRUTH.shape) < 0.2
PARTIAL = np.where(UNKNOWN, -1, PRESENT).astype(np.int8)


def test_platt_is_scikit_learns():
    """Its own sigmoid calibration, which has Platt's targets too, on the known entries."""
    fitted = fit(LOGITS, PARTIAL, "platt", "half")
    ours = apply(fitted, LOGITS)
    for k in range(CLASSES):
        known = PARTIAL[:, k] >= 0
        # A classifier whose decision function is the logit itself.
        identity = LogisticRegression().fit([[-1.0], [1.0]], [0, 1])
        identity.coef_, identity.intercept_ = np.ones((1, 1)), np.zeros(1)
        theirs = CalibratedClassifierCV(FrozenEstimator(identity), method="sigmoid", ensemble=False)
        theirs.fit(LOGITS[known, k : k + 1], PARTIAL[known, k])
        expected = theirs.predict_proba(LOGITS[:, k : k + 1])[:, 1]
        np.testing.assert_allclose(ours[:, k], expected, atol=2e-3)


def test_temperature_minimises_the_cross_entropy():
    fitted = fit(LOGITS, PRESENT, "temperature", "half")
    np.testing.assert_array_equal(fitted.intercepts, 0)
    for k in range(CLASSES):
        slopes = fitted.slopes[k] * np.array([0.9, 1, 1.1])
        losses = [log_loss(PRESENT[:, k], expit(s * LOGITS[:, k])) for s in slopes]
        assert np.argmin(losses) == 1


def test_isotonic_is_scikit_learns():
    fitted = fit(LOGITS, PARTIAL, "isotonic", "half")
    for k in range(CLASSES):
        known = PARTIAL[:, k] >= 0
        theirs = IsotonicRegression(out_of_bounds="clip").fit(LOGITS[known, k], PARTIAL[known, k])
        beyond = np.concatenate([LOGITS[:, k], [-1e4, 1e4]])
        ours = apply(fitted, np.tile(beyond[:, None], (1, CLASSES)))[:, k]
        np.testing.assert_allclose(ours, theirs.predict(beyond), atol=1e-9)


@pytest.mark.parametrize("method", ["platt", "temperature", "isotonic"])
def test_what_is_perfectly_apart_stays_finite(method):
    labels = (np.arange(40)[:, None] >= 20).astype(np.int8)
    fitted = fit(np.where(labels == 1, 50.0, -50.0), labels, method)
    assert np.isfinite(fitted.slopes).all()
    assert np.isfinite(apply(fitted, np.array([[-1e4], [0.0], [1e4]]))).all()


@pytest.mark.parametrize("method", METHODS)
def test_labels_that_cannot_be_fitted_are_left_alone(method):
    labels = np.stack([PRESENT[:, 0], np.zeros(NUMBER), np.ones(NUMBER), np.full(NUMBER, -1)], axis=1)
    labels = labels.astype(np.int8)
    np.testing.assert_array_equal(calibration.fittable(labels), [True, False, False, False])
    fitted = fit(LOGITS, labels, method)
    np.testing.assert_array_equal(apply(fitted, LOGITS)[:, 1:], expit(LOGITS[:, 1:]))
    np.testing.assert_array_equal(fitted.thresholds[1:], 0.5)
    assert fitted.thresholds[0] != 0.5


def figures_at(thresholds, probabilities, labels):
    """Precision, recall and F1 of each class, over its known entries."""
    rows = []
    for p, y, t in zip(probabilities.T, labels.T, thresholds):
        predicted, present = p[y >= 0] >= t, y[y >= 0] == 1
        hits = (predicted & present).sum()
        precision = hits / predicted.sum() if predicted.any() else 1.0
        recall = hits / present.sum()
        rows.append((precision, recall, 2 * hits / (predicted.sum() + present.sum())))
    return np.array(rows)


def every_threshold(probabilities, labels, k):
    """The figures of class k at every threshold that differs."""
    values = np.unique(probabilities[:, k])
    return np.array(
        [figures_at([t], probabilities[:, k : k + 1], labels[:, k : k + 1])[0] for t in [*values, np.inf]]
    )


# Ties, in plenty.
PROBABILITIES = expit(TRUTH).round(2)


def test_f1_thresholds_are_the_best_there_are():
    thresholds = RULES["f1"](PROBABILITIES, PARTIAL)
    found = figures_at(thresholds, PROBABILITIES, PARTIAL)[:, 2]
    for k in range(CLASSES):
        assert found[k] == pytest.approx(every_threshold(PROBABILITIES, PARTIAL, k)[:, 2].max())


@pytest.mark.parametrize(("rule", "target"), [("f1", None), ("precision", 0.9), ("recall", 0.9)])
@pytest.mark.parametrize(
    ("labels", "threshold"),
    [([0, 0, 1, 1], 0.5), ([0, 1, 1, 1], 0.3), ([0, 0, 0, 1], 0.75)],
)
def test_a_threshold_lies_halfway_between_two_probabilities(rule, target, labels, threshold):
    """What is computed a little differently elsewhere must not fall on the other side."""
    probabilities = np.array([0.2, 0.4, 0.6, 0.9])[:, None]
    found = RULES[rule](probabilities, np.array(labels, np.int8)[:, None], target)
    np.testing.assert_allclose(found, threshold, rtol=1e-12)


@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
def test_precision_and_recall_targets_are_met_at_the_least_cost(target):
    for k in range(CLASSES):
        all_figures = every_threshold(PROBABILITIES, PARTIAL, k)
        threshold = RULES["precision"](PROBABILITIES, PARTIAL, target)[k]
        enough = all_figures[all_figures[:, 0] >= target]
        found = figures_at([threshold], PROBABILITIES[:, k : k + 1], PARTIAL[:, k : k + 1])[0]
        assert found[0] >= target
        assert found[1] == pytest.approx(enough[:, 1].max())
        threshold = RULES["recall"](PROBABILITIES, PARTIAL, target)[k]
        enough = all_figures[all_figures[:, 1] >= target]
        found = figures_at([threshold], PROBABILITIES[:, k : k + 1], PARTIAL[:, k : k + 1])[0]
        assert found[1] >= target
        assert found[0] == pytest.approx(enough[:, 0].max())


def test_a_precision_out_of_reach_is_never_predicted():
    thresholds = RULES["precision"](np.array([[0.9], [0.5], [0.1]]), np.array([[0], [1], [0]], np.int8), 0.9)
    assert np.isinf(thresholds[0])


def coordinate_ascent(probabilities, labels):
    """MultiCLIP's search, literally: one pass, with scikit-learn's micro F1 for every candidate."""
    thresholds = np.full(labels.shape[1], 0.5)

    def score():
        known = labels >= 0
        return f1_score(labels[known], (probabilities >= thresholds)[known], zero_division=0)

    for k in range(len(thresholds)):
        best, own = score(), thresholds[k]
        for candidate in np.linspace(0.01, 0.80, 80):
            thresholds[k] = candidate
            if score() > best + 1e-12:
                best, own = score(), candidate
        thresholds[k] = own
    return thresholds


def test_micro_f1_is_multiclips_coordinate_ascent():
    ours = RULES["micro_f1"](PROBABILITIES, PARTIAL)
    np.testing.assert_allclose(ours, coordinate_ascent(PROBABILITIES, PARTIAL))
    once = calibration.best_micro_f1(PROBABILITIES, PARTIAL)
    again = calibration.best_micro_f1(PROBABILITIES, PARTIAL, passes=5)
    known = PARTIAL >= 0
    figures = [f1_score(PARTIAL[known], (t <= PROBABILITIES)[known]) for t in (0.5, once, again)]
    assert figures[0] < figures[1] <= figures[2]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_pays_on_images_that_it_has_not_seen(method):
    before, after = cross_validated(LOGITS, PARTIAL, method, "f1")
    known = PARTIAL >= 0
    assert before["Brier"] == pytest.approx(brier_score_loss(PARTIAL[known], expit(LOGITS[known])), rel=1e-5)
    assert after["ECE"] < before["ECE"] / 2
    assert after["Brier"] < before["Brier"]
    assert after["mean_F1"] > before["mean_F1"]


def test_folds_are_scored_by_what_the_others_taught():
    """Labels of pure chance: fitted on all, isotonic regression would seem to know them."""
    chance = np.random.default_rng(5).integers(0, 2, (200, 3)).astype(np.int8)
    logits = np.random.default_rng(6).normal(size=chance.shape)
    _, after = cross_validated(logits, chance, "isotonic", "half")
    seen = apply(fit(logits, chance, "isotonic", "half"), logits)
    assert np.mean((seen - chance) ** 2) < 0.25 < after["Brier"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run, and held-out images beside it."""
    folder = write_embeddings(tmp_path_factory.mktemp("calibration"), num_images=200)
    assert main(train_arguments(folder, folder / "run", train__steps=200)) == 0
    return folder


def calibrate(run, *flags):
    return main(["calibrate", f"--workdir={run / 'run'}", f"--embeddings={run / 'images.npz'}", *flags])


def test_scores_calibrate_as_the_embeddings_do_that_they_are_of(run, tmp_path, capsys):
    assert calibrate(run) == 0
    expected = read_run(run / "run").calibration
    assert main(["evaluate", f"--workdir={run / 'run'}", "--bootstrap=1"]) == 0  # which leaves scores.npz
    scores = read_scores(run / "run/scores.npz")
    shuffled = [2, 0, 1, 5, 4, 3]
    write_scores(
        tmp_path / "x.npz",
        scores._replace(
            scores=scores.scores[:, shuffled],
            labels=scores.labels[:, shuffled],
            label_names=tuple(scores.label_names[k] for k in shuffled),
        ),
    )
    command = ["calibrate", f"--workdir={run / 'run'}", f"--scores={tmp_path / 'x.npz'}"]
    assert main(command) == 0
    assert f"200 images, {tmp_path / 'x.npz'}; percent" in capsys.readouterr().out
    ours = read_run(run / "run").calibration
    for name in ("slopes", "intercepts", "thresholds"):
        np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    assert main([*command, f"--embeddings={run / 'images.npz'}"]) == 2
    assert "give either --scores=FILE, --embeddings=FILE or --images=FOLDER" in capsys.readouterr().err
    write_scores(tmp_path / "y.npz", scores._replace(label_names=tuple("abcdef")))
    assert main([*command[:2], f"--scores={tmp_path / 'y.npz'}"]) == 2
    assert "scores other labels than those of" in capsys.readouterr().err
    (run / "run/calibration.npz").unlink()


def test_the_command_tells_what_it_gained_and_evaluate_uses_it(run, capsys):
    assert calibrate(run, "--method=isotonic") == 0
    output = capsys.readouterr().out
    assert "| plain sigmoid, threshold 0.5 |" in output
    assert "| calibrated |" in output
    assert "200 images, " in output
    loaded = read_run(run / "run")
    stored = loaded.calibration
    assert stored.thresholds.shape == (len(LABELS),)
    assert stored.knots.shape[:2] == (len(LABELS), 2)
    images = read_images({"embeddings": str(run / "images.npz")}, loaded.class_embeddings)
    logits = np.asarray(loaded.score(images))
    np.testing.assert_allclose(
        loaded.probabilities(logits),
        apply(fit(logits, images.labels, "isotonic"), logits),
        atol=1e-6,
    )
    assert main(["evaluate", f"--workdir={run / 'run'}", "--bootstrap=1"]) == 0
    assert (
        "of exactly these images 200 were calibrated on: the figures are too good" in capsys.readouterr().out
    )
    figures = json.loads((run / "run/evaluation.json").read_text())["raw"]
    assert figures["calibrated"]
    (run / "run/calibration.npz").unlink()
    assert main(["evaluate", f"--workdir={run / 'run'}", "--bootstrap=1"]) == 0
    plain = json.loads((run / "run/evaluation.json").read_text())["raw"]
    assert not plain["calibrated"]
    assert figures["expected_calibration_error"] < plain["expected_calibration_error"]
    assert figures["mean_F1"] > plain["mean_F1"]
    assert figures["ap"] == plain["ap"]


def test_training_on_forgets_the_calibration(run, tmp_path):
    """What was fitted to the parameters of one training says nothing of those of another."""
    folder = tmp_path / "run"
    arguments = train_arguments(run, folder, train__steps=20)
    assert main(arguments) == 0
    assert main(["calibrate", f"--workdir={folder}", f"--embeddings={run / 'images.npz'}"]) == 0
    assert main(arguments) == 0
    assert (folder / "calibration.npz").is_file()
    shutil.rmtree(folder / "checkpoints")
    assert main([*arguments, "--config.seed=3"]) == 0
    assert not (folder / "calibration.npz").is_file()


def test_a_target_goes_with_its_rules(run, capsys):
    assert calibrate(run, "--rule=precision", "--target=0.8") == 0
    capsys.readouterr()
    assert calibrate(run, "--rule=precision") == 2
    assert "--rule=precision needs a precision to reach" in capsys.readouterr().err
    assert calibrate(run, "--target=0.8") == 2
    assert "--target=0.8 is for --rule=precision and --rule=recall, not --rule=f1" in capsys.readouterr().err


def test_a_slope_never_turns_the_ranking_round():
    for method in ("platt", "temperature"):
        fitted = fit(-LOGITS, PRESENT, method, "half")
        np.testing.assert_array_equal(fitted.slopes, 0)
    expected = (PRESENT.sum(axis=0) / NUMBER).round(2)
    np.testing.assert_allclose(apply(fit(-LOGITS, PRESENT, "platt"), LOGITS)[0], expected, atol=0.02)


def test_labels_that_cannot_be_fitted_do_not_steer_the_others():
    labels = np.stack([PRESENT[:, 0], np.ones(NUMBER)], axis=1).astype(np.int8)
    alone = RULES["micro_f1"](PROBABILITIES[:, :1], labels[:, :1])
    both = RULES["micro_f1"](np.stack([PROBABILITIES[:, 0], np.full(NUMBER, 0.9)], axis=1), labels)
    assert both[1] == 0.5
    assert alone.shape == (1,)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_or_foreign_file_is_one_clear_line(run, capsys, damage):
    path = run / "run/calibration.npz"
    if damage is None:
        calibration.write_calibration(run / "run", fit(LOGITS, PRESENT), {"parameters": "others"})
        message = "was fitted to other parameters or labels than this run has"
    else:
        path.write_bytes(damage)
        message = "cannot read "
    with pytest.raises(InputError, match=message):
        read_run(run / "run")
    assert main(["evaluate", f"--workdir={run / 'run'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    # The command that the message names mends it.
    assert calibrate(run) == 0
    assert main(["evaluate", f"--workdir={run / 'run'}", "--bootstrap=1"]) == 0
    path.unlink()


def test_no_pickle_is_written_or_read(run):
    calibration.write_calibration(run / "run", fit(LOGITS, PRESENT, "isotonic"), {"parameters": ""})
    with np.load(run / "run/calibration.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype.kind in "fuU" for name in stored.files)
    (run / "run/calibration.npz").unlink()
