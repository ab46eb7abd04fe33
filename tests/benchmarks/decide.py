"""How often are verdicts of `replicate: {until: decided}` wrong, how many are given, with how many trainings?

    python tests/benchmarks/decide.py [--families 2000] [--noise normal t3 skewed]

Sweeps are invented: half of the comparisons have no effect, the others one of 0.5, 1, 2 or 4 standard deviations of a
difference. A family is one question of 2, 6, 20 or 60 comparisons, several of which share a baseline. What is trained
and what is decided comes from the code that a launch and a report use. Beside it stand sweeps in which every
configuration has 3, 5 or 10 seeds, tested once with Holm's procedure at 5 %.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.spec.plan import plan
from qdtune.spec.sweep_file import Spec
from qdtune.store.cohorts import Key, StoredCohort
from qdtune.store.decisions import Family
from qdtune.store.further_seeds import find_further_seeds, judge_cohorts
from qdtune.store.looks import DECIDED, SAME
from qdtune.store.results import SeedEnd
from qdtune.store.seed_tests import FAMILY_ALPHA, apply_holm, t_test

Values = NDArray[np.float64]
MOST_SEEDS, UNIFORM = 12, (3, 5, 10)
EFFECTS = (0.5, 1.0, 2.0, 4.0)  # standard deviations of a difference
ONE_SD = 0.01  # the standard deviation of a difference, in accuracy
IS_SAME = 2.0  # a verdict, beside -1 and 1
SIZES: dict[int, dict[str, list[Any]]] = {  # comparisons -> the axes of their sweep
    2: {"depth": [1, 2], "weight_bits": [1, 2]},
    6: {"depth": [1, 2, 3], "weight_bits": [1, 2, 4]},
    20: {"depth": [1, 2, 3, 4, 5, 6], "weight_bits": [1, 2, 4, 8]},
    60: {"depth": [1, 2, 3, 4, 5, 6], "weight_bits": [1, 2, 4, 8], "scale": ["minmax", "absmean", "lsq"]},
}


def draw_normal(noise: np.random.Generator, shape: tuple[int, int]) -> Values:
    """Numbers of standard deviation 1."""
    return noise.normal(size=shape)


def draw_t3(noise: np.random.Generator, shape: tuple[int, int]) -> Values:
    """The same, with heavy tails."""
    return noise.standard_t(3, size=shape) / np.sqrt(3)


def draw_skewed(noise: np.random.Generator, shape: tuple[int, int]) -> Values:
    """The same, exponential: far more often below the mean than above it."""
    return noise.exponential(size=shape) - 1


NOISES: dict[str, Callable[[np.random.Generator, tuple[int, int]], Values]] = {
    "normal": draw_normal,
    "t3": draw_t3,
    "skewed": draw_skewed,
}


@cache
def sweep_of(comparisons: int, same_within: float | None = None) -> Spec:
    """A sweep with so many comparisons of depths, see `SIZES`, and a margin."""
    axes = {axis: {"values": values} for axis, values in SIZES[comparisons].items()}
    return Spec.model_validate(
        {
            "version": 1,
            "name": "decide",
            "parameters": axes,
            "data": {"dataset": "digits", "val_size": 100},
            "early_terminate": {"type": "none"},
            "replicate": {"until": "decided", "questions": ["depth"], "same_within": same_within},
        }
    )


@cache
def keys_of(comparisons: int) -> list[tuple[tuple[Any, ...], int, tuple[Any, ...]]]:
    """The axes of each configuration, its depth, and what tells its baseline from others."""
    trials = plan(sweep_of(comparisons)).trials
    return [(trial.key, trial.depth, (trial.weight_bits, trial.scale)) for trial in trials]


@dataclass
class Count:
    """What came out for one way of giving seeds, over families.

    Attributes:
        families, wrong: how many there were, and in how many a verdict was wrong.
        effects, decided: comparisons with an effect, and how many of them were decided.
        trainings: of all families.
    """

    families: int = 0
    wrong: int = 0
    effects: int = 0
    decided: int = 0
    trainings: int = 0

    def add(self, truth: Values, verdicts: Values, trainings: int) -> None:
        """Counts a family: its true effects and the signs of its verdicts, 0 for none."""
        self.families += 1
        self.wrong += bool(((verdicts != 0) & (np.sign(truth) != verdicts)).any())
        self.effects += int((truth != 0).sum())
        self.decided += int(((truth != 0) & (verdicts != 0)).sum())
        self.trainings += trainings


def find_pairs(keys: Sequence[tuple[Key, int, tuple[Any, ...]]]) -> list[tuple[int, int]]:
    """The places of both sides of each comparison: a depth and its baseline."""
    baseline = {setting: i for i, (_, depth, setting) in enumerate(keys) if depth == 1}
    return [(i, baseline[setting]) for i, (_, depth, setting) in enumerate(keys) if depth > 1]


def draw_values(pairs: Sequence[tuple[int, int]], truth: Values, noise: np.random.Generator, draw: Any) -> Values:
    """The metric of each configuration (rows) with each seed, from the true effects of the comparisons."""
    places = [i for i, _ in pairs]
    count = len({*places, *(j for _, j in pairs)})
    means, scale = np.zeros((count, 1)), np.full((count, 1), 0.1)
    # A baseline has little noise of its own, so that the differences have the shape of the noise, such as its skew.
    means[places, 0], scale[places] = truth, 0.995
    shared = noise.normal(0, 2, size=MOST_SEEDS)  # a seed is good or bad for all
    return np.asarray(0.5 + ONE_SD * (means + scale * draw(noise, (count, MOST_SEEDS)) + shared))


def run_family(comparisons: int, noise: np.random.Generator, draw: Any, counts: dict[str, Count]) -> None:
    """Draws one family and counts its verdicts for each way of giving seeds."""
    spec, keys = sweep_of(comparisons), keys_of(comparisons)
    pairs = find_pairs(keys)
    truth = np.array([noise.choice(EFFECTS) * noise.choice([-1, 1]) * (noise.random() < 0.5) for _ in pairs])
    values = draw_values(pairs, truth, noise, draw)
    for n in UNIFORM:
        differences = np.array([values[i, :n] - values[j, :n] for i, j in pairs])
        found = t_test(differences)
        rejected, _ = apply_holm(found.p, FAMILY_ALPHA)
        counts[f"uniform {n}"].add(truth, np.sign(found.mean) * rejected, n * len(keys))
    verdicts, trainings = decide(spec, keys, values)
    counts["until decided"].add(truth, np.array([verdicts.get(i, 0.0) for i, _ in pairs]), trainings)


def train(spec: Spec, keys: Sequence[Key], values: Values) -> tuple[list[StoredCohort], list[Family]]:
    """What a launch of a sweep trains, and the verdicts; configurations are listed by rising size."""
    place = {key: i for i, key in enumerate(keys)}

    def cohort(key: Key, seeds: tuple[int, ...]) -> StoredCohort:
        ends = tuple(SeedEnd(seed, "ok", float(values[place[key], seed])) for seed in seeds)
        costs = {"size_bytes": 10_000 + place[key]}
        return StoredCohort(key, seeds, costs, "ok", 0.5, (), f"{place[key]} {seeds[0]}", ends)

    cohorts = [cohort(key, spec.seeds) for key in keys]
    while further := find_further_seeds(spec, cohorts):
        cohorts += [cohort(first.key, seeds) for first, seeds in further]
    return cohorts, judge_cohorts(spec, cohorts)


def decide(
    spec: Spec, keys: Sequence[tuple[Key, int, tuple[Any, ...]]], values: Values
) -> tuple[dict[int, float], int]:
    """The verdicts by the place of the deeper side, and the number of trainings, as a launch comes to them.

    A verdict is the sign of a significant difference, or `IS_SAME`.
    """
    cohorts, (family,) = train(spec, [key for key, *_ in keys], values)
    place = {(depth, *setting): i for i, (_, depth, setting) in enumerate(keys)}
    verdicts = {}
    for i, member in enumerate(family.members):
        key = member.at[0].group[0].key  # type: ignore[union-attr]
        ending, mean = family.walk.endings[i], family.walk.tests[family.walk.looks[i]].mean[i]
        if ending in (DECIDED, SAME):
            name = key["depth"], key["weight_bits"], key["scale"]
            verdicts[place[name]] = IS_SAME if ending == SAME else float(np.sign(mean))
    return verdicts, sum(len(one.seeds) for one in cohorts)


def simulate(noise_name: str, families: int, sizes: Sequence[int] = tuple(SIZES), seed: int = 0) -> dict[str, Count]:
    """The counts over families of all sizes, by the way in which seeds are given."""
    noise = np.random.default_rng([seed, *map(ord, noise_name)])
    counts = {name: Count() for name in (*(f"uniform {n}" for n in UNIFORM), "until decided")}
    for family in range(families):
        run_family(sizes[family % len(sizes)], noise, NOISES[noise_name], counts)
    return counts


@cache
def sweep_of_front() -> Spec:
    """A sweep of 12 configurations of rising size that asks about neighbours on its front."""
    return Spec.model_validate(
        {
            "version": 1,
            "name": "front",
            "parameters": {"hidden": {"values": [[width] for width in range(8, 20)]}},
            "data": {"dataset": "digits", "val_size": 100},
            "early_terminate": {"type": "none"},
            "replicate": {"until": "decided", "questions": ["front"]},
        }
    )


def simulate_front(families: int, step: float, seed: int = 0) -> Count:
    """The counts over sweeps in which each next size is better by `step` standard deviations of a difference.

    If `step` is 0, all are equal and any verdict is wrong; the front then consists of lucky ones alone.
    """
    spec, noise, found = sweep_of_front(), np.random.default_rng(seed), Count()
    keys = [trial.key for trial in plan(spec).trials]
    for _ in range(families):
        own, shared = noise.normal(size=(len(keys), MOST_SEEDS)) / np.sqrt(2), noise.normal(0, 2, size=MOST_SEEDS)
        values = 0.5 + ONE_SD * (step * np.arange(len(keys))[:, None] + own + shared)
        cohorts, (family,) = train(spec, keys, values)
        signs = [
            np.sign(family.walk.tests[family.walk.looks[i]].mean[i]) * (family.walk.endings[i] == DECIDED)
            for i in range(len(family.members))
        ]
        found.add(np.full(len(signs), step), np.array(signs), sum(len(one.seeds) for one in cohorts))
    return found


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", type=int, default=2000, help="invented sweeps of each kind of noise")
    parser.add_argument("--noise", nargs="+", default=list(NOISES), choices=list(NOISES))
    given = parser.parse_args()
    print("| noise | seeds | families with a wrong verdict | effects found | trainings per family |")
    print("|---|---|---|---|---|")
    for noise in given.noise:
        start = time.monotonic()
        for way, count in simulate(noise, given.families).items():
            wrong, found = count.wrong / count.families, count.decided / count.effects
            each = count.trainings / count.families
            print(f"| {noise} | {way} | {wrong:.1%} | {found:.0%} | {each:.0f} |".replace("%", " %"), flush=True)
        print(f"<!-- {given.families} families in {time.monotonic() - start:.0f} s -->", flush=True)

    print("\n| step between neighbours | fronts with a wrong verdict | near-ties decided | trainings per sweep |")
    print("|---|---|---|---|")
    for step in (0.0, 0.3, 1.0):
        count = simulate_front(given.families // 5, step)
        decided = f"{count.decided / count.effects:.0%}" if count.effects else "-"
        wrong, each = count.wrong / count.families, count.trainings / count.families
        print(f"| {step:g} | {wrong:.1%} | {decided} | {each:.0f} |".replace("%", " %"), flush=True)


if __name__ == "__main__":
    main()
