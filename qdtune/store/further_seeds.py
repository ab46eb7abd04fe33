"""The seeds that undecided comparisons need next, and how many comparisons are decided.

Everything follows from stored results alone, so it is the same after a launch was killed, and the same for the queue
that trains more seeds and for readers of the run folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeVar

from qdtune.spec.axes import AXIS_NAMES
from qdtune.spec.objectives import SIZE_BYTES, Objective
from qdtune.spec.replicate import Replicate
from qdtune.spec.sweep_file import Spec
from qdtune.store.columns import FINAL
from qdtune.store.decisions import Family, find_sides_at_looks, judge_question, schedule_of
from qdtune.store.looks import DECIDED, GIVEN_UP, LIVE, SAME
from qdtune.store.results import SeedEnd


class SeedCohort(Protocol):
    """Seeds of one configuration that were trained together, with the end of each."""

    @property
    def key(self) -> tuple[Any, ...]:
        """The axes of its configuration."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its seeds."""

    def value_of(self, cost: Objective) -> float:
        """A cost of one replica."""

    @property
    def trial_id(self) -> str:
        """Its trial."""

    @property
    def ends(self) -> tuple[SeedEnd, ...]:
        """How each of its seeds ended."""


C = TypeVar("C", bound=SeedCohort)


def judge_cohorts(spec: Spec, cohorts: Iterable[SeedCohort]) -> list[Family]:
    """Every question of a sweep that gets more seeds; empty if none does.

    Args:
        spec: resolved.
        cohorts: all cohorts of this sweep.
    """
    schedule = schedule_of(spec)
    if schedule is None:
        return []
    rows = (row for cohort in cohorts for row in _rows_of(cohort, spec))
    sides = find_sides_at_looks(rows, schedule, spec.metric)
    return [judge_question(question, schedule, sides) for question in schedule.questions]


def _rows_of(cohort: SeedCohort, spec: Spec) -> Iterator[dict[str, Any]]:
    """The rows of a cohort, with the columns that `make_sides` reads."""
    shared = {
        **dict(zip(AXIS_NAMES, cohort.key, strict=True)),
        "dataset": spec.data.names[0],
        "model": spec.model.factory or spec.model.name,
        "trial_id": cohort.trial_id,
        **{cost.name: cohort.value_of(cost) for cost in dict.fromkeys((SIZE_BYTES, *spec.costs))},
    }
    for end in cohort.ends:
        yield shared | {"seed": end.seed, "state": end.state, "error": end.error, spec.metric.val: end.value}


def find_further_seeds(spec: Spec, cohorts: Iterable[C]) -> list[tuple[C, tuple[int, ...]]]:
    """The trials that live comparisons need next: the first cohort of each configuration, and its further seeds.

    As many seeds at a time as the sweep trains together, and the closest comparison first. A comparison is begun only
    if the budget allows both of its sides. What was begun is trained to its end: a side that diverges meanwhile
    changes nothing, so a launch that was killed in between trains the same as one that was not. What failed is
    listed again, and holds up no other comparisons.

    Args:
        spec: resolved.
        cohorts: all cohorts of this sweep.
    """
    known = list(cohorts)
    blocks = [_find_block(spec.seeds, cohort.seeds) for cohort in known]
    tried = {(cohort.key, cohort.seeds) for cohort in known}
    there = {(cohort.key, cohort.seeds) for cohort in known if all(end.state in FINAL for end in cohort.ends)}
    failed_in = {block for one, block in zip(known, blocks, strict=True) if (one.key, one.seeds) not in there}
    failed: list[tuple[C, tuple[int, ...]]] = []
    for last in sorted({*failed_in, max(blocks, default=-1)} - {-1}):
        before = [cohort for cohort, block in zip(known, blocks, strict=True) if block < last]
        begun = [one for one in _choose_further_seeds(spec, before) if (one[0].key, one[1]) not in there]
        if any((one.key, seeds) not in tried for one, seeds in begun):
            return failed + begun
        failed += begun
    return failed + _choose_further_seeds(spec, known)


def _choose_further_seeds(spec: Spec, known: Sequence[C]) -> list[tuple[C, tuple[int, ...]]]:
    """As `find_further_seeds`, if nothing is begun."""
    families = judge_cohorts(spec, known)
    if not any(family.walk.pending for family in families):
        return []
    assert spec.replicate is not None
    by_id = {cohort.trial_id: cohort for cohort in known}
    needs: dict[int, list[tuple[float, list[tuple[str, int]]]]] = {}  # block -> comparisons: p, its trials
    for family in families:
        for member in family.walk.pending:
            trials = _find_trials(family, member, spec.seeds)
            for block in {block for _, block in trials}:
                here = [trial for trial in trials if trial[1] == block]
                needs.setdefault(block, []).append((family.p_before(member), here))
    block = min(needs)
    left = _Budget(spec.replicate, spec.seeds, known)
    chosen: dict[tuple[str, int], None] = {}
    for _, trials in sorted(needs[block], key=lambda need: need[0]):
        new = [trial for trial in trials if trial not in chosen]
        if not left.take(by_id[trial_id] for trial_id, _ in new):
            break
        chosen.update(dict.fromkeys(new))
    return [(by_id[trial_id], _seeds_of_block(spec.seeds, block)) for trial_id, _ in chosen]


def _find_trials(family: Family, member: int, seeds: tuple[int, ...]) -> list[tuple[str, int]]:
    """The trials that a pending comparison needs: the trial of the first seeds, and the block of further ones."""
    above, found = max(seeds) + 1, dict[tuple[str, int], None]()
    for side, missing in family.lacking(member):
        for seed in missing:
            found[side.trial_ids[seeds[0]], (seed - above) // len(seeds)] = None
    return list(found)


def _seeds_of_block(seeds: tuple[int, ...], block: int) -> tuple[int, ...]:
    first = max(seeds) + 1 + block * len(seeds)
    return tuple(range(first, first + len(seeds)))


def _find_block(first: tuple[int, ...], seeds: tuple[int, ...]) -> int:
    """The block that seeds belong to, see `_seeds_of_block`; -1 for the first seeds."""
    return (max(seeds) - max(first) - 1) // len(first)


class _Budget:
    """What is left of the budget for further seeds.

    Args:
        replicate: with the budget.
        seeds: the first seeds of every configuration.
        cohorts: all cohorts of the sweep; those with other seeds have used a part.
    """

    def __init__(self, replicate: Replicate, seeds: tuple[int, ...], cohorts: Sequence[SeedCohort]) -> None:
        self.in_seconds, self.size = replicate.seconds is not None, len(seeds)
        limit = replicate.seconds if self.in_seconds else replicate.trainings
        spent = [end for one in cohorts for end in one.ends if end.seed not in seeds]
        used = sum(end.seconds for end in spent) if self.in_seconds else len(spent)
        self.left = float("inf") if limit is None else limit - used

    def take(self, cohorts: Iterable[SeedCohort]) -> bool:
        """Whether these configurations can have further seeds; if so, they are taken off.

        A further cohort is expected to take as many seconds as the first one did.
        """
        costs = (sum(end.seconds for end in one.ends) if self.in_seconds else self.size for one in cohorts)
        cost = sum(costs)
        if cost > self.left:
            return False
        self.left -= cost
        return True


@dataclass(frozen=True)
class Tally:
    """How many comparisons of all questions are decided, the same, given up and live, and what that took.

    Attributes:
        counts: by `looks.DECIDED`, `looks.SAME`, `looks.GIVEN_UP` and `looks.LIVE`.
        first, further: the trainings with the first seeds, and with further ones; one per configuration and seed.
        look: the look, from 1, for which live comparisons lack seeds; None if there is none.
        looks: the number of looks.
        begun, needed: the further trainings of that look that have ended, and those that it still lacks.
        untested: the comparisons that are not tested, such as refused ones; `total` leaves them out.
    """

    counts: Mapping[str, int]
    first: int = 0
    further: int = 0
    look: int | None = None
    looks: int = 0
    begun: int = 0
    needed: int = 0
    untested: int = 0

    @cached_property
    def total(self) -> int:
        """All comparisons that are tested."""
        return sum(self.counts.values())

    def __str__(self) -> str:
        decided, same, given_up, live = (self.counts.get(name, 0) for name in (DECIDED, SAME, GIVEN_UP, LIVE))
        parts = [f"{decided} of {self.total} comparisons decided", *([f"{same} the same"] if same else [])]
        untested = [f"{self.untested} not tested"] if self.untested else []
        return ", ".join([*parts, f"{given_up} given up", f"{live} live", *untested])

    @property
    def progress(self) -> str:
        """`look 2 of 4: 3/6 trainings; 4 of 30 comparisons decided, ...`; without a look if none lacks seeds."""
        if self.look is None:
            return str(self)
        return f"look {self.look} of {self.looks}: {self.begun}/{self.begun + self.needed} trainings; {self}"

    @property
    def summary(self) -> str:
        """`4 of 30 comparisons decided, ..., after 90 trainings, 36 of them with further seeds`."""
        return f"{self}, after {self.first + self.further:,} trainings, {self.further:,} of them with further seeds"


def count_decisions(spec: Spec, cohorts: Iterable[SeedCohort]) -> Tally | None:
    """How the comparisons of a sweep stand; None if it has no looks, or nothing to compare yet."""
    known = list(cohorts)
    families = judge_cohorts(spec, known)
    counts = Counter(ending for family in families for ending in family.walk.endings)
    if not counts.total():
        return None
    trained = [end.seed for cohort in known for end in cohort.ends]
    first = sum(seed in spec.seeds for seed in trained)
    schedule, waiting = families[0].schedule, [family for family in families if family.walk.pending]
    look = min((family.walk.pending_look for family in waiting), default=None)
    untested = sum(len(family.everyone) - len(family.members) for family in families)
    tally = Tally(counts, first, len(trained) - first, looks=len(schedule.looks), untested=untested)
    if look is None:
        return tally
    new = set(schedule.seeds_of(look)) - set(schedule.seeds_of(look - 1))
    lacking = {
        (side.trial_ids[spec.seeds[0]], seed)
        for family in waiting
        for member in family.walk.pending
        for side, seeds in family.lacking(member)
        for seed in new.intersection(seeds)
    }
    begun = sum(end.seed in new and end.state in FINAL for cohort in known for end in cohort.ends)
    return replace(tally, look=look + 1, begun=begun, needed=len(lacking))
