"""The comparisons that a question consists of: which sides are compared with which.

A launch that trains more seeds for undecided comparisons and a report that tests them make the same list.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import le
from typing import Any

import numpy as np

from qdtune.spec.axes import ASKED_AT, idle_at_depth
from qdtune.spec.objectives import DEFAULT_COSTS, Objective, weigh
from qdtune.store.pairs import KEYS, Baselines, Side, find_failure, find_obstacle

Pairs = list[tuple[Side, Side]]
# A comparison is made at one value of each of these, except its own axis.
SETTING = ("weight_bits", *ASKED_AT, "depth", "activation")


@dataclass(frozen=True)
class Asked:
    """A comparison before its test: at one setting, one value of an axis against a baseline.

    Attributes:
        axis: in which the two sides differ.
        baseline: the value of the axis on the other side.
        group: the sides with the value.
        baselines: all sides with the baseline.
    """

    axis: str
    baseline: int | str
    group: list[Side]
    baselines: Baselines

    @property
    def name(self) -> tuple[Any, ...]:
        """What tells it from the other comparisons of its question."""
        return self.group[0].values(SETTING)

    @property
    def match(self) -> tuple[str, ...]:
        """The keys in which the two sides of a pair are equal."""
        idle = idle_at_depth(self.baseline) if self.axis == "depth" else []
        return tuple(name for name in KEYS if name != self.axis and name not in idle)

    @cached_property
    def pairs(self) -> Pairs:
        """Each side of the group with its baseline, if it has one."""
        is_depth = self.axis == "depth"
        find = self.baselines.find_pairs_of_equal_size if is_depth else self.baselines.find_pairs
        return find(self.group, self.match)

    @cached_property
    def by_obstacle(self) -> dict[str | None, Pairs]:
        """The pairs by their obstacle, see `pairs.find_obstacle`; those under None are compared."""
        found: dict[str | None, Pairs] = {}
        for pair in self.pairs:
            found.setdefault(find_obstacle(*pair), []).append(pair)
        return found


@dataclass(frozen=True)
class Neighbours:
    """Two configurations that follow each other on the front: the larger one against the smaller one.

    Over one cost the smaller one is the next below the larger one. Over several it is the best of those that exceed
    the larger one in none of them, so that one asks what all further costs are for.

    Attributes:
        larger, smaller: the two sides.
    """

    larger: Side
    smaller: Side

    @property
    def name(self) -> tuple[Any, ...]:
        """What tells the pair from the others of a front."""
        return (*self.larger.values(KEYS), *self.smaller.values(KEYS))

    @property
    def by_obstacle(self) -> dict[str | None, Pairs]:
        """As for `Asked`; the two have different costs."""
        return {find_failure(self.larger, self.smaller): [(self.larger, self.smaller)]}


def list_depths(everything: Sequence[Side]) -> Iterator[Asked]:
    """At each setting each depth against the smallest depth at the same number of bits.

    Each activation between the factors has comparisons of its own: with identity they ask whether depth alone is
    worth its bytes, with another activation whether both together are.
    """
    for n in sorted({side.key["weight_bits"] for side in everything}):
        here = [side for side in everything if side.key["weight_bits"] == n]
        least = min(side.key["depth"] for side in here)
        baselines = Baselines([side for side in here if side.key["depth"] == least])
        chains = [side for side in here if side.key["depth"] > least]
        for group in _group_sides(chains, (*ASKED_AT, "depth", "activation")):
            yield Asked("depth", least, group, baselines)


def list_activations(everything: Sequence[Side]) -> Iterator[Asked]:
    """At each setting, and each depth from 2 on, each activation between the factors against identity."""
    chains = [side for side in everything if side.key["depth"] > 1]
    baselines = Baselines([side for side in chains if side.key["activation"] == "identity"])
    others = [side for side in chains if side.key["activation"] != "identity"]
    if baselines.sides:
        for group in _group_sides(others, SETTING):
            yield Asked("activation", "identity", group, baselines)


QUESTIONS = {"depth": list_depths, "activation": list_activations}  # by axis


def list_near_ties(
    everything: Sequence[Side], seeds: Sequence[int], alpha: float, costs: Sequence[Objective] = DEFAULT_COSTS
) -> list[Neighbours]:
    """The neighbours on the front that these seeds do not tell apart; the front is that of the same seeds.

    Such a pair was chosen by these seeds, so its verdict must come from others.

    Args:
        everything: the configurations.
        seeds: the first seeds.
        alpha: the level of Holm's procedure over all neighbours.
        costs: of the front.
    """
    from qdtune.store.seed_tests import apply_holm, equal_within, t_test  # SciPy, which a dry run does without

    finished = [side for side in everything if side.state == "ok" and side.has_seeds(seeds)]
    found = _list_neighbours([side for side in finished if all(side.costs.get(c.name) for c in costs)], seeds, costs)
    if not found:
        return []
    one, other = (
        np.array([[side.measured[s] for s in seeds] for side in sides])
        for sides in ([pair.larger for pair in found], [pair.smaller for pair in found])
    )
    rejected, _ = apply_holm(t_test(one - other, equal_within(found[0].larger.metric, one, other)).p, alpha)
    return [pair for pair, is_told_apart in zip(found, rejected, strict=True) if not is_told_apart]


def _list_neighbours(finished: Sequence[Side], seeds: Sequence[int], costs: Sequence[Objective]) -> list[Neighbours]:
    """The neighbours on the front of finished sides, by ascending costs; of equal sides the first is on it."""
    score = {id(side): side.metric.sign * side.mean(seeds) for side in finished}
    spent = {id(side): weigh(costs, [side.costs[cost.name] for cost in costs]) for side in finished}
    best: list[Side] = []
    found = []
    # In this order a side can only be dominated by earlier ones.
    for side in sorted(finished, key=lambda side: (spent[id(side)], -score[id(side)])):
        cheaper = [one for one in best if all(map(le, spent[id(one)], spent[id(side)]))]
        next_best = max(cheaper, key=lambda one: score[id(one)], default=None)
        if next_best is None or score[id(side)] > score[id(next_best)]:
            best.append(side)
            found += [Neighbours(side, next_best)] if next_best else []
    return found


def _group_sides(chains: Sequence[Side], names: tuple[str, ...]) -> list[list[Side]]:
    groups: dict[tuple[Any, ...], list[Side]] = {}
    for side in chains:
        groups.setdefault(side.values(names), []).append(side)
    order = sorted(groups, key=lambda values: [(value is not None, value) for value in values])
    return [groups[values] for values in order]
