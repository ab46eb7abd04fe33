"""`qdtune.load` and `qdtune.run`: runs from Python, in scripts and in notebooks.

A sweep runs in a process of its own. The caller keeps its environment, its signal handlers, its event loop and its
threads, and neither Ray nor an interrupt can end it. Output arrives as plain lines.
"""

from __future__ import annotations

import difflib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from qdtune.analysis.run import RunError, load_run
from qdtune.commands.arguments import check_arguments, read_path
from qdtune.commands.loaded_run import LoadedRun
from qdtune.commands.output import print_wrapped
from qdtune.commands.sweep_process import error_of, request_of
from qdtune.messages import (
    KeyPath,
    Place,
    Problem,
    SpecError,
    blame_source,
    describe_unknown,
    format_value,
    python_names,
    user_error,
)
from qdtune.spec.sweep_file import Spec
from qdtune.store.folder import join_location
from qdtune.sweep.prepared import LaunchOptions

DICT_NAME = "sweep"  # of a sweep that is given as a dict, in messages


def load(run: str | os.PathLike[str]) -> LoadedRun:
    """The content of a run folder, see `qdtune.load`."""
    try:
        check_arguments({"run": run})
        where = read_path("run", run)
    except SpecError as error:
        raise RunError(str(error).removeprefix("error: ")) from None
    return load_run(where, LoadedRun)


@python_names()
def run(
    sweep: str | os.PathLike[str] | Mapping[str, Any],
    keys: Mapping[str, Any],
    *,
    overrides: Mapping[str, Any] | None,
    runs_dir: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None,
    address: str | None,
    fresh: bool,
    plugins: Sequence[str],
    dashboard: bool,
) -> LoadedRun:
    """The run of a sweep that is trained, or finished, here; see `qdtune.run`.

    Args:
        keys: top-level keys of the sweep with their values.
    """
    places = {"runs_dir": runs_dir, "data_dir": data_dir, "address": address}
    ways = {"fresh": fresh, "plugins": plugins, "dashboard": dashboard}
    check_arguments({"sweep": sweep, "overrides": overrides, **places, **ways})
    given = [*keys.items(), *(overrides or {}).items()]
    _check_names([key for key, _ in given])
    is_dict = isinstance(sweep, Mapping)
    try:
        with blame_source("overrides"):
            changes = [f"{key}={_to_json(value, (key,))}" for key, value in given]
        with blame_source(DICT_NAME):
            content = _to_json(sweep, ()).encode("utf-8", "surrogatepass") if isinstance(sweep, Mapping) else None
        options = LaunchOptions(
            sweep=DICT_NAME if isinstance(sweep, Mapping) else read_path("sweep", sweep),
            overrides=changes,
            plugins=[plugins] if isinstance(plugins, str) else list(plugins),
            runs_dir=read_path("runs_dir", runs_dir),
            data_dir=None if data_dir is None else Path(read_path("data_dir", data_dir)),
            address=address or os.environ.get("RAY_ADDRESS") or None,
            is_fresh=fresh,
            content=content,
        )
        name = options.load_spec().name  # mistakes in the file are told before a process starts
        _run_process(options, dashboard)
    except SpecError as error:
        error = _without_overrides(error, keys, overrides or {})
        raise (_without_lines(error) if is_dict else error) from None
    return load(join_location(options.runs_dir, name))


def _check_names(keys: Sequence[str]) -> None:
    """Checks that no key is an argument of `run`, mistyped: whatever is no argument was taken for a key of the sweep.

    Raises:
        SpecError: one is nearer to an argument than to any key.
    """
    arguments = [name for name in inspect.signature(run).parameters if name != "keys"]
    known = [*Spec.model_fields, *arguments]
    for key in keys:
        near = difflib.get_close_matches(key[:64], known, n=1)
        if near and near[0] in arguments and key not in known:
            raise user_error(describe_unknown("argument ", key, known))


def _run_process(options: LaunchOptions, has_dashboard: bool) -> None:
    """Launches a sweep in a process of its own, and prints what that prints.

    Raises:
        SpecError, DataError, NoClusterError, LocationError, StorageError, RunInUse: as of `qdtune launch`.
        RunError: the process ended for another reason.
        KeyboardInterrupt: the caller was interrupted; the sweep has stopped in order.
    """
    with tempfile.TemporaryFile() as outcome:
        command = [sys.executable, "-m", "qdtune.commands.sweep_process", str(outcome.fileno())]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[outcome.fileno()],
            start_new_session=True,  # an interrupt of the whole group reaches it through us, once
        )
        with process:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended already; its exit code says so
                os.write(process.stdin.fileno(), request_of(options, has_dashboard))
            is_interrupted = _relay(process)
        outcome.seek(0)
        error = error_of(outcome.read())
    if error is not None:
        raise error
    if is_interrupted:
        raise KeyboardInterrupt
    if process.returncode:
        raise RunError(f"the sweep ended with exit code {process.returncode}; its last lines say why")


def _relay(process: subprocess.Popen[bytes]) -> bool:
    """Prints what a process prints until it ends; whether the caller was interrupted meanwhile.

    The first interrupt stops the sweep in order, a second one at once.
    """
    is_interrupted = False
    assert process.stdout is not None
    while True:
        try:
            _print_lines(process.stdout)
            process.wait()
            return is_interrupted
        except KeyboardInterrupt:
            is_interrupted = True
            process.send_signal(signal.SIGINT)


def _print_lines(stream: IO[bytes]) -> None:
    for line in stream:
        print_wrapped(line.decode(errors="replace").removesuffix("\n"))


def _to_json(value: Any, path: KeyPath) -> str:
    """A part of a sweep as JSON, which is YAML, too.

    Raises:
        SpecError: it holds something that a sweep file cannot hold.
    """
    try:
        return json.dumps(_plain(value, path), ensure_ascii=False)
    except RecursionError:
        raise user_error("must not hold itself, or hold lists in lists without end", *path) from None


def _plain(value: Any, path: KeyPath) -> Any:
    """The value in dicts, lists, text, numbers, bools and None."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, (*path, str(key))) for key, inner in value.items()}
    if hasattr(value, "tolist"):  # NumPy's numbers and arrays
        return _plain(value.tolist(), path)
    if isinstance(value, (list, tuple, range)):
        return [_plain(inner, (*path, n)) for n, inner in enumerate(value)]
    kind = type(value).__name__
    raise user_error(f"must be text, a number, true, false, null, a list or a dict, got {kind}", *path)


def _without_overrides(error: SpecError, keys: Mapping[str, Any], overrides: Mapping[str, Any]) -> SpecError:
    """The same mistakes; one in a keyword argument of the call does not name `overrides`, which it is not in."""
    heads = {key.partition(".")[0] for key in overrides}

    def is_keyword(one: Problem) -> bool:
        named = one.path[:1] or [key for key in keys if format_value(key) in one.what]
        return one.place == Place("overrides") and any(key in keys and key not in heads for key in named)

    return SpecError([replace(one, place=None) if is_keyword(one) else one for one in error.problems])


def _without_lines(error: SpecError) -> SpecError:
    """The same mistakes without lines of a dict, which has none."""
    return SpecError(
        [
            replace(one, place=Place(DICT_NAME)) if one.place and one.place.source == DICT_NAME else one
            for one in error.problems
        ]
    )
