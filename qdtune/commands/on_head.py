"""What a submitted job runs on the head of a cluster: `python -m qdtune.commands.on_head VERSION launch|pack ...`.

Ray starts it in a folder of its own that goes with the job and holds what was sent: the sweep file, and the user's
modules. Run folders and data sets stay: their relative paths are meant from the home folder of the head's user.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qdtune import __version__
from qdtune.commands.parser import Parser, print_error, run_command
from qdtune.messages import one_line, user_error
from qdtune.remote.archive import archive_lines
from qdtune.remote.protocol import HEAD_LINE, SWEEP_FILE
from qdtune.store.folder import join_location
from qdtune.store.store import FAULTS, Store

USAGE = "python -m qdtune.commands.on_head VERSION launch|pack ..."


def main(argv: Sequence[str] | None = None) -> int:
    """Launches the sweep that was sent, or prints a run folder as an archive; returns the exit code, 2 where the
    version that was asked for is another.

    Args:
        argv: the version, the command and its arguments; those of the process if None.
    """
    return run_command(lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    asked, command, *rest = [*argv, "", ""]
    if asked != __version__:
        what = f"the head must have the version of qdtune that submits, {asked}, got {__version__}"
        raise user_error(f"{what} (pip install the same one on every node)")
    print(HEAD_LINE, flush=True)
    sweep = Path(SWEEP_FILE).resolve()
    os.chdir(Path.home())
    given = [argument for argument in rest if argument]
    if command == "launch":
        from qdtune.commands.launch import main as launch

        runs = ["--runs-dir", os.environ.get("QDTUNE_RUNS") or "runs"]
        return launch([str(sweep), *runs, *given])  # the last one counts
    return _pack(given)


def _pack(argv: list[str]) -> int:
    parser = Parser("head", USAGE, "Prints a run folder as an archive.")
    parser.add_argument("name")
    parser.add_argument("--runs-dir", default=os.environ.get("QDTUNE_RUNS") or "runs")
    arguments = parser.read(argv)
    where = join_location(arguments.runs_dir, arguments.name)
    try:
        store = Store(where)
        if store.sweep_yaml() is None:
            raise user_error(f"there is no run folder {one_line(where)} on the head")
        with store.lock():  # no launch writes to it meanwhile
            for line in archive_lines(store.folder):
                print(line)
    except tuple(FAULTS) as error:
        return print_error(error, FAULTS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
