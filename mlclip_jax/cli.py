"""The command line: `mlclip <command> --flags`. Nothing heavy is imported before a command needs it."""

import importlib
import sys

from mlclip_jax.errors import InputError

COMMANDS = {
    "train": "train an adapter by a recipe, and score it",
    "evaluate": "score trained adapters, with intervals, in one table",
    "embed": "turn a folder of images or a file of texts into embeddings",
}
USAGE = "\n".join(
    [
        "usage: mlclip <command> [--flags]",
        "",
        *(f"  {name:<10}{summary}" for name, summary in COMMANDS.items()),
        "",
        "mlclip <command> --help lists the flags of a command.",
    ]
)


def main(argv=None):
    """Runs a command; returns the exit code: 0, 2 for what the user must mend, 130 when interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if argv else 2
    name, *arguments = argv
    try:
        if name not in COMMANDS:
            raise InputError(f"no such command; there are {', '.join(COMMANDS)}")
        importlib.import_module(f"mlclip_jax.{name}").main([f"mlclip {name}", *arguments])
    except InputError as error:
        print(f"mlclip {name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mlclip {name}: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
