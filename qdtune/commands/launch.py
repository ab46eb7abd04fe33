"""`qdtune launch SWEEP`: judges a sweep file, then says what it would run (`--dry-run`) or runs it.

Whatever the user got wrong ends here as one `error:` line per mistake and exit code 2, before Ray is imported and
before anything is written.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from qdtune.commands.dry_run import describe, there_already
from qdtune.commands.parser import Parser, blame, exit_now, print_error, run_command
from qdtune.machine import gpus
from qdtune.spec.plan import Plan, plan
from qdtune.spec.sweep_file import Spec, load
from qdtune.sweep.placement import Node, placement

USAGE = "qdtune launch SWEEP [--dry-run] [--fresh] [--set KEY=VALUE ...] [--runs-dir DIR] [--data-dir DIR] [...]"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, finishes or describes a sweep; returns the exit code.

    Args:
        argv: the arguments after `launch`; those of the process if None.
    """
    return run_command(lambda: _launch(_arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("launch", USAGE, "Runs, or finishes, a sweep.")
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="the sweep file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and start nothing")
    parser.add_argument(
        "--runs-dir", default="runs", help="where run folders lie: a path, or s3://BUCKET/PREFIX (default: runs)"
    )
    parser.add_argument("--data-dir", type=Path, help="where data sets lie (default: QDTUNE_DATA, else data)")
    parser.add_argument("--address", help="a running Ray cluster (default: a local one of our own)")
    parser.add_argument("--no-dashboard", action="store_true", help="start Ray without its dashboard")
    parser.add_argument("--fresh", action="store_true", help="start over: do not keep what the run folder holds")
    parser.add_argument(
        "--allow-plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module of your own, whose function the file names as a factory",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the file, as in train.qat.epochs=3",
    )
    arguments = parser.read(argv)
    if not arguments.sweep:
        parser.error("no sweep file given")
    return arguments


def _launch(arguments: argparse.Namespace) -> int:
    spec = load(arguments.sweep, arguments.set)
    from qdtune.datasets.load import default_root  # NumPy: not needed to say that a file is wrong

    data_dir = arguments.data_dir or default_root()
    planned = None
    with blame(arguments.sweep):
        if spec.factories:
            spec = _opened(spec, arguments, data_dir)
        if arguments.dry_run or not spec.factories:  # else a run asks the factories, once
            planned = plan(spec.resolve(spec.data.names[0]))
        address = arguments.address or os.environ.get("RAY_ADDRESS") or None
        if arguments.dry_run or address is None:
            placed = placement(spec.resources, [Node(os.cpu_count() or 1, gpus())], spec.run.max_concurrent_trials)
    if arguments.dry_run and planned is not None:
        there = there_already(arguments, spec, data_dir)
        describe(spec, planned, placed, data_dir, there)
        return 0
    return _run(spec, planned, arguments, data_dir, address)


def _opened(spec: Spec, arguments: argparse.Namespace, data_dir: Path) -> Spec:
    """The spec whose factories may now be imported; for a dry run with what they give."""
    from qdtune import plugins
    from qdtune.sweep import prepare

    plugins.permit(spec.factories, arguments.allow_plugin, [Path(arguments.sweep).parent, Path.cwd()])
    if arguments.dry_run and spec.data.factory:
        spec, _ = prepare.with_own_data(spec, data_dir)
    if arguments.dry_run and spec.model.factory:
        from qdtune.training.own_model import described  # torch

        spec = described(spec)
    return spec


def _run(spec: Spec, planned: Plan | None, arguments: argparse.Namespace, data_dir: Path, address: str | None) -> int:
    """Starts what takes seconds to import, in the order that Ray needs; says in one line what stands in the way."""
    from qdtune.sweep import cluster
    from qdtune.sweep.preflight import preflight

    preflight(spec, planned, arguments.runs_dir, address, arguments.fresh)
    cluster.prepare(address)

    from qdtune.datasets.load import DataError
    from qdtune.report.follow import drawing
    from qdtune.store.folder import StorageError
    from qdtune.store.store import FAULTS
    from qdtune.sweep import session

    codes: dict[type[Exception], int] = {DataError: 2, cluster.NoClusterError: 2, **FAULTS}
    try:
        ray_at = cluster.RayAt(address, dashboard=not arguments.no_dashboard)
        code = session.run_sweep(
            spec,
            runs_dir=arguments.runs_dir,
            data_dir=data_dir,
            ray_at=ray_at,
            drawing=drawing,
            fresh=arguments.fresh,
        )
        if code > 128:
            exit_now(code)  # Ray may have been interrupted half way, and then it crashes as the interpreter ends
        return code
    except StorageError as error:
        what = "mend that and run the same command again, what was finished is kept"
        return print_error(StorageError(f"{error}: {what}"), codes)
    except tuple(codes) as error:
        return print_error(error, codes)
