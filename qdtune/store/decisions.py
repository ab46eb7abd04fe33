"""The verdicts of a sweep with `replicate: {until: decided}`: each question at all of its looks.

The queue that trains more seeds and the report that shows the verdicts judge the same rows in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.choices import FRONT_QUESTION
from qdtune.spec.objectives import DEFAULT_COSTS, Objective
from qdtune.spec.replicate import questions_of
from qdtune.spec.sweep_file import Spec
from qdtune.spec.tasks import Metric
from qdtune.store.looks import LookTable, Walk, rising_levels, walk_looks
from qdtune.store.pairs import KEYS, Side, make_sides, mean_differences
from qdtune.store.questions import QUESTIONS, Asked, Neighbours, Pairs, list_near_ties
from qdtune.store.seed_tests import equal_within


@dataclass(frozen=True)
class Schedule:
    """The looks of a sweep.

    Attributes:
        seeds: the first seeds, which every configuration has.
        looks: numbers of seeds, the first that of `seeds`.
        alpha: the chance of any wrong verdict in one question, in all looks together.
        questions: those that get more seeds.
        same_within: the margin within which a difference is none, in the unit of the metric; None: no such verdict.
        costs: of the front.
    """

    seeds: tuple[int, ...]
    looks: tuple[int, ...]
    alpha: float
    questions: tuple[str, ...]
    same_within: float | None = None
    costs: tuple[Objective, ...] = DEFAULT_COSTS

    def seeds_of(self, look: int) -> tuple[int, ...]:
        """The seeds of a look, from 0; the first ones, then those above them."""
        first = max(self.seeds) + 1
        return (*self.seeds, *range(first, first + self.looks[look] - len(self.seeds)))

    def of(self, question: str) -> Schedule:
        """The looks at which a question is tested: the first one alone if it gets no more seeds."""
        if question in self.questions:
            return self
        return replace(self, looks=self.looks[:1], questions=())

    @property
    def levels(self) -> tuple[float, ...]:
        """The level of each look; they sum to `alpha`."""
        return rising_levels(self.alpha, len(self.looks))

    @property
    def fresh_levels(self) -> tuple[float, ...]:
        """The level of each look if the first seeds cannot test anything."""
        return (0.0, *rising_levels(self.alpha, len(self.looks) - 1))


def schedule_of(spec: Spec) -> Schedule | None:
    """The looks of a sweep with `replicate: {until: decided}`; None if it has none."""
    if spec.replicate is None or spec.looks is None:
        return None
    wanted = spec.replicate
    return Schedule(spec.seeds, spec.looks, wanted.alpha, questions_of(spec), wanted.same_within, spec.costs)


@dataclass(frozen=True)
class Member:
    """One comparison of a question with the sides that it has at each look.

    Attributes:
        at: by look; None if its first seeds are no longer there.
        is_fresh: whether the first seeds are left out, because they chose it.
    """

    at: tuple[Asked | Neighbours | None, ...]
    is_fresh: bool = False

    def sound(self, look: int) -> Pairs:
        """The pairs that are compared at a look."""
        here = self.at[look]
        return here.by_obstacle.get(None, []) if here else []

    @property
    def is_tested(self) -> bool:
        """Whether it belongs to the family: it can be tested with the first seeds, or once they are trained."""
        assert self.at[0] is not None
        found = self.at[0].by_obstacle
        return "pruned" not in found and (None in found or "unfinished" in found)


@dataclass(frozen=True)
class Family:
    """One question at all looks.

    Attributes:
        question: an axis, or `front`.
        schedule: its looks.
        everyone: its comparisons.
        members: those that are tested; the others are refused.
        tables: the differences at each look.
        walk: how each member stands.
    """

    question: str
    schedule: Schedule
    everyone: tuple[Member, ...]
    members: tuple[Member, ...]
    tables: tuple[LookTable, ...]
    walk: Walk

    def lacking(self, member: int) -> Iterator[tuple[Side, tuple[int, ...]]]:
        """The sides of a pending comparison with the seeds that each lacks."""
        seeds = self.schedule.seeds_of(self.walk.pending_look)
        for pair in self.members[member].sound(self.walk.pending_look):
            for side in pair:
                if missing := tuple(seed for seed in seeds if seed not in side.measured):
                    yield side, missing

    def p_before(self, member: int) -> float:
        """The p value of a pending comparison at its last look; 1 if there is none."""
        p = self.walk.tests[max(self.walk.pending_look - 1, 0)].p[member]
        return 1.0 if np.isnan(p) else float(p)


def judge_question(question: str, schedule: Schedule, sides: Sequence[list[Side]]) -> Family:
    """A question with the verdict at each look.

    Args:
        question: an axis of `QUESTIONS`, or `front`.
        schedule: of the sweep.
        sides: at each look the configurations with its seeds alone.
    """
    schedule, is_front = schedule.of(question), question == FRONT_QUESTION
    sides = sides[: len(schedule.looks)]
    if is_front:
        ties = list_near_ties(sides[0], schedule.seeds, schedule.alpha, schedule.costs)
        members = [Member(tuple(_find_again(pair, here) for here in sides), is_fresh=True) for pair in ties]
    else:
        found = [{one.name: one for one in QUESTIONS[question](here)} for here in sides]
        members = [Member(tuple(there.get(name) for there in found)) for name in found[0]]
    family = [member for member in members if member.is_tested]
    tables = tuple(_table_of(family, schedule, look) for look in range(len(sides)))
    walk = walk_looks(tables, schedule.fresh_levels if is_front else schedule.levels, schedule.same_within)
    return Family(question, schedule, tuple(members), tuple(family), tables, walk)


def find_sides_at_looks(rows: Iterable[Mapping[str, Any]], schedule: Schedule, metric: Metric) -> list[list[Side]]:
    """The configurations with the seeds of each look alone, of those that have a row of the first seeds.

    Args:
        rows: one per seed, with the columns that `make_sides` reads.
        schedule: of the sweep.
        metric: of the rows.
    """
    known = [(row, tuple(row[name] for name in AXIS_NAMES)) for row in rows]
    begun = {key for row, key in known if row["seed"] in schedule.seeds}
    rows_begun = [row for row, key in known if key in begun]
    looks = [set(schedule.seeds_of(look)) for look in range(len(schedule.looks))]
    return [make_sides((row for row in rows_begun if row["seed"] in seeds), metric) for seeds in looks]


def _find_again(pair: Neighbours, sides: Sequence[Side]) -> Neighbours | None:
    """The same two configurations at another look."""
    index = {side.values(KEYS): side for side in sides}
    larger, smaller = (index.get(side.values(KEYS)) for side in (pair.larger, pair.smaller))
    return Neighbours(larger, smaller) if larger and smaller else None


def _table_of(family: Sequence[Member], schedule: Schedule, look: int) -> LookTable:
    """The differences of a family at a look."""
    seeds = schedule.seeds_of(look)
    further = seeds[len(schedule.seeds) :]
    if any(member.is_fresh for member in family):
        seeds = further
    rows, equal, lost, failed = [], [], [], []
    for member in family:
        sound = member.sound(look)
        by_seed = mean_differences(sound) if sound else {}
        rows.append([by_seed.get(seed, np.nan) for seed in seeds])
        values = [value for pair in sound for side in pair for value in side.measured.values()]
        equal.append(float(equal_within(sound[0][0].metric, values)) if values else 0.0)
        lost.append(not sound)
        failed.append(any(side.has_failed(further) for pair in sound for side in pair))
    table = np.array(rows, dtype=float).reshape(len(family), len(seeds))
    return LookTable(table, np.array(equal, dtype=float), np.array(lost, dtype=bool), np.array(failed, dtype=bool))
