"""`qdtune launch SWEEP`: judges a sweep file, then says what it would run (`--dry-run`) or runs it.

Whatever the user got wrong ends here as one `error:` line per mistake and exit code 2, before Ray is imported and
before anything is written.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from qdtune.plan import Placement, Plan, check_comparable, placement, plan
from qdtune.rules import Place, SpecError, mistake, one_line, unknown
from qdtune.spec import DATASETS, Spec, load

USAGE = (
    "qdtune launch SWEEP [--dry-run] [--runs-dir DIR] [--data-dir DIR] [--address A] [--fresh] [--set KEY=VALUE ...]"
)
FEW = 8  # sizes that are listed one by one


def main(argv: Sequence[str] | None = None) -> int:
    """Runs, finishes or describes a sweep; returns the exit code.

    Args:
        argv: the arguments after `launch`; those of the process if None.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # under LANG=C they could not print what a file may hold
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        code = _launch(_arguments(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader that went away shows here and not at exit
        return code
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before or after the sweep, which has its own way to stop
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class _Parser(argparse.ArgumentParser):
    """argparse with our way to say what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise mistake(f"{one_line(message)} (usage: {USAGE})")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="qdtune launch", description="Runs, or finishes, a sweep.", allow_abbrev=False)
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="the sweep file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and start nothing")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where run folders lie (default: runs)")
    parser.add_argument("--data-dir", type=Path, help="where data sets lie (default: QDTUNE_DATA, else data)")
    parser.add_argument("--address", help="a running Ray cluster (default: a local one of our own)")
    parser.add_argument("--fresh", action="store_true", help="start over: do not keep what the run folder holds")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="set a key of the file, as in train.qat.epochs=3",
    )
    arguments, others = parser.parse_known_args(argv)
    options = [option for action in parser._actions for option in action.option_strings]
    for other in others:
        if other.startswith("-"):
            raise mistake(unknown("option ", other.partition("=")[0], options))
    if others:
        parser.error(f"one sweep file at a time, got also {others[0]!r}")
    if not arguments.sweep:
        parser.error("no sweep file given")
    return arguments


@contextmanager
def _blaming(source: str) -> Iterator[None]:
    """Mistakes of no known place are the file's."""
    try:
        yield
    except SpecError as error:
        raise SpecError([replace(p, place=p.place or Place(source)) for p in error.problems]) from None


def _launch(arguments: argparse.Namespace) -> int:
    spec = load(arguments.sweep, arguments.set)
    from qdtune.data import default_root  # NumPy: not needed to say that a file is wrong

    data_dir = arguments.data_dir or default_root()
    with _blaming(arguments.sweep):
        planned = plan(spec.resolve(spec.data.dataset[0]))
        address = arguments.address or os.environ.get("RAY_ADDRESS") or None
        if arguments.dry_run or address is None:
            placed = placement(spec.resources, os.cpu_count() or 1, _gpus(), spec.run.max_concurrent_trials)
    if arguments.dry_run:
        folder = arguments.runs_dir / spec.name
        if not arguments.fresh:
            check_comparable(_likely(spec, data_dir), folder)
        _describe(spec, planned, placed, data_dir, folder)
        return 0
    return _run(spec, arguments, data_dir, address)


def _run(spec: Spec, arguments: argparse.Namespace, data_dir: Path, address: str | None) -> int:
    """Starts what takes seconds to import, in the order that Ray needs; says in one line what stands in the way."""
    from qdtune import cluster

    cluster.prepare(address)

    from qdtune import sweep
    from qdtune.data import DataError
    from qdtune.store import RunInUse, StorageError
    from qdtune.tables import NewerSchemaError

    codes = {DataError: 2, NewerSchemaError: 2, cluster.NoClusterError: 2, StorageError: 4, RunInUse: 5}
    try:
        return sweep.run(spec, runs_dir=arguments.runs_dir, data_dir=data_dir, address=address, fresh=arguments.fresh)
    except tuple(codes) as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return next(code for kind, code in codes.items() if isinstance(error, kind))


def _likely(spec: Spec, data_dir: Path) -> Spec:
    """The spec on the data set that a run would probably take: the first on disk."""
    from qdtune.data import on_disk

    names = spec.data.dataset
    return spec.resolve(next((name for name in names if on_disk(name, data_dir)), names[0]))


def _gpus(devices: Path = Path("/dev")) -> int:
    """NVIDIA GPUs of this machine, counted without loading a driver's library."""
    return len(list(devices.glob("nvidia[0-9]*")))


def _describe(spec: Spec, planned: Plan, placed: Placement, data_dir: Path, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = sys.stdout is not None and sys.stdout.isatty()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in _facts(spec, planned, placed, data_dir, folder):
        table.add_row(name, Text(text))  # Text: square brackets of the user are no markup
    console = Console(width=None if terminal else 80, highlight=False)
    with console.capture() as captured:  # printed by us: rich would end the process where a pipe is closed
        console.print(table)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _facts(spec: Spec, planned: Plan, placed: Placement, data_dir: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """What a dry run says, as (name, text)."""
    count = len(planned.trials)
    removed = sum(n for _, n in planned.excluded)
    yield "sweep", ": ".join(filter(None, [spec.name, one_line(spec.description)]))
    yield (
        "configurations",
        f"{count:,} ({planned.points:,} points, {removed:,} excluded, {planned.infeasible:,} infeasible)",
    )
    for rule, n in planned.excluded[:FEW]:
        yield "  excluded", f"{n:,} by {rule}"
    if planned.infeasible:
        yield "  infeasible", f"{planned.infeasible:,} by {', '.join(spec.constraints)}"
    if spec.run_cap and count < spec.run_cap:
        yield "  note", f"fewer than run_cap {spec.run_cap:,}: the space holds no more"
    if planned.twins:
        why = "an activation with depth 1, or a scale where nothing is quantised, changes nothing: exclude them"
        yield "  note", f"{planned.twins:,} repeat another one ({why})"
    if (folder / "trials").is_dir():  # the hashes cost too much where there is nothing to compare them with
        there = {path.stem for path in (folder / "trials").glob("*.parquet")}
        yield "  there", f"{sum(trial.trial_id in there for trial in planned.trials):,} have a result in {folder}"
    yield "seeds", f"{len(spec.seeds)} per configuration, trained together"
    yield "float warm-ups", f"{planned.warmups:,}, each trained once and shared"
    sizes = planned.distinct_sizes
    few = ", ".join(f"{size:,}" for size in sizes)
    yield (
        "sizes",
        f"{few} bytes" if len(sizes) <= FEW else f"{len(sizes):,}, from {sizes[0]:,} to {sizes[-1]:,} bytes",
    )
    yield "data", _data_text(spec, data_dir)
    yield "one trial", f"{placed.gpu:g} GPU, {placed.cpu:g} CPU"
    shared = f", {placed.per_gpu} per GPU" if placed.per_gpu else ""
    here = f"this machine: {os.cpu_count()} CPUs, {_gpus()} GPUs"
    yield "at once", f"{placed.concurrent:,} trials{shared}, so {placed.waves(count):,} waves ({here})"
    for note in placed.notes:
        yield "note", note


def _data_text(spec: Spec, data_dir: Path) -> str:
    from qdtune.data import on_disk

    name, *fallbacks = spec.data.dataset
    train = DATASETS[name].train - spec.data.val_size
    text = f"{name}: {train:,} samples to train on, {spec.data.val_size:,} to judge by; "
    if on_disk(name, data_dir):
        return f"{text}on disk"
    instead = f", and if that fails {' or '.join(fallbacks)} taken instead" if fallbacks else ""
    return f"{text}not in {one_line(str(data_dir))}, so it would be downloaded{instead}"


if __name__ == "__main__":
    sys.exit(main())
