"""Optuna's samplers, the space that they choose from, and the first configurations of a search."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from qdtune.spec.axes import decisive_axes
from qdtune.spec.choices import PLANNED
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import draw_candidates, sort_trials
from qdtune.spec.points import round_to_six_digits
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import Values, cell_text

STARTUP = 10  # configurations that tpe and gp draw at random before they use results
OPENING = (8, 50)  # limits of run_cap / 5: the first configurations of a search, and a genetic method's population
SPREAD_FROM = 200  # the first configurations are chosen from so many candidates


def make_sampler(method: str, run_cap: int, seed: int) -> BaseSampler:
    """The Optuna sampler of a sweep's method; a planned method gets a sampler that is never asked."""
    population = _first(run_cap)
    with experimental():
        match method:
            case "tpe":
                return TPESampler(seed=seed, multivariate=True, n_startup_trials=STARTUP)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=population)
            case "nsga3":
                return NSGAIIISampler(seed=seed, population_size=population)
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
            case "qmc":
                return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)
    return RandomSampler(seed=seed)


def _first(run_cap: int) -> int:
    low, high = OPENING
    return min(max(run_cap // 5, low), high)


def choose_opening(spec: Spec, known: Collection[tuple[Any, ...]] = ()) -> list[Configuration]:
    """The first configurations of a search, last one first, spread over all costs and over the values of all axes.

    They are chosen from some configurations drawn at random. What they cost, bytes or the first cost of the front,
    grows by about the same factor from one to the next, as hypervolumes count costs: one from each part of the range
    of its logarithm, or the nearest to it. The first is the cheapest of those drawn. Each of the others has as many
    values as possible that none before it has, such as a kind of network that few images fit.

    Args:
        spec: of a search; a planned sweep has no opening.
        known: the keys of configurations that have been tried. If they are as many as an opening has, it is over;
            to draw candidates can take seconds.
    """
    count = min(spec.run_cap or 1, _first(spec.run_cap or 1))
    if spec.method in PLANNED or len(known) >= count:
        return []
    drawn = sort_trials(list(islice(draw_candidates(spec), SPREAD_FROM)), "small_first")
    cost = spec.costs[0]
    assert cost.value is not None  # each cost is known before training
    sizes = {trial.trial_id: cost.log2(cost.value(trial)) for trial in drawn}
    left = sorted(drawn, key=lambda trial: sizes[trial.trial_id])
    count = min(count, len(left))
    part_of = _part_by_size(sizes, count)
    network_of = {trial.trial_id: tuple(decisive_axes(trial.cells).items()) for trial in drawn}
    seen: set[tuple[str, Any]] = set()
    opening: list[Configuration] = []
    for part in range(count):
        taken = {network_of[trial.trial_id] for trial in opening}
        best = min(
            left,
            key=lambda t: (
                abs(part_of[t.trial_id] - part),
                network_of[t.trial_id] in taken,
                len(seen & t.cells.items()),
            ),
        )
        left.remove(best)
        seen.update(best.cells.items())
        opening.insert(0, best)
    return [trial for trial in opening if trial.key not in known]


def _part_by_size(sizes: Mapping[str, float], count: int) -> dict[str, int]:
    """For each trial_id its part, from 0: the range of the sizes is cut into `count` equal parts."""
    low, high = min(sizes.values(), default=0), max(sizes.values(), default=0)
    width = (high - low) / count if high > low else 1
    return {trial_id: min(int((size - low) / width), count - 1) for trial_id, size in sizes.items()}


def make_distribution(axis: Values[Any]) -> BaseDistribution:
    """The Optuna distribution of an axis: consecutive whole numbers are a range, so that their order counts."""
    values = axis.choices
    if values is None:
        return FloatDistribution(axis.min, axis.max, log=axis.distribution == "log_uniform")  # type: ignore[attr-defined]
    if isinstance(values[0], int) and values == tuple(range(values[0], values[0] + len(values))):
        return IntDistribution(values[0], values[-1])
    return CategoricalDistribution([cell_text(v) if isinstance(v, tuple) else v for v in values])


@contextlib.contextmanager
def experimental() -> Iterator[None]:
    """Hides Optuna's warnings about experimental features; its version is pinned, and tests cover what we use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def read_params(spec: Spec, params: Mapping[str, Any]) -> dict[str, Any]:
    """A value for each axis, as in tables, from Optuna's parameters, which name only the axes that vary."""
    found = {}
    for name, axis in spec.axes.items():
        value = params[name] if name in params else (axis.choices or ())[0]
        if axis.choices is None:
            value = round_to_six_digits(value, axis.min, axis.max)  # type: ignore[attr-defined]
        found[name] = cell_text(value) if isinstance(value, tuple) else value
    return found
