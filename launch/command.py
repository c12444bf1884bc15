"""What the launchers share: how they read their flags and the command they start, and refuse a wrong one."""

import importlib
import itertools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

try:
    from absl import flags

    from mlclip_jax import cli
    from mlclip_jax.errors import InputError
except ModuleNotFoundError as missing:
    print(
        f"{sys.argv[0]}: error: {sys.executable} has no module {missing.name!r}; "
        "run this with the Python that mlclip-jax is installed for, such as .venv/bin/python",
        file=sys.stderr,
    )
    sys.exit(2)

LAUNCHED = ("train", "sweep", "pretrain", "embed")  # the commands that run as several processes
RESTART = cli.RESTART  # how a run ends that stopped on request, and resumes when it is started again
GIVEN_UP = 70  # EX_SOFTWARE of sysexits.h: it crashed once more than it may be started again

# A shell function: runs a command, hands SIGTERM on to it, and returns the command's own exit code; `told` is
# then 1 if it was signalled.
HAND_ON = """\
hand_on() {
  told=0
  "$@" &
  child=$!
  trap 'told=1 woken=1; kill -TERM "$child" 2> /dev/null' TERM
  woken=1
  while [ "$woken" -eq 1 ]; do  # the signal ends "wait", not the command
    woken=0
    code=0
    wait "$child" || code=$?
  done
  trap - TERM
  return "$code"
}
"""


class Command(NamedTuple):
    """What is launched: a command's name, its arguments as they were given, and the folder that it writes."""

    name: str
    arguments: tuple
    folder: str

    def words(self, *process_flags):
        """What follows `mlclip`, with the flags that make it one of several processes."""
        return [self.name, *process_flags, *self.arguments]


def run(define_flags, launch):
    """A launcher as a program: reads its flags and its command, checks both, launches, and exits.

    Args:
      define_flags: defines the launcher's own flags on a `FlagValues`.
      launch: `launch(values, command)`, of the parsed `FlagValues` and a `Command`; returns the exit code.
        The docstring of its module is the launcher's help.
    """
    try:
        sys.exit(_read_and_launch(sys.argv, define_flags, launch))
    except InputError as error:
        print(f"{_program(sys.argv)}: error: {error}", file=sys.stderr)
        sys.exit(2)


def _read_and_launch(argv, define_flags, launch):
    values = flags.FlagValues()
    flags.DEFINE_boolean("dry_run", False, "print what would run, and run nothing", flag_values=values)
    define_flags(values)
    own = itertools.takewhile(lambda word: word.startswith("-"), argv[1:])
    if {"-h", "--help"} & set(own):
        _print_help(sys.modules[launch.__module__].__doc__, values)
        return 0
    values.set_gnu_getopt(False)  # what follows the first word that is no flag is left as it is
    try:
        words = values(argv)[1:]
    except (flags.Error, ValueError) as error:
        raise InputError(str(error).strip().splitlines()[-1]) from error
    if not words:
        raise InputError(f"no command: after the launcher's flags comes one of {', '.join(LAUNCHED)}")
    return launch(values, _check(*words))


def _print_help(text, values):
    print(f"{text}\nFlags:")
    for name in values:
        flag = values[name]
        default = f" (default {flag.default})" if flag.default else ""
        print(f"  --{name:<19}{' '.join(flag.help.split())}{default}")


def _check(name, *arguments):
    """The `Command` of these words, once its flags, recipe, variant and keys have been found to exist."""
    from mlclip_jax.commands.parsing import parse_flags
    from mlclip_jax.distributed.processes import PROCESS_FLAGS

    if name not in LAUNCHED:
        raise InputError(f"cannot launch {name!r}: give one of {', '.join(LAUNCHED)}")
    module = importlib.import_module(cli.COMMANDS[name][0])
    values = parse_flags([f"mlclip {name}", *arguments], module.define_flags)
    for flag in ("multihost", *PROCESS_FLAGS):
        if values[flag].present:
            raise InputError(f"--{flag} is given by the launcher; leave it out")
    return Command(name, arguments, values.output if name == "embed" else values.workdir)


def require(values, *names):
    """Refuses a launcher's flags that lack one of these.

    Raises:
      InputError: a flag is missing.
    """
    for name in names:
        if values[name].value is None:
            raise InputError(f"--{name} is missing")


def python():
    """The interpreter that other machines find in the folder of this project, or on their own path."""
    path = Path(__file__).resolve().parents[1] / ".venv/bin/python"
    return str(path) if path.exists() else "python"


def call(words, **settings):
    """Runs a program, here and now; returns its exit code, 130 for Ctrl-C.

    Raises:
      InputError: there is no such program.
    """
    try:
        return subprocess.run(words, check=False, **settings).returncode
    except FileNotFoundError:
        raise InputError(
            f"there is no {words[0]} here; install it, or see with --dry_run what it would be given"
        ) from None
    except KeyboardInterrupt:
        return 130


def say(text):
    """Says on standard error what the launcher does."""
    print(f"{_program(sys.argv)}: {text}", file=sys.stderr, flush=True)


def _program(argv):
    return f"launch/{Path(argv[0]).name}"
