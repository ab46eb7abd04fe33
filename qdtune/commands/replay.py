"""`qdtune replay RUN`: how a pruner would have done in a sweep that was finished unpruned.

Its recorded curves are run again in simulated time: trials arrive in many orders, several at once, each epoch as long
as it was, give or take some noise. Every pruner is the one that a sweep would use, on the same studies, with the same
queue; only the training is a recording.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import get_context

from qdtune.commands.parser import Parser, run_command
from qdtune.commands.verb import Verb
from qdtune.machine import count_cpus
from qdtune.messages import Place, SpecError, describe_unknown, format_count, one_line, user_error
from qdtune.search.simulation import Score, score
from qdtune.spec.choices import PLANNED
from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store.folder import LocationError, StorageError
from qdtune.store.opened import open_run
from qdtune.store.parquet import NewerSchemaError
from qdtune.store.results import Result
from qdtune.terminal import console, is_live_console, text_table

VERB = Verb(place=9, text="compare pruners on a finished sweep")
USAGE = "qdtune replay RUN [--pruner RULE ...] [--orders N] [--at-once N,N] [--order ORDER] [--jobs N]"
DEFAULT_RULES = (
    "pareto",
    "{type: successive_halving, scope: all}",
    "{type: successive_halving, scope: size}",
    "{type: hyperband, scope: all}",
    "{type: hyperband, scope: size}",
    "{type: median, scope: all}",
    "{type: median, scope: size}",
)
ORDERS = ("shuffled", "small_first", "large_first")
CHUNK_SWEEPS = 10  # simulated sweeps of one task of a process


def main(argv: Sequence[str] | None = None) -> int:
    """Judges pruners on a run folder; returns the exit code.

    Args:
        argv: the arguments after `replay`; those of the process if None.
    """
    return run_command(lambda: _replay(_read_arguments(argv)))


def _read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("replay", USAGE, "Judges pruners on the recorded curves of a finished, unpruned sweep.")
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder")
    parser.add_argument(
        "--pruner",
        action="append",
        metavar="RULE",
        help="pruner, as in early_terminate: a type, or '{type: pareto, margin: 0.02}' (default: a selection)",
    )
    parser.add_argument(
        "--orders", metavar="N", type=int, default=100, help="simulated sweeps of each pruner (default: 100)"
    )
    parser.add_argument(
        "--at-once", metavar="N,N", default="2,4,8", help="numbers of parallel trials (default: 2,4,8)"
    )
    default, *others = ORDERS
    what = f"how trials arrive in a simulated sweep: {default} (default), {' or '.join(others)}"
    parser.add_argument("--order", metavar="ORDER", default=default, help=what)
    parser.add_argument(
        "--jobs", metavar="N", type=int, default=count_cpus(), help="number of processes (default: one per core)"
    )
    arguments = parser.read(argv)
    if arguments.run is None:
        parser.error("no run folder given")
    if arguments.order not in ORDERS:
        parser.error(f"--order: {describe_unknown('', arguments.order, ORDERS)}")
    if not all(n.isdecimal() and int(n) for n in arguments.at_once.split(",")):
        parser.error(f"--at-once must be whole numbers above 0 with commas between, got {arguments.at_once!r}")
    if arguments.orders < 1 or arguments.jobs < 1:
        parser.error(f"--orders and --jobs must be 1 or more, got {arguments.orders} and {arguments.jobs}")
    return arguments


def _replay(arguments: argparse.Namespace) -> int:
    spec, recorded = read_recording(arguments.run)
    specs = {}
    for rule in arguments.pruner or DEFAULT_RULES:
        specs[rule] = with_pruner(spec, rule)
    at_once = [int(n) for n in arguments.at_once.split(",")]
    out = console()
    epochs = sum(len(result.curve) for result in recorded)
    out.print(
        f"{one_line(arguments.run)}: {format_count(len(recorded), 'trial')} on {spec.data.names[0]}, "
        f"{epochs:,} QAT epochs; "
        f"{format_count(arguments.orders, 'order')}, {arguments.order}, {arguments.at_once} trials at once"
    )
    out.print(
        "saved: QAT epochs; resumed: the same if released trials go on where they stopped; lose: orders in which a "
        "front member is not trained to its end; lost: how many, on average; kept: hypervolume, mean and worst",
        style="dim",
    )
    rows: list[list[str]] = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("forkserver")) as pool:
        tasks = {
            (rule, n): [
                pool.submit(
                    score, spec, recorded, n, range(i, min(i + CHUNK_SWEEPS, arguments.orders)), arguments.order
                )
                for i in range(0, arguments.orders, CHUNK_SWEEPS)
            ]
            for rule, spec in specs.items()
            for n in at_once
        }
        with out.status("replaying") if is_live_console(out) else nullcontext():
            for (rule, n), parts in tasks.items():
                whole = Score()
                for part in parts:
                    whole += part.result()
                name = rule.strip("{}").removeprefix("type: ") if n == at_once[0] else ""
                rows.append([name, str(n), *_format_cells(whole)])
    out.print(
        text_table(
            ["pruner", "at once", "saved", "resumed", "lose", "lost", "kept", "worst"], rows, folded=["pruner"]
        )
    )
    return 0


def _format_cells(scored: Score) -> Iterator[str]:
    yield f"{statistics.mean(scored.saved):.1%}"
    yield f"{statistics.mean(scored.resumed):.1%}"
    yield f"{sum(lost > 0 for lost in scored.lost) / len(scored.lost):.1%}"
    yield f"{statistics.mean(scored.lost):.2f}"
    yield f"{statistics.mean(scored.kept):.2%}"
    yield f"{min(scored.kept):.2%}"


def read_recording(run: str) -> tuple[Spec, list[Result]]:
    """The spec of a run folder, and its results with whole curves.

    Raises:
        SpecError: there is nothing to replay.
    """
    try:
        opened = open_run(run)
        spec, found = opened.spec, opened.read_rows().results
    except (StorageError, LocationError, NewerSchemaError) as error:
        raise user_error(str(error)) from None
    stopped = sum(result.state == "pruned" for result in found)
    if stopped:
        what = f"{run} holds {format_count(stopped, 'trial')} without a whole curve, stopped early"
        how = "train them to their end with `qdtune launch SWEEP --set 'early_terminate={type: none}'`, then replay"
        raise user_error(f"{what}: {how}")
    found = [r for r in found if r.state in ("ok", "diverged") and r.trial.seeds == spec.seeds]
    if not any(result.score is not None for result in found):
        raise user_error(f"{run} holds no finished trial: run its sweep first")
    if spec.method in PLANNED and (left := len(plan(spec).trials) - len(found)) > 0:
        raise user_error(
            f"{run} is not finished, {format_count(left, 'configuration')} left: run its sweep to its end first"
        )
    return spec, found


def with_pruner(spec: Spec, rule: str) -> Spec:
    """The sweep with another `early_terminate`, written as in a sweep file.

    Raises:
        SpecError: the rule is not one.
    """
    text = rule if rule.startswith("{") else f"{{type: {rule}}}"
    try:
        return loads(spec.to_yaml().encode(), "sweep.yaml", [f"early_terminate={text}"])
    except SpecError as error:
        raise SpecError(
            [replace(p, place=Place(f"--pruner {rule}"), path=p.path[1:]) for p in error.problems]
        ) from None
