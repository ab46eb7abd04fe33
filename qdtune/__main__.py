"""The command line: `qdtune COMMAND ...`, also as `python -m qdtune COMMAND ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable

from qdtune import __version__
from qdtune.messages import describe_unknown


def _launch(argv: list[str]) -> int:
    from qdtune.commands.launch import (
        main as launch,  # imported when asked for: each command loads only what it needs
    )

    return launch(argv)


def _report(argv: list[str]) -> int:
    from qdtune.commands.report import main as report

    return report(argv)


def _replay(argv: list[str]) -> int:
    from qdtune.commands.replay import main as replay

    return replay(argv)


def _verify(argv: list[str]) -> int:
    from qdtune.commands.verify import main as verify

    return verify(argv)


def _export(argv: list[str]) -> int:
    from qdtune.commands.export import main as export

    return export(argv)


def _submit(argv: list[str]) -> int:
    from qdtune.commands.submit import submit

    return submit(argv)


def _jobs(argv: list[str]) -> int:
    from qdtune.commands.jobs import jobs

    return jobs(argv)


def _stop(argv: list[str]) -> int:
    from qdtune.commands.stop import stop

    return stop(argv)


def _fetch(argv: list[str]) -> int:
    from qdtune.commands.fetch import main as fetch

    return fetch(argv)


COMMANDS: dict[str, tuple[str, Callable[[list[str]], int]]] = {
    "launch": ("run, or finish, a sweep", _launch),
    "report": ("print and draw what a sweep has found", _report),
    "verify": ("check a run folder, and set aside what is damaged", _verify),
    "export": ("trained models as files to ship", _export),
    "submit": ("send a sweep to a cluster", _submit),
    "jobs": ("list the sweeps that were sent", _jobs),
    "stop": ("stop one of them in order", _stop),
    "fetch": ("bring its results here", _fetch),
    "replay": ("judge pruners on a finished sweep", _replay),
}


def main(argv: list[str] | None = None) -> int:
    """Runs one command with the arguments after its name; returns its exit code, 2 for an unknown command."""
    given = sys.argv[1:] if argv is None else argv
    name, rest = (given[0], given[1:]) if given else ("", [])
    if name in COMMANDS:
        return COMMANDS[name][1](rest)
    if name in ("-h", "--help"):
        print("usage: qdtune COMMAND ...\n")
        print("\n".join(f"  {command:10} {text}" for command, (text, _) in COMMANDS.items()))
        return 0
    if name == "--version":
        print(__version__)
        return 0
    wrong = (
        describe_unknown("command ", name, list(COMMANDS)) if name else f"no command given ({', '.join(COMMANDS)})"
    )
    print(f"error: {wrong}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
