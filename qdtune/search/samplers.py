"""Who proposes configurations: Optuna's samplers, the space they choose from, and what a search begins with."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
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

from qdtune.spec.choices import PLANNED
from qdtune.spec.configuration import Configuration
from qdtune.spec.plan import draw_candidates, sort_trials
from qdtune.spec.sweep_file import Spec
from qdtune.spec.values import Values, cell_text

STARTUP = 10  # configurations that tpe and gp draw at random before they have something to learn from
OPENING = (8, 50)  # first configurations of a search, and population of a genetic one: run_cap / 5, within these
SPREAD_FROM = 200  # candidates from which the first ones are taken


def make_sampler(method: str, run_cap: int, seed: int) -> BaseSampler:
    """The Optuna sampler of a sweep's method; where the plan decides, one that is never asked."""
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


def choose_opening(spec: Spec) -> list[Configuration]:
    """What a search begins with, last one first: some of all sizes, for these are known."""
    if spec.method in PLANNED:
        return []
    trials = sort_trials(list(islice(draw_candidates(spec), SPREAD_FROM)), "small_first")
    count = min(_first(spec.run_cap or 1), len(trials))
    return [trials[(2 * i + 1) * len(trials) // (2 * count)] for i in reversed(range(count))]


def make_distribution(axis: Values[Any]) -> BaseDistribution:
    """What Optuna may choose on an axis: a range where the values are one, for then their order counts."""
    values = axis.choices
    if values is None:
        return FloatDistribution(axis.min, axis.max, log=axis.distribution == "log_uniform")  # type: ignore[attr-defined]
    if isinstance(values[0], int) and values == tuple(range(values[0], values[0] + len(values))):
        return IntDistribution(values[0], values[-1])
    return CategoricalDistribution([cell_text(v) if isinstance(v, tuple) else v for v in values])


@contextlib.contextmanager
def experimental() -> Iterator[None]:
    """Optuna calls some of what we need experimental; its version is pinned, and tests hold what we need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
