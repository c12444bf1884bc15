"""`mlclip sweep` as real processes: stopped and killed it ends the same, and two processes are as one."""

import signal

from processes import SLOWLY, finish_together, kill_when, outputs_of, start, wait_until
from small_world import train_arguments, write_embeddings

from mlclip_jax.cli import main


def test_stopped_killed_and_resumed_by_two_processes_it_ends_the_same(tmp_path):
    world, undisturbed, ours = (tmp_path / name for name in ("world", "undisturbed", "ours"))
    world.mkdir()
    write_embeddings(world)

    def arguments(workdir):
        _, *rest = train_arguments(world, workdir, train__steps=100, train__checkpoint_every=25)
        return ["sweep", *rest, "--over=seed=0..1", "--over=perturbation.radius=0,3"]

    assert main(arguments(undisturbed)) == 0

    def steps():
        return {path.name for path in ours.glob("*/checkpoints/*") if path.name.isdigit()}

    process = start(arguments(ours), num_devices=2, preamble=SLOWLY)
    wait_until(lambda: "25" in steps(), process)
    process.send_signal(signal.SIGTERM)
    [output] = outputs_of([process], 75)
    last = output.splitlines()[-1]
    assert "mlclip sweep: stopped on request; saved step " in last
    assert " of 100 of 2 runs; the same command resumes from there" in last
    before = max(map(int, steps()))
    process = start(arguments(ours), num_devices=1, preamble=SLOWLY)
    kill_when([process], lambda: max(map(int, steps())) > before)
    first, second = finish_together(arguments(ours), 2, num_devices=2)
    assert "resuming from step " in first
    assert "mAP" not in second
    for name in ("table.md", "sweep.csv"):
        assert (ours / name).read_text() == (undisturbed / name).read_text()
