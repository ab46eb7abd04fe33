"""Neighbours on the front that the first seeds do not tell apart, with the verdict that further seeds give.

The first seeds chose the front, so they would favour the larger configuration of each pair. The test leaves them out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdtune.analysis.comparison import say_margin
from qdtune.messages import format_count
from qdtune.spec.axes import AXIS_NAMES, find_varying, label
from qdtune.spec.choices import FRONT_QUESTION
from qdtune.spec.metric_text import format_differences, say_difference
from qdtune.spec.objectives import DEFAULT_COSTS, SIZE_BYTES, Objective, say_costs
from qdtune.spec.tasks import Metric
from qdtune.store.decisions import Schedule, judge_question
from qdtune.store.looks import DECIDED, GIVEN_UP, LIVE, SAME
from qdtune.store.pairs import Side
from qdtune.store.questions import Neighbours
from qdtune.store.seed_tests import half_width


@dataclass(frozen=True)
class NearTie:
    """Two configurations that follow each other on the front, by the metric on the validation split.

    Attributes:
        larger, smaller: their axes.
        larger_costs, smaller_costs: their costs, by name.
        ending: how the pair stands, as in `looks.Walk`.
        look: the look, from 1, at which it got its verdict or was given up, or the last one so far.
        n_seeds: the number of further seeds that both have at that look.
        effect: the mean over them of the metric of the larger one minus that of the smaller one; None without any.
        low, high, level: its confidence interval, and the confidence; None if there is none.
        p: the p value before correction; None below two further seeds.
        metric: of the effect.
        same_within: the margin within which a difference is none; None if the sweep has none.
        varying: the axes with several values among the configurations, which the sentence names.
        costs: of the front.
    """

    larger: Mapping[str, Any]
    smaller: Mapping[str, Any]
    larger_costs: Mapping[str, int]
    smaller_costs: Mapping[str, int]
    ending: str
    look: int
    n_seeds: int
    effect: float | None
    low: float | None
    high: float | None
    level: float | None
    p: float | None
    metric: Metric
    varying: frozenset[str] = frozenset(AXIS_NAMES)
    same_within: float | None = None
    costs: tuple[Objective, ...] = DEFAULT_COSTS

    @property
    def larger_bytes(self) -> int:
        """The bytes of the larger one; 0 if unknown."""
        return self.larger_costs.get(SIZE_BYTES.name, 0)

    @property
    def smaller_bytes(self) -> int:
        """The bytes of the smaller one; 0 if unknown."""
        return self.smaller_costs.get(SIZE_BYTES.name, 0)

    @property
    def sentence(self) -> str:
        """The verdict in one or two sentences."""
        larger = f"{label(self.larger, self.varying)} ({say_costs(self.costs, self.larger_costs)})"
        smaller = f"{label(self.smaller, self.varying)} ({say_costs(self.costs, self.smaller_costs)})"
        if self.effect is None:
            what = "the first seeds do not tell them apart, and there are no others yet"
            return f"{larger} against {smaller}: {what}."
        over = f"{format_count(self.n_seeds, 'further seed')}, look {self.look}"
        numbers = [self.effect] if self.low is None or self.high is None else [self.effect, self.low, self.high]
        effect, *ends = format_differences(self.metric, *numbers)
        difference = say_difference(self.metric, effect)
        if ends and self.level is not None:
            difference += f" ({100 * self.level:.4g} % interval {ends[0]} to {ends[1]}, {over})"
        if self.ending == DECIDED:
            better = "better" if self.metric.sign * self.effect > 0 else "worse"
            return f"{larger} is significantly {better} than {smaller}: {difference}."
        if self.ending == SAME:
            return (
                f"{larger} is the same as {smaller} {say_margin(self.metric, self.same_within or 0.0)}: {difference}."
            )
        end = {GIVEN_UP: "Not significant", LIVE: "Not decided yet"}[self.ending]
        return f"{larger} against {smaller}: {difference}. {end}."


def find_near_ties(schedule: Schedule, sides: Sequence[list[Side]]) -> tuple[NearTie, ...]:
    """The near-ties of the front, by size; empty if the sweep does not ask about them.

    Args:
        schedule: the looks of the sweep.
        sides: the configurations with the seeds of each look, see `decisions.find_sides_at_looks`.
    """
    if FRONT_QUESTION not in schedule.questions:
        return ()
    varying = find_varying(side.key for side in sides[0])
    family, found = judge_question(FRONT_QUESTION, schedule, sides), []
    for i, member in enumerate(family.members):
        look, pair = family.walk.looks[i], member.at[0]
        assert isinstance(pair, Neighbours)
        test, alpha = family.walk.tests[look], family.walk.interval_alpha(i)
        n, effect, std = int(test.n[i]), float(test.mean[i]), float(test.std[i])
        half = half_width(std, n, alpha) if n > 1 and std > 0 else None
        found.append(
            NearTie(
                {name: pair.larger.key[name] for name in AXIS_NAMES},
                {name: pair.smaller.key[name] for name in AXIS_NAMES},
                pair.larger.costs,
                pair.smaller.costs,
                family.walk.endings[i],
                look + 1,
                n,
                effect if n else None,
                None if half is None else effect - half,
                None if half is None else effect + half,
                None if half is None else 1 - alpha,
                float(test.p[i]) if n > 1 else None,
                pair.larger.metric,
                varying,
                schedule.same_within,
                schedule.costs,
            )
        )
    return tuple(found)
