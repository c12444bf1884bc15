"""Runs a command of mlclip on all workers of a Cloud TPU VM, through gcloud.

    python launch/tpu_pod.py --name=my-tpu --zone=us-central2-b --install --package="mlclip-jax[tpu] @ URL" \\
        train --config=tai --workdir=/mnt/shared/runs/tai

Each worker starts it again when it has stopped on request and saved, and up to --max_restarts times after a
crash. It keeps running when the connection is lost; the same command then follows it. With --create the VM
is made before, with --delete it is deleted once the run has ended.
"""

import shlex
from pathlib import PurePosixPath

import command
from absl import flags

UNKNOWN_END = (
    1,
    130,
    255,
)  # of gcloud: its own error, Ctrl-C, a lost connection; the run may still be running

INSTALL = """\
set -eu
cd
mkdir -p mlclip-launch
python=
for candidate in python3 python3.13 python3.12 python3.11; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  wait_for_lock=DPkg::Lock::Timeout=300  # a new machine updates itself at first
  sudo apt-get -q -o "$wait_for_lock" update
  sudo apt-get -q -o "$wait_for_lock" install -y python3.11-venv
  python=python3.11
fi
"$python" -m venv mlclip-launch/venv
mlclip-launch/venv/bin/python -m pip install --quiet {package}
"""

RUN = """\
set -u
folder=$HOME/mlclip-launch
mkdir -p "$folder" || exit 2
python=$folder/venv/bin/python
[ -x "$python" ] || python=python3
set -- {words}

{hand_on}
run() {{
  trap '' HUP
  crashes=0
  while :; do
    code=0
    hand_on "$python" -m mlclip_jax "$@" || code=$?
    if [ "$code" -eq 0 ] || [ "$code" -eq 2 ] || [ "$told" -eq 1 ]; then break; fi
    if [ "$code" -ne {restart} ]; then
      crashes=$((crashes + 1))
      if [ "$crashes" -gt {max_restarts} ]; then
        echo "launch/tpu_pod.py: exit code $code, and no restart is left of {max_restarts}"
        code={given_up}
        break
      fi
    fi
    echo "launch/tpu_pod.py: exit code $code; starting again"
    sleep 10  # the other workers notice, and end too
  done
  echo "$code" > "$folder/code"
}}

# The run holds this lock as long as any of its processes lives.
exec 9>> "$folder/lock"
lines=+1
if flock -n 9; then
  rm -f "$folder/code"
  printf '%q ' "$@" > "$folder/command"
  : > "$folder/log"  # here, for `tail` may come before the run
  run "$@" >> "$folder/log" 2>&1 < /dev/null &
  echo "$!" > "$folder/pid"
elif [ "$(printf '%q ' "$@")" = "$(cat "$folder/command")" ]; then
  echo "launch/tpu_pod.py: following the run that is under way here"
  lines=20
else
  echo "launch/tpu_pod.py: another run is under way here: $(cat "$folder/command"); wait, or stop it" >&2
  exit 2
fi
exec 9>&-
tail --pid="$(cat "$folder/pid")" -n "$lines" -f "$folder/log"
code={given_up}  # where the run was killed, and could note nothing
if [ -s "$folder/code" ]; then read -r code < "$folder/code"; fi
exit "$code"
"""


def define_flags(values):
    flags.DEFINE_string("name", None, "of the TPU VM", flag_values=values)
    flags.DEFINE_string("zone", None, "its zone", flag_values=values)
    flags.DEFINE_string("project", None, "its project; by default gcloud's own", flag_values=values)
    flags.DEFINE_boolean("create", False, "make it first", flag_values=values)
    flags.DEFINE_string("accelerator_type", None, "to create it: such as v5litepod-16", flag_values=values)
    flags.DEFINE_string(
        "runtime_version", None, "to create it: such as v2-alpha-tpuv5-lite", flag_values=values
    )
    flags.DEFINE_boolean("spot", False, "create it as a Spot VM, which may be taken away", flag_values=values)
    flags.DEFINE_boolean("delete", False, "delete it once the run has ended", flag_values=values)
    flags.DEFINE_string(
        "setup", None, "a line of shell to run on every worker first, to mount storage", flag_values=values
    )
    flags.DEFINE_boolean("install", False, "install the package on every worker", flag_values=values)
    flags.DEFINE_string("package", None, "what pip is to install then, such as a wheel", flag_values=values)
    flags.DEFINE_integer("max_restarts", 3, "after crashes", lower_bound=0, flag_values=values)


def launch(values, order):
    create, run, delete = gcloud_commands(values, order)
    if values.dry_run:
        for words in (*create, run, *delete):
            print(shlex.join(words))
        return 0
    for words in create:
        code = command.call(words)
        if code:
            return code
    code = command.call(run)
    if code in UNKNOWN_END:
        command.say("the run may still be under way; the same command, without --create, follows it")
        return code
    for words in delete:
        command.call(words)
    return code


def gcloud_commands(values, order):
    """What prepares the TPU VM, what runs there, and what deletes it.

    Returns:
      A list of command lines, one command line, and another list.

    Raises:
      InputError: a flag is missing, or the run's folder would be another on every worker.
    """
    command.require(values, "name", "zone")
    if not PurePosixPath(order.folder).is_absolute():
        raise command.InputError(
            f"{order.folder} would be a folder of each worker's own; give an absolute path, on storage that "
            "all workers see"
        )
    words = shlex.join(order.words("--multihost"))
    script = RUN.format(
        words=words,
        hand_on=command.HAND_ON,
        restart=command.RESTART,
        given_up=command.GIVEN_UP,
        max_restarts=values.max_restarts,
    )
    prepare = []
    if values.create:
        command.require(values, "accelerator_type", "runtime_version")
        prepare.append(
            _tpu_vm(
                values,
                "create",
                f"--accelerator-type={values.accelerator_type}",
                f"--version={values.runtime_version}",
                *["--spot"] * values.spot,
            )
        )
    if values.setup:
        prepare.append(_on_all(values, values.setup))
    if values.install:
        command.require(values, "package")
        prepare.append(_on_all(values, INSTALL.format(package=shlex.quote(values.package))))
    delete = [_tpu_vm(values, "delete", "--quiet")] if values.delete else []
    return prepare, _on_all(values, script), delete


def _on_all(values, script):
    return _tpu_vm(values, "ssh", "--worker=all", f"--command={script}")


def _tpu_vm(values, verb, *options):
    project = [f"--project={values.project}"] if values.project else []
    where = [values.name, f"--zone={values.zone}", *project]
    return ["gcloud", "compute", "tpus", "tpu-vm", verb, *where, *options]


if __name__ == "__main__":
    command.run(define_flags, launch)
