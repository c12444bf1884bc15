"""The command line: `mlclip <command> --flags`. Nothing heavy is imported before a command needs it."""

import _thread
import contextlib
import importlib
import io
import os
import shutil
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Sequence
from types import ModuleType

from mlclip_jax import __version__
from mlclip_jax.errors import InputError, Preempted
from mlclip_jax.options import nearest
from mlclip_jax.stopping import stop_at_once_on_request

# Each command's module defines `define_flags(values, argv)` and `main(values)`, which imports what computes;
# `INDEPENDENT_PROCESSES`, `USES_JAX` and `POSITIONAL` there say where it differs from the others.
COMMANDS = {
    "train": ("mlclip_jax.commands.train", "train an adapter by a recipe, and score it"),
    "sweep": (
        "mlclip_jax.commands.sweep",
        "train a recipe over values of its keys, many runs at once, into one table",
    ),
    "evaluate": ("mlclip_jax.commands.evaluate", "score trained adapters, with intervals, in one table"),
    "pretrain": ("mlclip_jax.commands.pretrain", "train a small CLIP on captioned images"),
    "ensemble": ("mlclip_jax.commands.ensemble", "make one file of scores of several methods'"),
    "calibrate": (
        "mlclip_jax.commands.calibrate",
        "fit a run's probabilities and thresholds to held-out images",
    ),
    "predict": ("mlclip_jax.commands.predict", "label images with a trained adapter"),
    "embed": ("mlclip_jax.commands.embed", "turn images or a file of texts into embeddings"),
    "data describe": ("mlclip_jax.commands.describe", "say what a dataset holds, and draw some of it"),
    "scenes": ("mlclip_jax.commands.scenes", "write images of the built-in world, with labels and captions"),
    "generate": ("mlclip_jax.commands.generate", "write texts to train on, with labels"),
    "reproduce": ("mlclip_jax.commands.reproduce", "papers' tables and figures, published beside ours"),
    "few_shot": (
        "mlclip_jax.commands.few_shot",
        "image adapters on few and on many images of the built-in world",
    ),
    "demo": ("mlclip_jax.commands.demo", "the main job on the built-in world, from images to a table"),
}
RESTART = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, resumes
USAGE = "\n".join(
    [
        "usage: mlclip <command> [--flags]",
        "",
        *(f"  {name:<15}{summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "mlclip <command> --help lists the flags of a command.",
        "",
        "Compiled programs are kept in ~/.cache/mlclip_jax, so that a second start compiles nothing.",
        "--nocompilation_cache or JAX_ENABLE_COMPILATION_CACHE=false turns that off;",
        "JAX_COMPILATION_CACHE_DIR=FOLDER names another place.",
    ]
)


def run() -> None:
    """The program: runs the command that the process was given, and exits."""
    sys.unraisablehook = _interrupt_again
    if isinstance(sys.stdout, io.TextIOWrapper):  # a label that the terminal has no letters for is escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:  # once more, on the way out
        code = 130
    except OSError as error:  # of the last lines
        code = _output_failed("mlclip", error)
    if code:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        # Stopped halfway, a computation may still run, and would crash the interpreter's orderly way out.
        os._exit(code)


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit code.

    0; 2 for invalid input; 75 for a run that stopped on request, and resumes when it is started again; 130
    when interrupted from the keyboard.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"mlclip {__version__}")
        return 0
    name, *arguments = argv
    if arguments and f"{name} {arguments[0]}" in COMMANDS:  # of two words
        name, arguments = f"{name} {arguments[0]}", arguments[1:]
    # Made to be replaced, which its type does not know.
    warnings.formatwarning = lambda message, *_: f"mlclip {name}: warning: {message}\n"  # ty: ignore[invalid-assignment]
    with contextlib.ExitStack() as until_the_end:
        return _run_command(name, arguments, until_the_end)


def _run_command(name: str, arguments: Sequence[str], until_the_end: contextlib.ExitStack) -> int:
    """Runs a command by its name; returns the exit code.

    What answers SIGTERM stays `until_the_end`, also while the other processes of a run are waited for.
    """
    try:
        until_the_end.enter_context(stop_at_once_on_request())
        if name not in COMMANDS:
            near = nearest(" ".join([name, *arguments[:1]]), COMMANDS) or nearest(name, COMMANDS)
            raise InputError(f"no such command{near}; there are {', '.join(COMMANDS)}")
        command = importlib.import_module(COMMANDS[name][0])
        if {"-h", "--help"} & set(arguments):
            _print_help(command)
            return 0
        from mlclip_jax.commands.parsing import parse_flags
        from mlclip_jax.progress import speak

        positional = getattr(command, "POSITIONAL", None)
        values = parse_flags([f"mlclip {name}", *arguments], command.define_flags, positional)
        speak(quiet=values.quiet)
        if getattr(command, "USES_JAX", True):
            from mlclip_jax import compilation_cache

            compilation_cache.enable(wanted=values.compilation_cache)
        if "multihost" in values:
            from mlclip_jax.distributed.processes import start_processes

            start_processes(values, independent=getattr(command, "INDEPENDENT_PROCESSES", False))
        command.main(values)
    except Preempted as stopped:
        print(f"mlclip {name}: {stopped}", file=sys.stderr)
        if stopped.together:
            _leave_processes()
        return RESTART
    except InputError as error:
        print(f"mlclip {name}: error: {error}", file=sys.stderr, flush=True)
        processes = sys.modules.get("mlclip_jax.distributed.processes")
        if processes and processes.is_announced(error):  # so all end
            _leave_processes()
        return 2
    except KeyboardInterrupt:
        print(f"mlclip {name}: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if not _is_output_broken():  # of something else: not foreseen
            raise
        return _output_failed(f"mlclip {name}", error)
    return 0


def _is_output_broken() -> bool:
    """Whether standard output takes no more; what it did not take is tried again."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _output_failed(who: str, error: OSError) -> int:
    """Says why standard output takes no more; returns the exit code."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # what reads it has seen enough, as `head` does
        return 141
    print(f"{who}: error: cannot write to standard output: {error.strerror or error}", file=sys.stderr)
    return 2


def _leave_processes() -> None:
    """Waits for the others that are stopping too: when one leaves without a word, JAX aborts the others."""
    import jax

    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def _interrupt_again(unraisable: "sys.UnraisableHookArgs") -> None:
    # JAX's garbage-collection callback swallows a Ctrl-C that falls into it, as often happens in compilation.
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.01, _thread.interrupt_main).start()  # once this hook has returned
    else:
        sys.__unraisablehook__(unraisable)


def _print_help(command: ModuleType) -> None:
    from absl import flags

    from mlclip_jax.commands.parsing import define_common_flags

    values = flags.FlagValues()
    command.define_flags(values, [])
    define_common_flags(values)
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    usage = " ".join(str(command.main.__doc__).split())
    print(textwrap.fill(usage, width, subsequent_indent="    ", break_on_hyphens=False) + "\n")
    names = {name: f"--[no]{name}" if values[name].boolean else f"--{name}" for name in values}
    indent = 4 + max(map(len, names.values()))
    for name, written in names.items():
        default = values[name].default
        default = "" if default in (None, False) else f" (default {default})"
        said = " ".join(str(values[name].help).split())
        said = said.replace("; repeat this option to specify a list of values", "")
        print(
            textwrap.fill(
                said + default,
                width,
                initial_indent=f"  {written}".ljust(indent),
                subsequent_indent=" " * indent,
                break_on_hyphens=False,
            )
        )


if __name__ == "__main__":
    run()
