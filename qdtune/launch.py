"""`qdtune launch SWEEP`: judges a sweep file, then says what it would run (`--dry-run`) or runs it.

Whatever the user got wrong ends here as one `error:` line per mistake and exit code 2, before Ray is imported and
before anything is written.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from qdtune.cli import Parser, blaming, guarded, leave, told
from qdtune.machine import gpus
from qdtune.names import PLANNED
from qdtune.placement import Node, Placement, placement
from qdtune.plan import Plan, check_comparable, plan
from qdtune.rules import mistake, one_line
from qdtune.spec import Spec, load

USAGE = "qdtune launch SWEEP [--dry-run] [--fresh] [--set KEY=VALUE ...] [--runs-dir DIR] [--data-dir DIR] [...]"
FEW = 8  # sizes that are listed one by one


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, finishes or describes a sweep; returns the exit code.

    Args:
        argv: the arguments after `launch`; those of the process if None.
    """
    return guarded(lambda: _launch(_arguments(argv)))


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
    from qdtune.data import default_root  # NumPy: not needed to say that a file is wrong

    data_dir = arguments.data_dir or default_root()
    planned = None
    with blaming(arguments.sweep):
        if spec.factories:
            spec = _opened(spec, arguments, data_dir)
        if arguments.dry_run or not spec.factories:  # else a run asks the factories, once
            planned = plan(spec.resolve(spec.data.names[0]))
        address = arguments.address or os.environ.get("RAY_ADDRESS") or None
        if arguments.dry_run or address is None:
            placed = placement(spec.resources, [Node(os.cpu_count() or 1, gpus())], spec.run.max_concurrent_trials)
    if arguments.dry_run and planned is not None:
        there = _there(arguments, spec, data_dir)
        _describe(spec, planned, placed, data_dir, there)
        return 0
    return _run(spec, planned, arguments, data_dir, address)


def _opened(spec: Spec, arguments: argparse.Namespace, data_dir: Path) -> Spec:
    """The spec whose factories may now be imported; for a dry run with what they give."""
    from qdtune import plugins

    plugins.permit(spec, arguments.allow_plugin, [Path(arguments.sweep).parent, Path.cwd()])
    if arguments.dry_run and spec.data.factory:
        spec, _ = plugins.read(spec, data_dir)
    if arguments.dry_run and spec.model.factory:
        from qdtune.foreign import described  # torch

        spec = described(spec)
    return spec


def _run(spec: Spec, planned: Plan | None, arguments: argparse.Namespace, data_dir: Path, address: str | None) -> int:
    """Starts what takes seconds to import, in the order that Ray needs; says in one line what stands in the way."""
    from qdtune import cluster
    from qdtune.preflight import preflight

    preflight(spec, planned, arguments.runs_dir, address, arguments.fresh)
    cluster.prepare(address)

    from qdtune import session
    from qdtune.data import DataError
    from qdtune.storage import StorageError
    from qdtune.store import FAULTS

    codes: dict[type[Exception], int] = {DataError: 2, cluster.NoClusterError: 2, **FAULTS}
    try:
        ray_at = cluster.RayAt(address, dashboard=not arguments.no_dashboard)
        code = session.run(spec, runs_dir=arguments.runs_dir, data_dir=data_dir, ray_at=ray_at, fresh=arguments.fresh)
        if code > 128:
            leave(code)  # Ray may have been interrupted half way, and then it crashes as the interpreter ends
        return code
    except StorageError as error:
        what = "mend that and run the same command again, what was finished is kept"
        return told(StorageError(f"{error}: {what}"), codes)
    except tuple(codes) as error:
        return told(error, codes)


def _likely(spec: Spec, data_dir: Path) -> Spec:
    """The spec on the data set that a run would probably take: the first on disk."""
    from qdtune.data import on_disk

    names = spec.data.names
    return spec.resolve(next((name for name in names if on_disk(name, data_dir)), names[0]))


def _there(arguments: argparse.Namespace, spec: Spec, data_dir: Path) -> tuple[str, set[str]]:
    """The run folder and the trials that it has a result of, if any."""
    from qdtune.storage import LocationError, StorageError, child, is_url, open_folder

    where = child(arguments.runs_dir, spec.name)
    if not is_url(where) and not os.path.isdir(where) and ":/" not in where:
        return where, set()
    from qdtune.store import Store

    try:
        open_folder(arguments.runs_dir)
        if arguments.fresh:
            return where, set()
        store, likely = Store(where), _likely(spec, data_dir)
        wanted = spec.data.names[0]
        missing = None if likely.data.names[0] == wanted else f"{wanted} is not in {data_dir}"
        check_comparable(likely, store.sweep_yaml(), where, missing)
        return where, store.ids()
    except (LocationError, StorageError) as error:
        raise mistake(str(error)) from None


def _describe(spec: Spec, planned: Plan, placed: Placement, data_dir: Path, there: tuple[str, set[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in _facts(spec, planned, placed, data_dir, there):
        table.add_row(name, Text(text))  # Text: square brackets of the user are no markup
    console = Console(width=None if terminal else 80, highlight=False)
    with console.capture() as captured:  # printed by us: rich would end the process where a pipe is closed
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _facts(
    spec: Spec, planned: Plan, placed: Placement, data_dir: Path, there: tuple[str, set[str]]
) -> Iterator[tuple[str, str]]:
    """What a dry run says, as (name, text)."""
    from qdtune.preflight import room
    from qdtune.progress import counted

    count = len(planned.trials)
    removed = sum(n for _, n in planned.excluded)
    yield "sweep", ": ".join(filter(None, [spec.name, one_line(spec.description)]))
    searching = spec.method not in PLANNED
    kinds = f"{planned.points:,} points, {removed:,} excluded, {planned.infeasible:,} infeasible"
    if searching:
        yield "configurations", f"up to {spec.run_cap:,}, chosen by {spec.method} while the sweep runs"
        yield "a sample", f"{count:,} at random ({kinds})"
    else:
        yield "configurations", f"{count:,} ({kinds})"
    for rule, n in planned.excluded[:FEW]:
        yield "  excluded", f"{n:,} by {rule}"
    if more := planned.excluded[FEW:]:
        yield "  excluded", f"{sum(n for _, n in more):,} by {counted(len(more), 'more rule')}"
    if planned.infeasible:
        yield "  infeasible", f"{planned.infeasible:,} by {', '.join(spec.constraints)}"
    if spec.run_cap and count < spec.run_cap and not searching:
        yield "  note", f"fewer than run_cap {spec.run_cap:,}: the space holds no more"
    if planned.warning:
        yield "  warning", planned.warning
    folder, ids = there
    done = 0
    if ids and not searching:  # the hashes cost too much where there is nothing to compare them with
        done = sum(trial.trial_id in ids for trial in planned.trials)
        yield "  there", f"{done:,} have a result in {folder}"
    yield "seeds", f"{len(spec.seeds)} per configuration, trained together"
    if spec.replicate:
        yield (
            "  in the end",
            f"{spec.replicate.front} for the front and what is within {spec.replicate.within:g} of it",
        )
    if spec.early_terminate.type != "none":
        options = ", ".join(f"{key} {value}" for key, value in spec.early_terminate.options.items())
        yield "stopped early", f"by {spec.early_terminate.type}: {options}"
    of_sample = " in the sample" if searching else ""
    yield "float warm-ups", f"{planned.warmups:,}{of_sample}, each trained once and shared"
    sizes = planned.distinct_sizes
    few = ", ".join(f"{size:,}" for size in sizes)
    yield (
        "sizes",
        f"{few} bytes" if len(sizes) <= FEW else f"{len(sizes):,}, from {sizes[0]:,} to {sizes[-1]:,} bytes",
    )
    yield "data", _data_text(spec, data_dir)
    if spec.factories:
        from qdtune.plugins import sources

        for source in sources():
            yield "plugin", f"{source.path}, sha256 {source.sha256}"
    yield "one trial", f"{placed.gpu:g} GPU, {placed.cpu:g} CPU"
    shared = f", {placed.per_gpu} per GPU" if placed.per_gpu else ""
    here = f"this machine: {os.cpu_count()} CPUs, {gpus()} GPUs"
    yield (
        "at once",
        f"{placed.concurrent:,} trials{shared}, so {counted(placed.waves(count - done), 'wave')} ({here})",
    )
    yield "disk", f"about {room(spec, planned) / 1e6:,.1f} MB in {one_line(folder)}"
    for note in placed.notes:
        yield "note", note


def _data_text(spec: Spec, data_dir: Path) -> str:
    from qdtune.data import on_disk

    name, *fallbacks = spec.data.names
    assert spec.data.info is not None
    train = spec.data.info.train - spec.data.val_size
    text = f"{name}: {train:,} samples to train on, {spec.data.val_size:,} to judge by; "
    if spec.data.factory:
        return f"{text}in memory"
    if on_disk(name, data_dir):
        return f"{text}on disk"
    instead = f", and if that fails {' or '.join(fallbacks)} taken instead" if fallbacks else ""
    return f"{text}not in {one_line(str(data_dir))}, so it would be downloaded{instead}"


if __name__ == "__main__":
    sys.exit(main())
