"""How a pruner would have performed in a sweep that finished without pruning.

The recorded curves run again in simulated time: trials arrive in many orders, several at once, and each epoch takes
as long as it did, with some noise. Pruner, studies and queue are those of a real sweep; only training is replayed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from qdtune.pareto import front, hypervolume
from qdtune.search.queue import Queue
from qdtune.search.study import Study
from qdtune.spec.configuration import Configuration
from qdtune.spec.objectives import find_known, untrained_value
from qdtune.spec.plan import put_warmups_first, sort_trials
from qdtune.spec.sweep_file import Spec
from qdtune.store.results import Result

NOISE = 0.15  # standard deviation of log(epoch time) between simulated sweeps


@dataclass
class Score:
    """The results of a pruner in n simulated sweeps, a number per sweep.

    Attributes:
        saved: share of all QAT epochs that were not trained, if released trials are trained from their beginning.
        resumed: the same if released trials go on where they were stopped.
        lost: members of the front that were stopped.
        kept: hypervolume of the finished trials, as a share of the hypervolume of all.
    """

    saved: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)

    def __iadd__(self, other: Score) -> Score:
        self.saved += other.saved
        self.resumed += other.resumed
        self.lost += other.lost
        self.kept += other.kept
        return self


def simulate(
    spec: Spec, recorded: Mapping[str, Result], order: Sequence[Configuration], at_once: int, noise: random.Random
) -> tuple[int, int, dict[str, Result]]:
    """One simulated sweep, in which released trials are trained from their beginning.

    Returns:
        How many QAT epochs it trained, how many of them twice, and the result of each trial, by trial_id.

    Args:
        spec: with the pruner to test; `order` runs like a grid.
        recorded: results with whole curves, by trial_id.
        order: of the recorded trials.
        at_once: how many run at the same time.
        noise: for the speed of each trial.
    """
    queue = Queue(spec, order, Study(spec), [])
    places = {trial.trial_id: place for place, trial in enumerate(order)}
    pace = [math.exp(noise.gauss(0, NOISE)) for _ in order]
    ends: list[tuple[float, int, int]] = []  # when an epoch ends, its number, and the place of its trial
    now, epochs = 0.0, 0

    def begin(trial_id: str, epoch: int) -> None:
        place = places[trial_id]
        heapq.heappush(ends, (now + recorded[trial_id].seconds[epoch] * pace[place], epoch, place))

    while True:
        while len(queue.running) < at_once and (trial := queue.next()):
            if recorded[trial.trial_id].curve:
                begin(trial.trial_id, 1)
            else:  # it diverged in its warm-up
                queue.ended(recorded[trial.trial_id])
        if not ends:
            break
        now, epoch, place = heapq.heappop(ends)
        epochs += 1
        trial_id = order[place].trial_id
        result = recorded[trial_id]
        if epoch == len(result.curve):
            queue.ended(result)
        elif by := queue.study.report(trial_id, epoch, result.curve[epoch]):
            seen = {e: result.curve[e] for e in range(1, epoch + 1)}
            queue.ended(replace(result, state="pruned", score=None, curve=seen, pruned_by=by))
        else:
            begin(trial_id, epoch + 1)
    return epochs, queue.twice, queue.results


def _find_corner(
    spec: Spec, costs: Sequence[tuple[float, ...]], on_front: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """The reference point of the hypervolume: a network that has learned nothing, and twice each largest cost.

    The worst network takes its place if the metric has no such value, or if one on the front is worse than that, as
    with an R² below 0: it would add nothing.
    """
    assert spec.data.info is not None
    untrained = untrained_value(spec.metric, spec.data.info)
    floor = math.inf if untrained is None else -spec.metric.sign * untrained
    errors, *others = zip(*costs, strict=True)
    if untrained is None or any(cost > floor for cost, *_ in on_front):
        floor = max(errors)
    return (floor, *(1 + max(values) for values in others))


def _measure_costs(spec: Spec, trial: Configuration) -> list[float]:
    """The costs of the front in halvings."""
    return [cost.log2(find_known(trial, cost.name)) for cost in spec.costs]


def score(
    spec: Spec, results: Sequence[Result], at_once: int, seeds: Iterable[int], order: str = "shuffled"
) -> Score:
    """The results of the spec's pruner in one simulated sweep per seed, which shuffles the order of trials.

    Args:
        spec: as it was run, with another `early_terminate`.
        results: of the finished sweep, with whole curves.
        at_once: how many trials run at the same time.
        seeds: one per simulated sweep.
        order: one of `ORDERS`, applied to the shuffled trials.
    """
    spec = spec.model_copy(update={"method": "grid", "replicate": None})
    recorded = {result.trial.trial_id: result for result in results}
    scores = {i: result.score for i, result in recorded.items() if result.score is not None}
    costs = {i: (-value, *_measure_costs(spec, recorded[i].trial)) for i, value in scores.items()}
    ids = list(costs)
    members = {i for i, on in zip(ids, front(list(costs.values())), strict=True) if on}
    corner = _find_corner(spec, list(costs.values()), [costs[i] for i in members])
    whole = hypervolume(list(costs.values()), corner)
    epochs = sum(len(result.curve) for result in results)
    found = Score()
    for seed in seeds:
        noise = random.Random(seed)
        trials = noise.sample([result.trial for result in results], len(results))
        started = trials if order == "shuffled" else put_warmups_first(sort_trials(trials, order))
        trained, twice, ends = simulate(spec, recorded, started, at_once, noise)
        finished = {trial_id for trial_id, result in ends.items() if result.state != "pruned"}
        found.saved.append(1 - trained / epochs)
        found.resumed.append(1 - (trained - twice) / epochs)
        found.lost.append(len(members - finished))
        kept = [costs[i] for i in ids if i in finished]
        found.kept.append(hypervolume(kept, corner) / whole if whole and kept else float(not whole))
    return found
