"""The launchers: what they would run and do run, that it arrives unchanged, and what follows each end."""

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from processes import PATIENCE
from small_world import train_arguments, write_embeddings

from mlclip_jax.cli import RESTART

LAUNCH = Path(__file__).parents[1] / "launch"
sys.path.append(str(LAUNCH))  # as Python does for a script in there
command, gke, local, slurm, tpu_pod = map(importlib.import_module, "command gke local slurm tpu_pod".split())

AWKWARD = [
    "--backbone=a b",
    '--images=it\'s $(touch x) "so" `y` $$ \\ é☃',
    "--template={}%s\n #!*",
    "--output=/runs/x",
]
GPUS = ["--name=tai", "--image=an/image:1", "--claim=runs", "--nodes=2", "--gpus=8"]
TPU = [
    *["--name=tai", "--image=an/image:1", "--claim=runs", "--nodes=4"],
    *["--tpu_accelerator=tpu-v5-lite-podslice", "--tpu_topology=4x4", "--tpu_chips=4"],
]
TRAIN = ["train", "--config=tai", "--workdir=/runs/tai"]


@pytest.fixture
def launch(monkeypatch, capfd):
    """Runs a launcher within this process: gives its exit code, output and words on standard error."""

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            command.run(module.define_flags, module.launch)
        return stopped.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Programs of the outside world, stood in for: `tools(name, text)` puts one on the path."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def add(name, text):
        path = folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    return add


def real(name, *arguments, **settings):
    """A launcher as a user starts it."""
    words = [sys.executable, LAUNCH / name, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE, **settings)


def shellcheck(script):
    # Not: variables within single quotes, as a user's arguments may have them.
    words = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", "--exclude=SC2016", "-"]
    done = subprocess.run(words, input=script, capture_output=True, text=True, check=False)
    assert not done.stdout, done.stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# What they refuse, and print.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command: after the launcher's flags comes one of train, sweep, pretrain, embed"),
        (["evaluate", "--workdir=x"], "cannot launch 'evaluate': give one of train, sweep, pretrain, embed"),
        (["--num_procesess=2", *TRAIN], r"flag 'num_procesess'. Did you mean: num_processes"),
        (["--num_processes=0", *TRAIN], "--num_processes=0: 0 is not a positive integer"),
        (["train", "--config=tai"], "--workdir is missing"),
        ([*TRAIN, "--config.train.stpes=3"], "no such config key: 'stpes'; did you mean 'steps'"),
        ([*TRAIN, "--multihost"], "--multihost is given by the launcher; leave it out"),
        ([*TRAIN, "--process_id", "1"], "--process_id is given by the launcher; leave it out"),
        (["--devices_per_process=1", "--gpus_per_process=1", *TRAIN], "give either --devices_per_process"),
    ],
)
def test_what_cannot_be_launched_is_refused_in_one_line(launch, arguments, message):
    code, output, errors = launch(local, *arguments)
    assert (code, output) == (2, "")
    assert re.fullmatch(f"launch/local.py: error: .*{message}.*\n", errors)


def test_a_misspelt_key_is_refused_by_the_real_program():
    done = real("local.py", *TRAIN, "--config.train.stpes=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "launch/local.py: error: no such config key: 'stpes'; did you mean 'steps'?\n"


def test_a_python_without_the_package_is_named():
    words = [sys.executable, "-S", LAUNCH / "gke.py", *TRAIN]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r".*gke.py: error: .* has no module 'absl'; run this with .*\n", done.stderr)


@pytest.mark.parametrize("module", [local, slurm, tpu_pod, gke])
def test_they_list_their_flags(launch, module):
    code, output, _ = launch(module, "--help")
    assert code == 0
    assert f"python launch/{module.__name__}.py" in output
    assert re.search(r"\n  --dry_run +print what would run, and run nothing\n", output)


@pytest.mark.parametrize(
    ("module", "program", "arguments"),
    [
        (slurm, "sbatch", ["--log={folder}", *TRAIN]),
        (tpu_pod, "gcloud", ["--name=t", "--zone=z", *TRAIN]),
        (gke, "kubectl", [*GPUS, *TRAIN]),
    ],
)
def test_a_program_that_is_not_there_is_named(launch, monkeypatch, tmp_path, module, program, arguments):
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = launch(module, *(argument.format(folder=tmp_path) for argument in arguments))
    assert code == 2
    assert f"error: there is no {program} here; install it" in errors


# On this machine.


def test_local_dry_run():
    done = real("local.py", "--dry_run", "--devices_per_process=2", "train", "--config=tai", "--workdir=a b")
    port = re.search(r"localhost:(\d+)", done.stdout)[1]
    expected = (
        f"JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 {sys.executable} -m mlclip_jax train "
        f"--coordinator=localhost:{port} --num_processes=2 --process_id={{}} --config=tai '--workdir=a b'\n"
    )
    assert (done.returncode, done.stdout) == (0, expected.format(0) + expected.format(1)), done.stderr


@pytest.mark.parametrize(
    ("visible", "shares"),
    [(None, ["0,1", "2,3"]), ("4,5,6,7,1", ["4,5", "6,7"]), ("4,5,6", None), ("", None)],
)
def test_each_process_has_gpus_of_its_own(launch, monkeypatch, visible, shares):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    code, output, errors = launch(local, "--dry_run", "--gpus_per_process=2", *TRAIN)
    if shares:
        assert re.findall(r"^CUDA_VISIBLE_DEVICES=(\S+) ", output, re.MULTILINE) == shares
    else:
        assert code == 2
        assert f"CUDA_VISIBLE_DEVICES={visible} names {len(visible) // 2 + len(visible) % 2} GPUs" in errors


SUPERVISE = """
import json, sys
import local
programs, restarts, grace = json.loads(sys.argv[1])
commands = [["bash", "-c", program] for program in programs]
sys.exit(local.supervise(lambda: commands, [{"I": str(i)} for i in range(len(commands))], restarts, grace))
"""
# A process that notes its id and that of a child of its own, then waits.
WAITS = 'sleep 600 & echo "$$ $!" > pids$I.new; mv pids$I.new pids$I; wait'


def supervise(folder, *programs, max_restarts=0, grace_seconds=60):
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, json.dumps([programs, max_restarts, grace_seconds])],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(LAUNCH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pids(folder, *processes):
    wait_until(lambda: all((folder / f"pids{i}").exists() for i in processes))
    return [int(pid) for i in processes for pid in (folder / f"pids{i}").read_text().split()]


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until_gone(pids):
    wait_until(lambda: all(map(is_gone, pids)))


def test_output_is_passed_on_line_by_line(tmp_path):
    """One process writes while the other is in the middle of a line."""
    first = "echo one; printf h; touch begun; until [ -e written ]; do sleep 0.01; done; printf é"
    second = "until [ -e begun ]; do sleep 0.01; done; echo two; echo three >&2; touch written"
    process = supervise(tmp_path, first, second)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "[1] three\n")
    assert sorted(output.splitlines()) == ["[0] hé", "[0] one", "[1] two"]
    assert output.index("one") < output.index("hé")
    alone = supervise(tmp_path, "echo one")
    assert alone.communicate(timeout=PATIENCE) == ("one\n", "")


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_one_that_fails_ends_the_others(tmp_path, end, code):
    process = supervise(tmp_path, WAITS, f"until [ -e pids0 ]; do :; done; {end}", grace_seconds=0.1)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    wait_until_gone(pids(tmp_path, 0))
    assert f"process 1 ended with exit code {code}\n" in errors
    assert "ending the others, 0.1 seconds after the first" in errors


@pytest.mark.parametrize(
    ("ends", "max_restarts", "code", "starts"),
    [
        ([0], 3, 0, 1),
        ([2], 3, 2, 1),  # the user's to mend
        ([1], 0, 1, 1),
        ([1, 1, 0], 2, 0, 3),
        ([1, 1, 1], 2, 1, 3),
        ([75, 75, 0], 0, 0, 3),  # stopped in good order, by a signal that the launcher was not sent
        ([75, 1, 75, 1, 0], 2, 0, 5),
    ],
)
def test_what_is_started_again(tmp_path, ends, max_restarts, code, starts):
    program = f"echo >> starts; ends=({' '.join(map(str, ends))}); exit ${{ends[$(wc -l < starts) - 1]}}"
    process = supervise(tmp_path, program, max_restarts=max_restarts)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert (tmp_path / "starts").read_text().count("\n") == starts
    assert errors.count("starting again after exit code ") == starts - 1
    if code == 2:
        assert not errors


def test_it_does_not_start_again_for_ever(monkeypatch):
    monkeypatch.setattr(local, "MAX_STOPS", 3)
    ends = []
    monkeypatch.setattr(local, "run_once", lambda *_: ends.append(RESTART) or (RESTART, False))
    handlers = [signal.getsignal(number) for number in local.SIGNALS]
    try:
        assert local.supervise(lambda: [], [], 0, 0) == RESTART
    finally:
        for number, handler in zip(local.SIGNALS, handlers):
            signal.signal(number, handler)
    assert len(ends) == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_waits_for_all_and_leaves_none(tmp_path, number):
    saves = f'trap "sleep 0.3; echo saved; exit 75" {number.name}; {WAITS}'
    process = supervise(tmp_path, saves, saves, max_restarts=3)
    started = pids(tmp_path, 0, 1)
    process.send_signal(number)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (RESTART, "")
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]
    wait_until_gone(started)  # and so are their children


def test_told_twice_it_ends_them_at_once(tmp_path):
    deaf = f"trap 'touch heard$I' TERM; {WAITS}; sleep 600"
    process = supervise(tmp_path, deaf, deaf)
    started = pids(tmp_path, 0, 1)
    process.send_signal(signal.SIGTERM)
    wait_until(lambda: all((tmp_path / f"heard{i}").exists() for i in range(2)))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGKILL
    wait_until_gone(started)


def test_none_outlives_a_launcher_that_was_killed(tmp_path):
    process = supervise(tmp_path, WAITS, WAITS)
    started = pids(tmp_path, 0, 1)
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_until_gone(started)


def test_two_processes_train(tmp_path):
    world = write_embeddings(tmp_path)
    arguments = train_arguments(world, tmp_path / "run", train__steps=20)
    done = real("local.py", "--devices_per_process=1", *arguments)
    assert done.returncode == 0, done.stderr
    assert all(re.match(r"\[[01]\] ", line) for line in done.stdout.splitlines())
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10, 20]
    assert (tmp_path / "run/evaluation.json").exists()


# SLURM.


def test_slurm_dry_run():
    flags = [*["--nodes=2", "--gpus_per_node=4", "--cpus_per_task=8", "--time=24:00:00", "--account=us"]]
    flags += [
        "--job_name=a run",
        "--setup=module load cuda",
        "--sbatch=--exclusive",
        "--python=/env/bin/python",
    ]
    done = real("slurm.py", "--dry_run", *flags, "train", "--config=tai", "--workdir=runs/a b")
    assert done.returncode == 0, done.stderr
    head, rest = done.stdout.split("\n\n", 1)
    assert (
        head
        == """\
#!/bin/bash
#SBATCH --job-name='a run'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --account=us
#SBATCH --signal=TERM@120
#SBATCH --output=runs/slurm/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --exclusive"""
    )
    assert rest.startswith("set -eo pipefail\nmodule load cuda\nset -u  # ")
    assert (
        """
code=0
srun --kill-on-bad-exit=1 --cpus-per-task=8 bash -c "$task" task "$first" \\
  /env/bin/python -m mlclip_jax train --multihost --config=tai '--workdir=runs/a b' || code=$?
"""
        in rest
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpus_per_node=4", "--tasks_per_node=1"], "under SLURM a process has one GPU"),
        (["--job_name=a\n#SBATCH --nodes=9"], "must be one line of text"),
        (["--stop_seconds=70000"], "--stop_seconds=70000: 70000 is not an integer in the range"),
    ],
)
def test_what_slurm_could_not_run_is_refused(launch, flags, message):
    code, output, errors = launch(slurm, "--dry_run", *flags, *TRAIN)
    assert (code, output) == (2, "")
    assert message in errors


def test_it_is_submitted_as_it_was_shown(launch, tools, tmp_path):
    tools("sbatch", f'#!/bin/bash\necho "$# arguments"\ncat > {tmp_path}/script\nexit 3\n')
    flags = [f"--log={tmp_path}/a log", "--sbatch=--qos=high", *TRAIN]
    code, output, _ = launch(slurm, *flags)
    assert (code, output) == (3, "0 arguments\n")
    assert (tmp_path / "script").read_text() == launch(slurm, "--dry_run", *flags)[1]
    assert (tmp_path / "a log").is_dir()


# As srun with --kill-on-bad-exit: two tasks; once one fails, the other is told to end, and soon killed; then
# the highest exit code, or the signal, which hides all exit codes. STOP has it signal the tasks, but not what
# these have started.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
words = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(words, env=os.environ | {{"SLURM_PROCID": str(i)}}, process_group=0) for i in range(2)
]
if "STOP" in os.environ:
    while len([name for name in os.listdir() if name.startswith("ready")]) < 2:
        time.sleep(0.01)
    for task in tasks:
        task.send_signal(signal.SIGTERM)
while None in [task.poll() for task in tasks]:
    if any(task.returncode for task in tasks):
        for task in tasks:
            if task.poll() is None:
                task.send_signal(signal.SIGTERM)
                time.sleep(0.2)
                os.killpg(task.pid, signal.SIGKILL)
    time.sleep(0.01)
codes = [task.wait() for task in tasks]
signals = [-code for code in codes if code < 0]
sys.exit(128 + max(signals) if signals else max(codes))
"""
# As mlclip: notes its arguments, then ends as ENDS says for its process. HANGS does not notice SIGTERM.
PROGRAM = """#!/bin/bash
printf '%s\\0' "$@" > "arguments$SLURM_PROCID"
ends=($ENDS)
case ${ends[SLURM_PROCID]} in
  hangs) trap '' TERM; sleep 600 ;;
  saves) trap 'exit 75' TERM; touch "ready$SLURM_PROCID"; while :; do sleep 0.05; done ;;
  *) exit "${ends[SLURM_PROCID]}" ;;
esac
"""


@pytest.fixture
def job(launch, tools, tmp_path, monkeypatch):
    """A submitted job: `job(ends)` runs it once more; gives its code, and whether it was queued again."""
    monkeypatch.chdir(tmp_path)
    tools("srun", SRUN)
    tools("scontrol", '#!/bin/bash\necho "$@" > requeued\n')
    python = tools("python of the nodes", PROGRAM)
    (tmp_path / "a log").mkdir()
    flags = [
        "--tasks_per_node=2",
        "--max_restarts=2",
        "--log=a log",
        f"--python={python}",
        '--setup=: "$UNSET"',
    ]
    script = launch(slurm, "--dry_run", *flags, "embed", *AWKWARD)[1]
    shellcheck(script)
    runs = []

    def run(ends, **variables):
        (tmp_path / "requeued").unlink(missing_ok=True)
        restarts = {"SLURM_RESTART_COUNT": str(len(runs))} if runs else {}
        runs.append(ends)
        done = subprocess.run(
            ["bash"],
            input=script,
            env=os.environ | {"ENDS": ends, "SLURM_JOB_ID": "17"} | restarts | variables,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        requeued = tmp_path / "requeued"
        return done.returncode, requeued.exists() and requeued.read_text() == "requeue 17\n"

    return run


def test_under_slurm_arguments_arrive_unchanged(job, tmp_path):
    assert job("0 0") == (0, False)
    expected = ["-m", "mlclip_jax", "embed", "--multihost", *AWKWARD]
    for process in range(2):
        assert (tmp_path / f"arguments{process}").read_text() == "".join(f"{word}\0" for word in expected)
    assert not list((tmp_path / "a log").iterdir())
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("2 2", (2, False)),
        ("hangs 2", (2, False)),  # srun says 137
        ("75 75", (0, True)),
        ("75 hangs", (0, True)),
        ("1 hangs", (0, True)),
        ("hangs 134", (0, True)),
    ],
)
def test_what_slurm_queues_again(job, ends, expected):
    assert job(ends) == expected


def test_crashes_under_slurm_are_counted_and_stops_are_not(job, tmp_path):
    for ends in ("75 75", "1 hangs", "75 75", "75 75", "hangs 1"):
        assert job(ends) == (0, True)
    assert job("1 1") == (1, False)
    assert [path.name for path in (tmp_path / "a log").iterdir()] == ["17.crashes"]


def test_slurms_order_to_stop_reaches_the_program(job):
    assert job("saves saves", STOP="1") == (0, True)


# Cloud TPU.


def test_tpu_pod_dry_run():
    flags = [
        "--name=my-tpu",
        "--zone=us-west4-a",
        "--project=p",
        "--create",
        "--spot",
        "--delete",
        "--install",
        "--package=mlclip-jax[tpu]",
    ]
    flags += ["--accelerator_type=v5litepod-16", "--runtime_version=v2-alpha-tpuv5-lite", "--setup=mount it"]
    done = real("tpu_pod.py", "--dry_run", *flags, "train", "--config=tai", "--workdir=/runs/a b")
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout)
    starts = [i for i, word in enumerate(words) if word == "gcloud"]
    create, setup, install, run, delete = (words[a:b] for a, b in zip(starts, [*starts[1:], None]))
    where = "my-tpu --zone=us-west4-a --project=p"
    gcloud = "gcloud compute tpus tpu-vm"
    kind = "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite"
    assert " ".join(create) == f"{gcloud} create {where} {kind} --spot"
    assert " ".join(delete) == f"{gcloud} delete {where} --quiet"
    assert done.stdout.startswith(" ".join(create) + "\n")
    assert done.stdout.endswith("\n" + " ".join(delete) + "\n")
    for ssh, line in (
        (setup, "mount it"),
        (install, "mlclip-launch/venv/bin/python -m pip install --quiet 'mlclip-jax[tpu]'"),
        (run, "set -- train --multihost --config=tai '--workdir=/runs/a b'"),
    ):
        *head, script = ssh
        assert " ".join(head) == f"{gcloud} ssh {where} --worker=all"
        script = script.removeprefix("--command=")
        assert line in script.splitlines()
        shellcheck(script)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--name=t", *TRAIN], "--zone is missing"),
        (["--name=t", "--zone=z", "--create", *TRAIN], "--accelerator_type is missing"),
        (["--name=t", "--zone=z", "train", "--config=tai", "--workdir=runs/tai"], "give an absolute path"),
    ],
)
def test_what_a_tpu_could_not_run_is_refused(launch, flags, message):
    code, output, errors = launch(tpu_pod, "--dry_run", *flags)
    assert (code, output) == (2, "")
    assert message in errors


@pytest.mark.parametrize(
    ("code", "verbs"),
    [
        (0, "create ssh ssh delete"),
        (70, "create ssh ssh delete"),
        (255, "create ssh ssh"),  # the connection was lost, and the run may go on
    ],
)
def test_a_tpu_is_deleted_once_its_run_has_ended(launch, tools, tmp_path, code, verbs):
    text = f"""#!/bin/bash
echo "$4" >> {tmp_path}/verbs
case "$*" in *hand_on*) exit {code} ;; esac
"""
    tools("gcloud", text)
    flags = ["--name=t", "--zone=z", "--create", "--accelerator_type=a", "--runtime_version=b"]
    flags += ["--install", "--package=p"]
    assert launch(tpu_pod, *flags, "--delete", *TRAIN)[0] == code
    assert (tmp_path / "verbs").read_text().split() == verbs.split()


def test_without_a_tpu_nothing_else_is_tried(launch, tools, tmp_path):
    tools("gcloud", f'#!/bin/bash\necho "$4" >> {tmp_path}/verbs\nexit 1\n')
    flags = ["--name=t", "--zone=z", "--create", "--accelerator_type=a", "--runtime_version=b", "--delete"]
    assert launch(tpu_pod, *flags, *TRAIN)[0] == 1
    assert (tmp_path / "verbs").read_text() == "create\n"


# As gcloud: runs the command in a shell on two workers, and ends with the code of the first that failed.
GCLOUD = """#!/bin/bash
script=${*: -1}
codes=()
for worker in 0 1; do
  HOME=$PWD/worker$worker bash -c "${script#--command=}" &
  children[worker]=$!
done
for worker in 0 1; do
  code=0
  wait "${children[worker]}" || code=$?
  codes+=("$code")
done
[ "${codes[0]}" -ne 0 ] || exit "${codes[1]}"
exit "${codes[0]}"
"""
# As mlclip: notes its arguments; ends as "ends" says for each of its starts.
STARTED = """#!/bin/bash
printf '%s\\0' "$@" > "$HOME/arguments"
echo >> "$HOME/starts"
ends=($(cat ends))
echo "start $(wc -l < "$HOME/starts")"
case ${ends[$(wc -l < "$HOME/starts") - 1]} in
  saves) trap 'exit 75' TERM; touch "$HOME/ready"; while :; do sleep 0.05; done ;;
  goes) touch "$HOME/ready"; until [ -e go ]; do sleep 0.05; done ;;
  *) exit "${ends[$(wc -l < "$HOME/starts") - 1]}" ;;
esac
"""


@pytest.fixture
def pod(tools, tmp_path, monkeypatch):
    """A TPU VM of two workers: `pod(arguments)` starts a launcher for it."""
    monkeypatch.chdir(tmp_path)
    tools("gcloud", GCLOUD)
    # The pause before a restart, left out.
    tools("sleep", '#!/bin/bash\n[ "$1" = 10 ] || exec /bin/sleep "$@"\n')
    for worker in range(2):
        python = tmp_path / f"worker{worker}/mlclip-launch/venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(STARTED)
        python.chmod(0o755)

    def start(*arguments):
        flags = ["--name=t", "--zone=z", "--max_restarts=1"]
        return subprocess.Popen(
            [sys.executable, LAUNCH / "tpu_pod.py", *flags, "embed", *AWKWARD, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize(
    ("ends", "code", "starts"),
    [("75 1 75 0", 0, 4), ("75 1 134", 70, 3), ("2", 2, 1)],
)
def test_what_a_tpu_starts_again(pod, tmp_path, ends, code, starts):
    (tmp_path / "ends").write_text(ends)
    process = pod()
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, errors
    assert output.count(f"start {starts}\n") == 2
    for worker in range(2):
        assert (tmp_path / f"worker{worker}/starts").read_text().count("\n") == starts
        expected = ["-m", "mlclip_jax", "embed", "--multihost", *AWKWARD]
        written = (tmp_path / f"worker{worker}/arguments").read_text()
        assert written == "".join(f"{word}\0" for word in expected)
    assert not (tmp_path / "x").exists()


def test_a_run_on_a_tpu_goes_on_without_its_connection(pod, tmp_path):
    (tmp_path / "ends").write_text("goes")
    process = pod()
    wait_until(lambda: all((tmp_path / f"worker{i}/ready").exists() for i in range(2)))
    for tail in subprocess.run(
        ["pgrep", "-f", f"tail .*{tmp_path}/worker"], capture_output=True, text=True, check=True
    ).stdout.split():
        os.kill(int(tail), signal.SIGKILL)  # as a lost connection does to what speaks through it
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    other = pod("--batch_size=8")
    assert "another run is under way here: embed --multihost " in other.communicate(timeout=PATIENCE)[1]
    assert other.returncode == 2
    follower = pod()
    assert follower.stdout.readline() == "launch/tpu_pod.py: following the run that is under way here\n"
    (tmp_path / "go").touch()
    follower.communicate(timeout=PATIENCE)
    assert follower.returncode == 0
    assert (tmp_path / "worker0/starts").read_text() == "\n"


def test_a_run_on_a_tpu_can_be_stopped(pod, tmp_path):
    (tmp_path / "ends").write_text("saves")
    process = pod()
    wait_until(lambda: all((tmp_path / f"worker{i}/ready").exists() for i in range(2)))
    stop = 'kill "$(cat mlclip-launch/pid)"'  # as README.md has it
    for worker in range(2):
        subprocess.run(["bash", "-c", stop], cwd=tmp_path / f"worker{worker}", check=True)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == RESTART
    assert (tmp_path / "worker1/starts").read_text() == "\n"


# Kubernetes.


def test_gke_dry_run():
    done = real("gke.py", "--dry_run", *TPU, "--spot", "--namespace=ml", "--service_account=sa", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout
        == """\
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: tai
  namespace: ml
spec:
  failurePolicy:
    maxRestarts: 3
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons:
      - PodFailurePolicy
  replicatedJobs:
  - name: worker
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        parallelism: 4
        completions: 4
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes:
              containerName: mlclip
              operator: In
              values:
              - 2
          - action: Ignore
            onExitCodes:
              containerName: mlclip
              operator: In
              values:
              - 75
          - action: Ignore
            onPodConditions:
            - type: DisruptionTarget
              status: 'True'
        template:
          spec:
            restartPolicy: Never
            terminationGracePeriodSeconds: 120
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: tpu-v5-lite-podslice
              cloud.google.com/gke-tpu-topology: 4x4
              cloud.google.com/gke-spot: 'true'
            containers:
            - name: mlclip
              image: an/image:1
              command:
              - python
              - -m
              - mlclip_jax
              args:
              - train
              - --multihost
              - --config=tai
              - --workdir=/runs/tai
              resources:
                limits:
                  google.com/tpu: 4
              volumeMounts:
              - name: runs
                mountPath: /runs
            volumes:
            - name: runs
              persistentVolumeClaim:
                claimName: runs
            serviceAccountName: sa
            tolerations:
            - key: cloud.google.com/gke-spot
              operator: Equal
              value: 'true'
              effect: NoSchedule
"""
    )


@pytest.mark.parametrize(
    "flags", [TPU, [*TPU, "--spot", "--namespace=ml"], GPUS, [*GPUS, "--gpu_accelerator=nvidia-l4"]]
)
def test_the_jobset_is_one(launch, flags):
    manifest = yaml.safe_load(launch(gke, "--dry_run", *flags, *TRAIN)[1])
    schema = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest, schema)
    manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["restartPolicies"] = "Never"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, schema)


def test_processes_with_gpus_find_the_first(launch):
    manifest = yaml.safe_load(launch(gke, "--dry_run", *GPUS, *TRAIN)[1])
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][:4] == [
        "train",
        "--coordinator=tai-worker-0-0.tai:8476",
        "--num_processes=2",
        "--process_id=$(JOB_COMPLETION_INDEX)",
    ]
    assert container["env"][0]["name"] == "JOB_COMPLETION_INDEX"
    assert {"name": "shared-memory", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]


def expanded(argument, variables):
    """What Kubernetes makes of an argument: $(NAME) is a variable's value, $$ is $."""

    def replace(match):
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replace, argument)


@given(st.lists(st.text("$()A \\'\"é\n", max_size=12)))
def test_kubernetes_gives_arguments_unchanged(words):
    values = gke.command.flags.FlagValues()
    gke.define_flags(values)
    values(["gke", *GPUS])
    order = command.Command("train", tuple(words), "/runs/x")
    manifest = yaml.safe_load(yaml.safe_dump(gke.make_manifest(values, order), allow_unicode=True))
    (container,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    variables = {"JOB_COMPLETION_INDEX": "1", "A": "expanded"}
    arguments = [expanded(argument, variables) for argument in container["args"]]
    assert arguments[3:] == ["--process_id=1", *words]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([*GPUS, "train", "--config=tai", "--workdir=/elsewhere"], "/elsewhere is not in --mount=/runs"),
        ([*GPUS, "train", "--config=tai", "--workdir=/runs/../x"], "/runs/../x is not in --mount=/runs"),
        ([*GPUS, "train", "--config=tai", "--workdir=runs/tai"], "runs/tai is not in --mount=/runs"),
        ([*GPUS, "--mount=runs", "train", "--config=tai", "--workdir=runs/tai"], "is not in --mount=runs"),
        ([*GPUS, "--name=My_run", *TRAIN], "--name=My_run: must be of a-z, 0-9 and -"),
        ([*GPUS, f"--name={'x' * 60}", *TRAIN], "have at most 46 characters"),
        ([*GPUS[1:], *TRAIN], "--name is missing"),
        ([*GPUS[:-1], *TRAIN], "give either --tpu_accelerator, --tpu_topology, --tpu_chips or --gpus"),
        ([*GPUS, "--tpu_chips=4", *TRAIN], "give either --tpu_accelerator, --tpu_topology, --tpu_chips or"),
        ([*TPU[:-1], *TRAIN], "--tpu_chips is missing"),
        ([*TPU, "--nodes=2", *TRAIN], "--tpu_topology=4x4 has 16 chips, --nodes=2 with --tpu_chips=4 8"),
        ([*TPU, "--tpu_topology=4by4", *TRAIN], "--tpu_topology=4by4: give one such as 4x4"),
    ],
)
def test_what_kubernetes_could_not_run_is_refused(launch, flags, message):
    code, output, errors = launch(gke, "--dry_run", *flags)
    assert (code, output) == (2, "")
    assert message in errors


def test_it_is_applied_as_it_was_shown(launch, tools, tmp_path):
    tools("kubectl", f'#!/bin/bash\necho "$@"\ncat > {tmp_path}/manifest\nexit 4\n')
    assert launch(gke, *GPUS, *TRAIN)[:2] == (4, "apply -f -\n")
    assert (tmp_path / "manifest").read_text() == launch(gke, "--dry_run", *GPUS, *TRAIN)[1]
