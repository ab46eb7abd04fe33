"""The process in which `qdtune.run` launches a sweep: `python -m qdtune.commands.sweep_process FD`.

It reads what to launch as one line of JSON on standard input, and writes what went wrong as JSON to the open file FD.
When standard input closes, the caller is gone, and the sweep stops in order.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from qdtune.commands.launch import launch_sweep
from qdtune.commands.parser import run_command
from qdtune.messages import Place, Problem, SpecError, python_names
from qdtune.sweep.prepared import LaunchOptions

FAILED = 1  # exit code if an error was written to the file


def request_of(options: LaunchOptions, has_dashboard: bool) -> bytes:
    """One line of JSON that asks this process for a launch."""
    fields = vars(options) | {
        "data_dir": None if options.data_dir is None else str(options.data_dir),
        "content": None if options.content is None else options.content.decode(),
    }
    return json.dumps({"options": fields, "has_dashboard": has_dashboard}).encode() + b"\n"


def error_of(outcome: bytes) -> Exception | None:
    """The error that this process wrote to its file; None if it wrote none."""
    if not outcome:
        return None
    found = json.loads(outcome)
    if found["kind"] == SpecError.__name__:
        return SpecError([Problem(p[0] and Place(*p[0]), tuple(p[1]), p[2]) for p in found["problems"]])
    kind = next(kind for kind in _known_errors() if kind.__name__ == found["kind"])
    return kind(found["text"])


def _known_errors() -> tuple[type[Exception], ...]:
    """What may stand in the way of a launch, or stop it."""
    from qdtune.datasets.dataset import DataError
    from qdtune.store.store import FAULTS
    from qdtune.sweep.cluster import NoClusterError

    return (SpecError, DataError, NoClusterError, *FAULTS)


def main() -> int:
    """Launches one sweep; the exit code: 0 if it came to its end, 128 + N after signal N, `FAILED`."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_caller, daemon=True).start()
    return run_command(lambda: _launch(request, int(sys.argv[1])))


def _launch(request: dict[str, Any], outcome: int) -> int:
    fields = request["options"]
    data_dir, content = fields["data_dir"], fields["content"]
    fields["data_dir"] = None if data_dir is None else Path(data_dir)
    fields["content"] = None if content is None else content.encode()
    try:
        with python_names():
            code = launch_sweep(LaunchOptions(**fields), request["has_dashboard"])
        from qdtune.sweep.summary import FAILED_TRIALS  # loaded by now

        return 0 if code == FAILED_TRIALS else code  # the run tells of them
    except _known_errors() as error:
        problems = error.problems if isinstance(error, SpecError) else ()
        known = next(kind for kind in _known_errors() if isinstance(error, kind))
        told = {"kind": known.__name__, "text": str(error), "problems": problems}
        os.write(outcome, json.dumps(told, default=_fields_of).encode())
        return FAILED


def _fields_of(problem: Problem) -> list[Any]:
    return [problem.place, problem.path, problem.what]


def _stop_with_caller() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
