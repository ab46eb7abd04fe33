"""Do the samplers find a front sooner than chance? Hypervolume after 25, 50 and 100 configurations, on a recording.

    python tests/benchmarks/samplers.py RUN [--seeds 5] [--run-cap 100] [--by-hand AXIS=VALUE ...]

RUN is the folder of a finished, unpruned grid with many more configurations than that, such as
`tests/data/recorded_cnn.yaml`; training is looked up in it.
Each method is the one a sweep would use, through the same study and queue, two trials at a time.

`--by-hand` names the part of the grid that a person would train, all configurations with these values. All methods
then get the training time of this part.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path

from qdtune.commands.replay import read_recording
from qdtune.datasets.known import dataset_of
from qdtune.pareto import hypervolume
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.sweep_file import Spec
from qdtune.store.results import Result

METHODS = ("random", "qmc", "tpe", "nsga2", "nsga3")  # gp, too, with --methods: it took more than 10 minutes
AFTER = (25, 50, 100)
AT_ONCE = 2


def found(spec: Spec, recorded: dict[str, Result], seed: int) -> list[Result]:
    """The results in the order in which a sweep of this method would have got them."""
    planned = random.Random(seed).sample([result.trial for result in recorded.values()], len(recorded))
    queue = Queue(spec, planned[: spec.run_cap], Study(spec, seed=seed), [])
    order: list[Result] = []
    while True:
        while len(queue.running) < AT_ONCE and queue.next():
            pass
        if not queue.running:
            return order
        trial_id = next(iter(queue.running))  # all take equally long: the first to start is the first to end
        queue.ended(recorded[trial_id])
        order.append(recorded[trial_id])


def choose_by_hand(recorded: list[Result], values: list[str]) -> list[Result]:
    """The configurations with these values (AXIS=VALUE, as in tables)."""
    wanted = [value.split("=", 1) for value in values]
    return [r for r in recorded if all(str(r.trial.cells[axis]) == value for axis, value in wanted)]


def within(order: list[Result], seconds: float) -> list[Result]:
    """The first results whose trainings take no longer than this together."""
    totals = accumulate(sum(result.seconds.values()) for result in order)
    return [result for result, total in zip(order, totals, strict=True) if total <= seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--run-cap", type=int, default=max(AFTER), help="configurations of a search")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--by-hand", nargs="+", default=[], metavar="AXIS=VALUE")
    arguments = parser.parse_args()
    spec, results = read_recording(arguments.run)
    recorded = {result.trial.trial_id: result for result in results}
    largest = max(result.trial.sizes.size_bytes for result in results)
    corner = (-1 / dataset_of(spec.data.dataset[0]).classes, 1 + math.log2(largest))

    def volume(some: list[Result]) -> float:
        costs = [(-r.score, math.log2(r.trial.sizes.size_bytes)) for r in some if r.score is not None]
        return hypervolume(costs, corner)

    whole = volume(results)
    print(f"{arguments.run}: {len(results)} recorded configurations; share of their hypervolume, mean ± sd")
    print(f"n = {arguments.seeds} seeds; optuna {version('optuna')}, Python {platform.python_version()}")
    by_hand = choose_by_hand(results, arguments.by_hand) if arguments.by_hand else []
    seconds = sum(sum(result.seconds.values()) for result in by_hand)
    if by_hand:
        print(f"by hand, {len(by_hand)} configurations, {seconds:.0f} s of training: {volume(by_hand) / whole:.2%}")
    counts = [n for n in AFTER if n <= arguments.run_cap]
    heads = [*(f"after {n}" for n in counts), *(["in that time"] if by_hand else [])]
    print(f"{'method':8}" + "".join(f"{head:>18}" for head in heads) + f"{'s per sweep':>14}")
    table: dict[str, dict[str, list[float]]] = {}
    for method in arguments.methods.split(","):
        searching = spec.model_copy(update={"method": method, "run_cap": min(arguments.run_cap, len(results))})
        began = time.perf_counter()
        orders = [found(searching, recorded, seed) for seed in range(arguments.seeds)]
        took = (time.perf_counter() - began) / arguments.seeds
        table[method] = {f"after {n}": [volume(order[:n]) / whole for order in orders] for n in counts}
        if by_hand:
            table[method]["in that time"] = [volume(within(order, seconds)) / whole for order in orders]
        cells = [f"{statistics.mean(v):.2%} ± {100 * statistics.stdev(v):.2f}" for v in table[method].values()]
        print(f"{method:8}" + "".join(f"{cell:>18}" for cell in cells) + f"{took:14.1f}", flush=True)
    print(json.dumps({"run": str(arguments.run), "share_of_hypervolume": table}))


if __name__ == "__main__":
    main()
