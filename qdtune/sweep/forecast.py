"""About how long a sweep takes on this machine, from the times of some of its configurations.

The times come from results in the run folder, or from a measurement (`training/step_time.py`). All else is
arithmetic: epochs x trainings / trials at a time. Only the measurement imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from qdtune.messages import format_count
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import Plan
from qdtune.spec.pruners import Pareto
from qdtune.spec.sweep_file import Spec
from qdtune.sweep.placement import Placement

if TYPE_CHECKING:
    from qdtune.datasets.load import Samples
    from qdtune.store.results import Result

FACTOR_MACS = 2_000  # a factor costs as much as so many multiplications (measured, one core)
START_S = 12.0  # Ray and the first workers (measured, two cores)
OVERHEAD_S = 0.5  # of a training besides its epochs, if it was not measured: building, testing, storing
CACHED_S = 2.0  # a step from the cache takes less
MAX_SAMPLES = 4  # configurations that are measured
WARMUP_SHARE = 0.6  # of the time of a QAT epoch that a warm-up epoch takes (measured, one core)


@dataclass(frozen=True)
class Timed:
    """How long one configuration takes.

    Attributes:
        trial: the configuration.
        qat_s: of a QAT epoch of all its seeds.
        overhead_s: of a training, besides its epochs.
        compile_s: that its QAT step took to compile, which a launch does not repeat.
    """

    trial: Configuration
    qat_s: float
    overhead_s: float = OVERHEAD_S
    compile_s: float = 0.0


def cost_of(trial: Configuration) -> float:
    """What the time of a training step grows with, in multiplications for one sample."""
    factors = sum(len(dims) + 1 for dims in trial.structure.inner_dims(trial.depth, trial.decompose))
    return trial.structure.macs(trial.depth, trial.decompose) + FACTOR_MACS * factors


def choose_samples(trials: Sequence[Configuration]) -> list[Configuration]:
    """At most `MAX_SAMPLES` of the configurations, spread over their costs; the ends first."""
    ordered, last = sorted(trials, key=cost_of), len(trials) - 1
    places = dict.fromkeys(round(share * last) for share in (1, 0, 1 / 3, 2 / 3))
    return [ordered[place] for place in places]


def measure_times(
    spec: Spec,
    trials: Sequence[Configuration],
    samples: Samples,
    place: Placement,
    tell: Callable[[Configuration], None],
) -> list[Timed]:
    """The times of some configurations, measured here by a few steps of each.

    Args:
        spec: resolved.
        trials: one or more.
        samples: the data set.
        place: what one trial gets.
        tell: called with each configuration before it is measured.
    """
    from qdtune.training.step_time import time_configurations  # torch

    found = time_configurations(trials, samples, spec.run.compile, place.cpu, place.gpu, tell)
    measured = trials[: len(found)]
    return [Timed(trial, *times) for trial, times in zip(measured, found, strict=True)]


def time_results(results: Iterable[Result]) -> list[Timed]:
    """The times of earlier results."""
    return [Timed(one.trial, fmean(one.seconds.values())) for one in results if one.seconds]


@dataclass(frozen=True)
class Forecast:
    """How long a sweep takes.

    Attributes:
        least_s, most_s: without compiling.
        steps: how many training steps are compiled, as far as known.
        compile_s: that it takes to compile them.
        at_once: trials at a time.
    """

    least_s: float
    most_s: float
    steps: int
    compile_s: float
    at_once: int

    def __str__(self) -> str:
        """`about 4 to 6 minutes on this machine, 2 at a time`, and what compiling adds."""
        text = f"{format_span(self.least_s, self.most_s)} on this machine, {self.at_once} at a time"
        if self.compile_s < 1:
            return text
        more = format_span(self.compile_s, self.compile_s)
        return f"{text}; {more} more to compile {format_count(self.steps, 'step')}, once for all sweeps"


def forecast_time(
    spec: Spec,
    planned: Plan,
    waiting: Sequence[Configuration],
    left: int,
    place: Placement,
    timed: Sequence[Timed],
) -> Forecast:
    """How long the rest of a sweep takes.

    Args:
        spec: resolved.
        planned: its plan.
        waiting: the configurations of the plan that have no result; one or more. A sample if the method searches.
        left: how many trainings are left, besides further seeds.
        place: how trials share this machine.
        timed: of one configuration or more.
    """
    times, all_epochs = _Times(timed), spec.train.qat.epochs

    def list_seconds(trials: Sequence[Configuration], epochs: int) -> list[float]:
        return [times.qat_s(trial) * epochs + times.overhead_s for trial in trials]

    scale = left / len(waiting)
    warm_epochs = WARMUP_SHARE * spec.train.warmup.epochs  # as so many QAT epochs
    warm = sum({trial.warmup_key: times.qat_s(trial) * warm_epochs for trial in waiting}.values())
    whole, all_of_plan = list_seconds(waiting, all_epochs), list_seconds(planned.trials, all_epochs)
    least_more, most_more = _count_more(spec, all_of_plan, warm)
    least = sum(list_seconds(waiting, _earliest_stop(spec))) + least_more
    at_once = max(1, min(place.concurrent, left))
    least_s = scale * (warm + least) / at_once
    most_s = max(scale * (warm + sum(whole) + most_more) / at_once, max(whole) - times.overhead_s)
    steps = {_describe_step(trial) for trial in waiting}  # a warm-up is hardly ever long enough to be compiled
    new = [one.compile_s for one in timed if one.compile_s > CACHED_S]
    to_compile = round(max(0, len(steps) - len(timed)) * len(new) / len(timed))  # as many are new as of those timed
    compile_s = fmean(new) * to_compile / at_once if new else 0.0
    return Forecast(START_S + least_s, START_S + max(least_s, most_s), to_compile, compile_s, at_once)


class _Times:
    """The times of any configuration, between those of configurations with similar costs."""

    def __init__(self, timed: Sequence[Timed]) -> None:
        groups: dict[float, list[Timed]] = {}
        for one in timed:
            groups.setdefault(cost_of(one.trial), []).append(one)
        self.costs = sorted(groups)
        self.qat = [fmean(one.qat_s for one in groups[cost]) for cost in self.costs]
        self.overhead_s = fmean(one.overhead_s for one in timed)

    def qat_s(self, trial: Configuration) -> float:
        """Of a QAT epoch: linear between two costs, and above them in proportion to the cost."""
        import numpy as np

        cost = cost_of(trial)
        return float(np.interp(cost, self.costs, self.qat)) * max(1.0, cost / self.costs[-1])


def _earliest_stop(spec: Spec) -> int:
    """The first QAT epoch after which a trial may end."""
    rule = spec.early_terminate.pruner
    if isinstance(rule, Pareto):
        return min(spec.train.qat.epochs, rule.min_epochs + rule.patience - 1)
    return spec.train.qat.epochs if spec.early_terminate.type == "none" else 1


def _count_more(spec: Spec, all_of_plan: Sequence[float], warm: float) -> tuple[float, float]:
    """The least and the most seconds of further seeds.

    Args:
        spec: resolved.
        all_of_plan: the seconds of the first training of each configuration.
        warm: of all warm-ups.
    """
    wanted, first = spec.replicate, len(spec.seeds)
    if wanted is None:
        return 0.0, 0.0
    rounds = math.ceil(((spec.looks[-1] if spec.looks else wanted.front or 0) - first) / first)
    most = rounds * (sum(all_of_plan) + warm)
    if wanted.trainings is not None:
        most = min(most, wanted.trainings / first * max(all_of_plan))
    if wanted.seconds is not None:
        most = min(most, wanted.seconds)
    return (0.0 if spec.looks else rounds * min(all_of_plan)), most  # a front has one configuration or more


def _describe_step(trial: Configuration) -> tuple[object, ...]:
    """What decides the machine code of its steps, see `step.StepShape`."""
    shape = (trial.hidden, trial.depth, trial.activation, trial.decompose)
    return (*shape, trial.weight_bits == FLOAT_BITS, trial.act_bits is None, trial.granularity, trial.scale == "lsq")


def format_span(least_s: float, most_s: float) -> str:
    """`about 4 to 6 minutes`; one number if both are about the same."""
    unit, seconds = next((name, n) for name, n in _UNITS if most_s >= 1.5 * n or n == 1)
    low, high = (_round(value / seconds) for value in (least_s, most_s))
    if low == high:
        return f"about {high:g} {unit if high == 1 else f'{unit}s'}"
    return f"about {low:g} to {high:g} {unit}s"


_UNITS = (("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1))


def _round(value: float) -> float:
    """A whole number, or below 3 one with a half; never 0."""
    return max(0.5, round(2 * value) / 2) if value < 3 else float(round(value))
