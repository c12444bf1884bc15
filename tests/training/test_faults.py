"""A run that cannot continue says so, and one that can does: numbers, disks, damaged checkpoints, SIGTERM."""

import contextlib
import json
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interruption import stopped_after
from processes import SLOWLY, outputs_of, start, wait_until
from small_world import LABELS, train_arguments, write_embeddings
from tiny_clip import config_with, write_clip

from mlclip_jax import InputError
from mlclip_jax.cli import main
from mlclip_jax.configs import mmm_clip, tai
from mlclip_jax.distributed.data_parallel import data_parallel
from mlclip_jax.distributed.sharding import make_mesh, place, replicated
from mlclip_jax.errors import Preempted
from mlclip_jax.runs import read_run
from mlclip_jax.stopping import stop_at_once_on_request
from mlclip_jax.training.interruptions import listening_for_stop
from mlclip_jax.training.metric_log import Log
from mlclip_jax.training.step import apply_gradients, initial_state, make_chunk
from mlclip_jax.training.train import train

SPOILT = (7, 31)  # images whose embeddings are finite, as files must be, but not what is computed of them


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = write_embeddings(tmp_path_factory.mktemp("world"))
    write_clip(folder / "clip", config_with({"text_config.max_position_embeddings": 77}))
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(40, 20)).astype(np.float32)
    names = [f"{i:03}.jpg" for i in range(40)]
    labels = generator.integers(0, 2, (40, len(LABELS))).astype(np.int8)
    for name, value in (("spoilt", 3e38), ("whole", 1.0)):
        embeddings[list(SPOILT)] = value
        np.savez(
            folder / name, embeddings=embeddings, names=names, labels=labels, label_names=np.array(LABELS)
        )
    (folder / "labels.txt").write_text("\n".join(LABELS))
    return folder


def text_config(world, **train):
    config = tai.get_config()
    config.texts.class_embeddings = str(world / "class_embeddings.npz")
    config.texts.number = 300
    config.method.hidden = 32
    config.train.update({"steps": 60, "batch_size": 8, "log_every": 10, "checkpoint_every": 20} | train)
    return config


def image_config(world, images="spoilt", **train):
    """Ten steps are two epochs."""
    config = mmm_clip.get_config("fc")
    config.backbone = str(world / "clip")
    config.texts.labels = str(world / "labels.txt")
    config.examples.embeddings = str(world / f"{images}.npz")
    config.train.update({"steps": 30, "batch_size": 8, "log_every": 10, "checkpoint_every": 10} | train)
    return config


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal(ours, expected):
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


class TestNumbers:
    def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_examples(self, world, tmp_path):
        with pytest.raises(InputError) as raised:
            train(image_config(world), tmp_path)
        [record] = lines_of(tmp_path / "nonfinite.jsonl")
        assert f"step {record['step']} failed: its loss is nan on 0" in str(raised.value)
        assert 1 <= record["step"] <= 5  # within the first epoch
        assert len(record["examples"]) == 8
        assert record["examples"][0] in {f"{i:03}.jpg" for i in SPOILT}
        assert "max_skipped_steps" in str(raised.value)
        assert list((tmp_path / "checkpoints").iterdir()) == []

    def test_such_steps_are_skipped_if_the_config_allows_as_many(self, world, tmp_path, caplog):
        config = image_config(world, max_skipped_steps=12)
        parameters = train(config, tmp_path)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters))
        records = lines_of(tmp_path / "nonfinite.jsonl")
        assert 6 <= len(records) <= 12  # one or two in each epoch
        log = lines_of(tmp_path / "metrics.jsonl")
        assert sum(line.get("skipped_steps", 0) for line in log) == len(records)
        assert all(np.isfinite(line["loss"]) for line in log)
        assert f"warning: step {records[0]['step']} was skipped: its loss is nan on 0" in caplog.text

    def test_but_not_one_more_also_when_the_run_was_stopped_in_between(self, world, tmp_path):
        allowed = len(self.skipped(world, tmp_path / "all")) - 1
        config = image_config(world, max_skipped_steps=allowed)
        with stopped_after(20):
            train(config, tmp_path / "parts")
        with pytest.raises(InputError, match=f"and {allowed} were skipped before"):
            train(config, tmp_path / "parts")
        records = lines_of(tmp_path / "parts/nonfinite.jsonl")
        assert records == lines_of(tmp_path / "all/nonfinite.jsonl")

    def skipped(self, world, workdir):
        train(image_config(world, max_skipped_steps=30), workdir)
        return lines_of(workdir / "nonfinite.jsonl")

    def test_a_skipped_step_changes_nothing(self, world, tmp_path):
        """Neither parameters nor the optimizer's: the others' result is that of a run without it."""
        config = image_config(world, steps=1, batch_size=40, max_skipped_steps=1)
        config.train.log_every = 1
        skipped = train(config, tmp_path / "skipped")
        fresh = train(image_config(world, "whole", steps=1, batch_size=40), tmp_path / "stepped")
        assert not np.array_equal(fresh["linear"]["kernel"], skipped["linear"]["kernel"])
        # Its learning rate has begun anew, and its bias is 0 still.
        np.testing.assert_array_equal(skipped["linear"]["bias"], 0)

    @pytest.mark.devices(2)
    @pytest.mark.parametrize("skip_nonfinite", [True, False])
    def test_a_gradient_that_is_not_finite_is_noticed_though_the_loss_is(self, skip_nonfinite):
        """The slope of a square root at 0 is not finite, and one device meets it."""
        optimizer = optax.sgd(0.1)

        def step(state, frozen, batch, step, hyper):
            del frozen, step, hyper
            total, gradient = jax.value_and_grad(lambda p: jnp.sum(jnp.sqrt(p["x"] * batch)))(
                state["parameters"]
            )
            return apply_gradients(
                optimizer, state, total, jnp.float32(1), gradient, skip_nonfinite=skip_nonfinite
            )

        mesh = make_mesh(jax.devices()[:2])
        state = place(initial_state({"x": np.ones(3, np.float32)}, optimizer), replicated(mesh))
        rows = np.array([1, 1, 1, 0, 1, 1], np.float32)  # the fourth is met at the second step
        chunk = data_parallel(make_chunk(step), "shard_map", mesh)
        indices = np.array([[0, 1], [2, 3], [4, 5]], np.int32)
        state, metrics = chunk(
            state, {}, place(rows, replicated(mesh)), indices, np.arange(3, dtype=np.int32), {}
        )
        state, metrics = jax.device_get((state, metrics))
        assert metrics["finite"].tolist() == ([True, False, True] if skip_nonfinite else [True, False, False])
        assert metrics["skipped"].tolist() == ([0, 1, 1] if skip_nonfinite else [0, 1, 2])
        assert np.isfinite(metrics["loss"][:2]).all()
        assert np.isfinite(state["parameters"]["x"]).all() == skip_nonfinite

    def test_such_a_step_is_reported_as_what_it_is(self, tmp_path):
        log = Log(tmp_path / "metrics.jsonl", 0, names_of=lambda t: [f"{t}.jpg"])
        finite, counts = np.array([True, False]), np.array([0, 1])
        log.add(2, {"loss": np.ones(2), "finite": finite, "skipped": counts})
        with pytest.raises(InputError, match=r"step 2 failed: its gradient is not finite on 1\.jpg"):
            log.write_pending()

    def test_no_metric_of_a_skipped_step_reaches_the_log(self, tmp_path):
        log = Log(tmp_path / "metrics.jsonl", 0, max_skipped=1)
        finite, spoilt = np.array([True, False, True]), np.array([1.0, np.nan, 3.0])
        counts = np.array([0, 1, 1])
        log.add(3, {"loss": spoilt, "other": spoilt, "finite": finite, "skipped": counts, "seconds": 2.0})
        log.write_pending()
        [line] = lines_of(tmp_path / "metrics.jsonl")
        assert line == {"step": 3, "loss": 2.0, "other": 2.0, "seconds": 2.0, "skipped_steps": 1.0}

    def test_allowing_it_changes_no_run_that_is_finite(self, world, tmp_path):
        """But for the rounding: it is another program, which XLA may fuse otherwise."""
        expected = train(image_config(world, "whole"), tmp_path / "0")
        allowed = train(image_config(world, "whole", max_skipped_steps=3), tmp_path / "1")
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), allowed, expected)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """An undisturbed run: its folder and parameters."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(text_config(world), workdir)


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    """The same, stopped after step 50."""
    workdir = tmp_path_factory.mktemp("stopped")
    with stopped_after(50):
        train(text_config(world), workdir)
    return workdir


# When a read fails, orbax gives up the others that it has begun, and these complain.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestCheckpoints:
    @pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "metadata"])
    def test_a_damaged_one_is_reported_and_the_one_before_it_taken(
        self, world, whole, stopped, tmp_path, caplog, damage
    ):
        workdir, expected = whole
        run = shutil.copytree(stopped, tmp_path / "run")
        newest = run / "checkpoints/40"
        for file in (newest / "parameters").rglob("d/*"):
            content = bytearray(file.read_bytes())
            if damage == "flipped":
                content[len(content) // 2] ^= 1
                file.write_bytes(content)
            elif damage == "cut":
                file.write_bytes(content[: len(content) // 2])
            elif damage == "missing":
                file.unlink()
        if damage == "metadata":
            (newest / "_CHECKPOINT_METADATA").write_text("{")
        assert_equal(train(text_config(world), run), expected)
        said = caplog.text
        assert f"warning: the checkpoint {newest} is damaged" in said
        assert (run / "metrics.jsonl").read_text() == (workdir / "metrics.jsonl").read_text()
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["40", "60", "damaged-40"]

    def test_reading_a_run_leaves_a_damaged_one_where_it_is(self, whole, tmp_path):
        shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
        shutil.rmtree(tmp_path / "checkpoints/60/parameters")
        assert read_run(tmp_path).step == 40
        assert (tmp_path / "checkpoints/60").is_dir()

    def test_the_best_is_kept_and_can_be_asked_for(self, world, tmp_path, capsys):
        arguments = train_arguments(
            world, tmp_path, train__evaluate_every=10, train__steps=200, optimizer__learning_rate=3e-2
        )
        assert main(arguments) == 0
        scored = {line["step"]: line["mAP_percent"] for line in lines_of(tmp_path / "metrics.jsonl")}
        best = max(scored, key=scored.get)
        kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
        assert kept == {best, 180, 200}
        assert best < 180, "the test needs a run that gets worse"
        assert read_run(tmp_path, checkpoint="best").step == best
        assert read_run(tmp_path).step == 200
        images = f"--embeddings={world / 'images.npz'}"
        assert main(["evaluate", f"--workdir={tmp_path}", "--checkpoint=best", images]) == 0
        evaluation = json.loads((tmp_path / "evaluation.json").read_text())
        assert evaluation["step"] == best
        assert evaluation["mAP"]["raw"] == pytest.approx(scored[best], rel=1e-6)
        # A run that is gone on with knows it still.
        shutil.rmtree(tmp_path / "checkpoints/200")
        assert main(arguments) == 0
        assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == kept
        capsys.readouterr()

    def test_without_an_evaluation_there_is_no_best(self, whole):
        with pytest.raises(InputError, match="has no best checkpoint, as it was not evaluated on the way"):
            read_run(whole[0], checkpoint="best")


class TestDisk:
    def test_a_full_disk_is_an_error_at_once(self, world, tmp_path):
        """No file may grow beyond 20 kB: the log fits, the arrays do not."""
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"
        steps = {"train__steps": 10**7, "train__checkpoint_every": 100, "evaluation__embeddings": ""}
        process = start(train_arguments(world, tmp_path, **steps, method__hidden=128), preamble=limit)
        [output] = outputs_of([process], 2)
        error = output.splitlines()[-1]
        assert f"mlclip train: error: cannot write checkpoints in {tmp_path / 'checkpoints'} (" in error
        assert "make room" in error
        assert lines_of(tmp_path / "metrics.jsonl")[-1]["step"] < 10_000

    def test_a_disk_without_room_for_checkpoints_is_refused_before_the_first_step(
        self, world, tmp_path, monkeypatch
    ):
        full = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
        with pytest.raises(
            InputError, match=r"has 1,000 bytes left, and the checkpoints of this run need \d"
        ):
            train(text_config(world), tmp_path)

    def test_a_log_that_cannot_be_written(self, world, tmp_path):
        with stopped_after(20):
            train(text_config(world), tmp_path)
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").mkdir()
        with pytest.raises(InputError, match=r"cannot write .*metrics\.jsonl"):
            train(text_config(world), tmp_path)

    def test_a_folder_that_cannot_be_made(self, world, tmp_path, capsys):
        (tmp_path / "file").write_text("")
        assert main(train_arguments(world, tmp_path / "file/run")) == 2
        assert "cannot write in" in capsys.readouterr().err


class TestStop:
    def test_told_to_stop_it_saves_and_goes_on(self, world, tmp_path, capsys):
        settings = {"train__steps": 400, "train__checkpoint_every": 400, "evaluation__embeddings": ""}
        arguments = train_arguments(world, tmp_path / "stopped", **settings)
        process = start(arguments, num_devices=jax.device_count(), preamble=SLOWLY)
        wait_until((tmp_path / "stopped/metrics.jsonl").is_file, process)
        process.send_signal(signal.SIGTERM)
        [output] = outputs_of([process], 75)
        step = lines_of(tmp_path / "stopped/metrics.jsonl")[-1]["step"]
        assert f"stopped on request; saved step {step} of 400 in" in output.splitlines()[-1]
        assert [path.name for path in (tmp_path / "stopped/checkpoints").iterdir()] == [str(step)]
        for name in ("undisturbed", "stopped"):
            assert main(train_arguments(world, tmp_path / name, **settings)) == 0
        assert f"resuming from step {step} of 400" in capsys.readouterr().err
        stopped, undisturbed = (read_run(tmp_path / name).parameters for name in ("stopped", "undisturbed"))
        assert_equal(stopped, undisturbed)
        logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("stopped", "undisturbed")]
        assert logs[0] == logs[1]

    def test_the_order_is_heard_within_the_block_alone(self):
        before = signal.getsignal(signal.SIGTERM)
        went_on = False
        with contextlib.suppress(Preempted), stop_at_once_on_request():
            with listening_for_stop() as asked:
                assert not asked()
                signal.raise_signal(signal.SIGTERM)
                assert asked()
            went_on = True
        assert not went_on  # an order that a run has no use for is passed on
        assert signal.getsignal(signal.SIGTERM) is before

    def test_what_ends_a_run_already_is_not_hidden_by_an_order(self):
        def fail():
            with stop_at_once_on_request(), listening_for_stop():
                signal.raise_signal(signal.SIGTERM)
                raise ValueError("the disk is full")

        with pytest.raises(ValueError, match="the disk is full"):
            fail()

    def test_every_command_ends_by_it(self, tmp_path):
        process = start(["scenes", f"--output={tmp_path}", "--number=1000000"])
        wait_until(lambda: any((tmp_path / "images").glob("*.jpg")), process)
        process.send_signal(signal.SIGTERM)
        [output] = outputs_of([process], 75)
        assert output.splitlines()[-1].startswith("mlclip scenes: stopped on request")

    def test_an_order_in_the_last_steps_of_one_run_keeps_the_next_from_beginning(self, tmp_path):
        """`demo` trains several, one after the other."""
        preamble = """
import mlclip_jax.experiments.demo as demo
from mlclip_jax.experiments import scenes
from mlclip_jax.training.metric_log import Log
demo.FOLDERS = {name: (seed, 60, labels) for name, (seed, _, labels) in demo.FOLDERS.items()}
read = demo.recipes.read
def shorter(name):
    config = read(name)
    config.train.steps = 20
    if "number" in config.texts:
        config.texts.number = 200
    return config
demo.recipes.read = shorter
def add_and_say(self, step, metrics, add=Log.add):
    add(self, step, metrics)
    if step == 20:
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
Log.add = add_and_say
"""
        process = start(["demo", f"--workdir={tmp_path}"], preamble=preamble)
        [output] = outputs_of([process], 75)
        assert "mlclip demo: stopped on request" in output.splitlines()[-1]
        assert [path.name for path in tmp_path.glob("*-seed0")] == ["no_noise-seed0"]

    def test_in_another_thread_no_signal_is_waited_for(self):
        answers = []

        def ask():
            with listening_for_stop() as asked:
                answers.append(asked())

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert answers == [False]
