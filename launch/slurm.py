"""Submits a command of mlclip to SLURM, as one process for each GPU of the nodes.

    python launch/slurm.py --nodes=2 --gpus_per_node=4 --time=24:00:00 train --config=tai --workdir=runs/tai

The job is queued again when it has stopped on request and saved (before its time limit, or when it is
pre-empted), and up to --max_restarts times after a crash; invalid input ends it.
"""

import shlex
from pathlib import Path

import command
from absl import flags

SCRIPT = """\
#!/bin/bash
{options}

set -eo pipefail
{setup}set -u  # from here on: what sets up an environment may read variables that are not set

# How a task ends is told by its own exit code: srun's is the highest, and that of a task which was killed, as
# srun kills the others when one fails, hides all others. So the first task to fail notes its code here.
first={log}/$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}.code
crashes={log}/$SLURM_JOB_ID.crashes
task=$(
  cat << 'EOF'
{hand_on}
first=$1
shift
code=0
hand_on "$@" || code=$?
if [ "$code" -ne 0 ]; then
  (set -o noclobber; echo "$code" > "$first") 2> /dev/null || true
fi
exit "$code"
EOF
)

code=0
srun {srun} bash -c "$task" task "$first" \\
  {words} || code=$?
if [ -s "$first" ]; then
  read -r code < "$first"
  rm -f "$first"
fi

case $code in
  0)
    rm -f "$crashes"
    ;;
  {restart})
    echo "launch/slurm.py: stopped in good order; queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
    ;;
  2)
    exit 2
    ;;
  *)
    echo "$code" >> "$crashes"
    if [ "$(wc -l < "$crashes")" -gt {max_restarts} ]; then
      echo "launch/slurm.py: exit code $code, and no restart is left of {max_restarts}" >&2
      exit "$code"
    fi
    echo "launch/slurm.py: exit code $code; queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
    ;;
esac
"""


def define_flags(values):
    flags.DEFINE_integer("nodes", 1, "how many nodes", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("gpus_per_node", 0, "GPUs of each", lower_bound=0, flag_values=values)
    flags.DEFINE_integer(
        "tasks_per_node", None, "processes on each; by default one a GPU", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "cpus_per_task", None, "CPU cores of each process", lower_bound=1, flag_values=values
    )
    flags.DEFINE_string("time", None, "the time limit, such as 24:00:00", flag_values=values)
    flags.DEFINE_string("partition", None, "the partition", flag_values=values)
    flags.DEFINE_string("account", None, "the account", flag_values=values)
    flags.DEFINE_string("job_name", "mlclip", "the job's name", flag_values=values)
    flags.DEFINE_integer(
        "stop_seconds",
        120,
        "SIGTERM so long before the time limit",
        lower_bound=1,
        upper_bound=65535,
        flag_values=values,
    )
    flags.DEFINE_integer("max_restarts", 3, "after crashes", lower_bound=0, flag_values=values)
    flags.DEFINE_string("log", "runs/slurm", "folder of logs, which all nodes see", flag_values=values)
    flags.DEFINE_string(
        "setup", None, "a line of shell to run first, such as 'module load cuda'", flag_values=values
    )
    flags.DEFINE_string("python", command.python(), "the interpreter on the nodes", flag_values=values)
    flags.DEFINE_multi_string(
        "sbatch", [], "another option of sbatch, such as --sbatch=--exclusive", flag_values=values
    )


def launch(values, order):
    script = write_script(values, order)
    if values.dry_run:
        print(script, end="")
        return 0
    try:
        Path(values.log).mkdir(parents=True, exist_ok=True)  # SLURM makes none, and drops the log without it
    except OSError as error:
        raise command.InputError(f"cannot make --log={values.log}: {error.strerror}; give another") from error
    return command.call(["sbatch"], input=script, text=True)


def write_script(values, order):
    """The batch script, a string.

    Raises:
      InputError: it would not mean what the flags say.
    """
    tasks = values.tasks_per_node or max(1, values.gpus_per_node)
    if values.gpus_per_node not in (0, tasks):
        raise command.InputError(
            f"--gpus_per_node={values.gpus_per_node} with --tasks_per_node={tasks} is invalid: "
            "under SLURM a process has one GPU; leave --tasks_per_node out"
        )
    options = {
        "job-name": values.job_name,
        "nodes": values.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": values.gpus_per_node or None,
        "cpus-per-task": values.cpus_per_task,
        "time": values.time,
        "partition": values.partition,
        "account": values.account,
        "signal": f"TERM@{values.stop_seconds}",  # to the tasks, not to the script
        "output": f"{values.log}/%x-%j.log",
        "open-mode": "append",
    }
    lines = [f"--{name}={shlex.quote(str(value))}" for name, value in options.items() if value is not None]
    lines += ["--requeue", *values.sbatch]
    for line in lines:
        if not line.isprintable():
            raise command.InputError(f"{line!r} is no option of sbatch: it must be one line of text")
    srun = ["--kill-on-bad-exit=1"]
    if values.cpus_per_task:
        srun.append(f"--cpus-per-task={values.cpus_per_task}")  # which srun no longer takes from sbatch
    return SCRIPT.format(
        options="\n".join(f"#SBATCH {line}" for line in lines),
        setup=f"{values.setup}\n" if values.setup else "",
        log=shlex.quote(values.log),
        hand_on=command.HAND_ON,
        srun=shlex.join(srun),
        words=shlex.join([values.python, "-m", "mlclip_jax", *order.words("--multihost")]),
        restart=command.RESTART,
        max_restarts=values.max_restarts,
    )


if __name__ == "__main__":
    command.run(define_flags, launch)
