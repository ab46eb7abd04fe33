"""The command line: `qdtune COMMAND ...`, also as `python -m qdtune COMMAND ...`.

The commands are the verbs of `commands/`; only the one that runs is imported.
"""

from __future__ import annotations

from qdtune.shadows import stop_if_hidden

if __name__ == "__main__":
    stop_if_hidden()  # before an import that a file in the current folder could hide

import os
import pkgutil
import sys

from qdtune import __version__, commands
from qdtune.commands.output import print_wrapped
from qdtune.commands.parser import run_command
from qdtune.commands.verb import read_verbs
from qdtune.messages import describe_unknown, user_error


def main(argv: list[str] | None = None) -> int:
    """Runs one command with the arguments after its name; returns its exit code, 2 for an unknown command."""
    return run_command(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(given: list[str]) -> int:
    try:
        os.getcwd()
    except OSError:
        raise user_error("the current folder must exist, and was deleted (go to another folder)") from None
    name, rest = (given[0], given[1:]) if given else ("", [])
    verbs = read_verbs()
    if name in verbs:
        return int(pkgutil.resolve_name(f"{commands.__name__}.{name}:main")(rest))
    if name in ("-h", "--help"):
        print("usage: qdtune COMMAND ...\n")
        print("\n".join(f"  {verb:10} {declared.text}" for verb, declared in verbs.items()))
        print("\nqdtune COMMAND --help lists the options of a command")
        return 0
    if name == "--version":
        print(__version__)
        return 0
    wrong = describe_unknown("command ", name, list(verbs)) if name else f"no command given ({', '.join(verbs)})"
    print_wrapped(f"error: {wrong}", sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
