"""`qdtune replay RUN`: how a pruner would have done in a sweep that was finished unpruned.

Its recorded curves are run again in simulated time: trials arrive in many orders, several at once, each epoch as long
as it was, give or take some noise. Every pruner is the one that a sweep would use, on the same studies, with the same
feed; only the training is a recording.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import random
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

from rich.table import Table

from qdtune.cli import Parser, guarded
from qdtune.configuration import Trial
from qdtune.feed import Feed
from qdtune.names import PLANNED
from qdtune.pareto import front, hypervolume
from qdtune.plan import ordered, plan, warmups_first
from qdtune.progress import console, counted
from qdtune.results import Result, results
from qdtune.rules import Place, SpecError, mistake, unknown
from qdtune.spec import Spec, loads
from qdtune.storage import LocationError, StorageError, child
from qdtune.store import Store
from qdtune.study import Study
from qdtune.tables import NewerSchemaError

USAGE = "qdtune replay RUN [--pruner RULE ...] [--orders N] [--at-once N,N] [--order ORDER] [--jobs N]"
RULES = (
    "pareto",
    "{type: successive_halving, scope: all}",
    "{type: successive_halving, scope: size}",
    "{type: hyperband, scope: all}",
    "{type: hyperband, scope: size}",
    "{type: median, scope: all}",
    "{type: median, scope: size}",
)
ORDERS = ("shuffled", "small_first", "large_first")
CHUNK = 10  # simulated sweeps of one task of a process

NOISE = 0.15  # standard deviation of log(time of an epoch) from one simulated sweep to another


@dataclass
class Score:
    """What a pruner did in n simulated sweeps.

    Attributes:
        saved: share of all QAT epochs that were not trained, per sweep.
        lost: front members that were not trained to their end, per sweep.
        kept: hypervolume of what was finished, as a share of the whole, per sweep.
    """

    saved: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    def __iadd__(self, other: Score) -> Score:
        self.saved += other.saved
        self.lost += other.lost
        self.kept += other.kept
        return self


def simulate(
    spec: Spec, recorded: Mapping[str, Result], order: Sequence[Trial], at_once: int, noise: random.Random
) -> tuple[int, set[str]]:
    """One simulated sweep: how many QAT epochs it trained, and the ids of what it trained to its end.

    Args:
        spec: with the pruner to judge; `order` is run as a grid is.
        recorded: results with whole curves, by trial_id.
        order: of the recorded trials.
        at_once: how many run at the same time.
        noise: for the speed of each trial.
    """
    feed = Feed(spec, order, Study(spec), [])
    places = {trial.trial_id: place for place, trial in enumerate(order)}
    pace = [math.exp(noise.gauss(0, NOISE)) for _ in order]
    ends: list[tuple[float, int, int]] = []  # when an epoch ends, which one it is, and the place of its trial
    now, epochs = 0.0, 0

    def begin(trial_id: str, epoch: int) -> None:
        place = places[trial_id]
        heapq.heappush(ends, (now + recorded[trial_id].seconds[epoch] * pace[place], epoch, place))

    while True:
        while len(feed.running) < at_once and (trial := feed.next()):
            if recorded[trial.trial_id].curve:
                begin(trial.trial_id, 1)
            else:  # it diverged in its warm-up
                feed.ended(recorded[trial.trial_id])
        if not ends:
            break
        now, epoch, place = heapq.heappop(ends)
        epochs += 1
        trial_id = order[place].trial_id
        result = recorded[trial_id]
        if epoch == len(result.curve):
            feed.ended(result)
        elif by := feed.study.report(trial_id, epoch, result.curve[epoch]):
            seen = {e: result.curve[e] for e in range(1, epoch + 1)}
            feed.ended(replace(result, state="pruned", accuracy=None, curve=seen, pruned_by=by))
        else:
            begin(trial_id, epoch + 1)
    return epochs, {trial_id for trial_id, result in feed.results.items() if result.state != "pruned"}


def score(
    spec: Spec, results: Sequence[Result], at_once: int, seeds: Iterable[int], order: str = "shuffled"
) -> Score:
    """What the pruner of the spec does in one simulated sweep per seed, which shuffles the arrivals.

    Args:
        spec: as it was run, but for its `early_terminate`.
        results: of the finished sweep, whole curves.
        at_once: trials at the same time.
        seeds: one each for a simulated sweep.
        order: one of `ORDERS`, applied to the shuffled trials.
    """
    spec = spec.model_copy(update={"method": "grid", "replicate": None})
    recorded = {result.trial.trial_id: result for result in results}
    costs = {
        i: (-r.accuracy, math.log2(r.trial.ledger.size_bytes)) for i, r in recorded.items() if r.accuracy is not None
    }
    ids = list(costs)
    members = {i for i, on in zip(ids, front(list(costs.values())), strict=True) if on}
    # Nothing is gained at chance level, or beyond twice the largest size.
    assert spec.data.info is not None
    corner = (-1 / spec.data.info.classes, 1 + max(size for _, size in costs.values()))
    whole = hypervolume(list(costs.values()), corner)
    epochs = sum(len(result.curve) for result in results)
    found = Score()
    for seed in seeds:
        noise = random.Random(seed)
        trials = noise.sample([result.trial for result in results], len(results))
        trained, finished = simulate(
            spec, recorded, trials if order == "shuffled" else warmups_first(ordered(trials, order)), at_once, noise
        )
        found.saved.append(1 - trained / epochs)
        found.lost.append(len(members - finished))
        kept = [costs[i] for i in ids if i in finished]
        found.kept.append(hypervolume(kept, corner) / whole if whole and kept else float(not whole))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Judges pruners on a run folder; returns the exit code.

    Args:
        argv: the arguments after `replay`; those of the process if None.
    """
    return guarded(lambda: _replay(_arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser("replay", USAGE, "Judges pruners on the recorded curves of a finished, unpruned sweep.")
    parser.add_argument("run", metavar="RUN", nargs="?", help="its run folder")
    parser.add_argument(
        "--pruner",
        action="append",
        metavar="RULE",
        help="as early_terminate in a sweep file: a type, or '{type: pareto, margin: 0.02}' (default: a selection)",
    )
    parser.add_argument("--orders", type=int, default=100, help="shuffled orders of arrival (default: 100)")
    parser.add_argument("--at-once", default="2,4,8", help="trials at the same time (default: 2,4,8)")
    parser.add_argument("--order", default="shuffled", help=f"how a sweep orders them: {', '.join(ORDERS)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    arguments = parser.read(argv)
    if arguments.run is None:
        parser.error("no run folder given")
    if arguments.order not in ORDERS:
        parser.error(f"--order: {unknown('', arguments.order, ORDERS)}")
    if not all(n.isdecimal() and int(n) for n in arguments.at_once.split(",")):
        parser.error(f"--at-once must be whole numbers above 0 with commas between, got {arguments.at_once!r}")
    if arguments.orders < 1 or arguments.jobs < 1:
        parser.error(f"--orders and --jobs must be 1 or more, got {arguments.orders} and {arguments.jobs}")
    return arguments


def _replay(arguments: argparse.Namespace) -> int:
    spec, recorded = recording(arguments.run)
    specs = {}
    for rule in arguments.pruner or RULES:
        specs[rule] = with_pruner(spec, rule)
    at_once = [int(n) for n in arguments.at_once.split(",")]
    out = console()
    epochs = sum(len(result.curve) for result in recorded)
    out.print(
        f"{arguments.run}: {counted(len(recorded), 'trial')} on {spec.data.names[0]}, {epochs:,} QAT epochs; "
        f"{counted(arguments.orders, 'order')}, {arguments.order}, {arguments.at_once} trials at once"
    )
    out.print(
        "saved: QAT epochs; lose: orders in which a front member is not trained to its end; lost: how many, on "
        "average; kept: hypervolume, mean and worst",
        style="dim",
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("pruner", overflow="fold")
    for name in ("at once", "saved", "lose", "lost", "kept", "worst"):
        table.add_column(name, justify="right")
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("forkserver")) as pool:
        tasks = {
            (rule, n): [
                pool.submit(score, spec, recorded, n, range(i, min(i + CHUNK, arguments.orders)), arguments.order)
                for i in range(0, arguments.orders, CHUNK)
            ]
            for rule, spec in specs.items()
            for n in at_once
        }
        with out.status("replaying") if out.is_terminal else nullcontext():
            for (rule, n), parts in tasks.items():
                whole = Score()
                for part in parts:
                    whole += part.result()
                table.add_row(
                    rule.strip("{}").removeprefix("type: ") if n == at_once[0] else "", str(n), *_cells(whole)
                )
    out.print(table)
    return 0


def _cells(scored: Score) -> Iterator[str]:
    yield f"{statistics.mean(scored.saved):.1%}"
    yield f"{sum(lost > 0 for lost in scored.lost) / len(scored.lost):.1%}"
    yield f"{statistics.mean(scored.lost):.2f}"
    yield f"{statistics.mean(scored.kept):.2%}"
    yield f"{min(scored.kept):.2%}"


def recording(run: str) -> tuple[Spec, list[Result]]:
    """The spec of a run folder, and its results with whole curves.

    Raises:
        SpecError: there is nothing to replay.
    """
    try:
        store = Store(run)
        text = store.sweep_yaml()
        if text is None:
            raise mistake(f"{run} is no run folder: it holds no sweep.yaml")
        spec = loads(text, child(run, "sweep.yaml"))
        found = results(spec, store.trials(), store.history())
    except (StorageError, LocationError, NewerSchemaError) as error:
        raise mistake(str(error)) from None
    stopped = sum(result.state == "pruned" for result in found)
    if stopped:
        what = f"{run} holds {counted(stopped, 'trial')} without a whole curve, stopped early"
        raise mistake(f"{what}: finish it with --set 'early_terminate={{type: none}}'")
    found = [r for r in found if r.state in ("ok", "diverged") and r.trial.seeds == spec.seeds]
    if not any(result.accuracy is not None for result in found):
        raise mistake(f"{run} holds no finished trial: run its sweep first")
    if spec.method in PLANNED and (left := len(plan(spec).trials) - len(found)) > 0:
        raise mistake(f"{run} is not finished, {counted(left, 'configuration')} left: run its sweep to its end first")
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


if __name__ == "__main__":
    sys.exit(main())
