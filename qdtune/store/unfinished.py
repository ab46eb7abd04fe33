"""The unfinished part of a sweep: one answer for the queue that trains it and for readers of its run folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qdtune.spec.sweep_file import Spec
from qdtune.store.cohorts import C, Finished, Key, best_up_to, choose_further_seeds, find_finished
from qdtune.store.columns import FINAL
from qdtune.store.further_seeds import find_further_seeds
from qdtune.store.releases import find_to_release


@dataclass(frozen=True)
class Unfinished:
    """The unfinished part of a sweep, by the axes of the configurations.

    Attributes:
        waiting: configurations that are planned, or begun by the search, and have no final result.
        unasked: the number of configurations that the search may still propose.
        to_release: see `find_to_release`.
        to_replicate: see `find_to_replicate` and `further_seeds.find_further_seeds`.
    """

    waiting: frozenset[Key]
    unasked: int
    to_release: frozenset[Key]
    to_replicate: frozenset[Key]

    @property
    def count(self) -> int:
        """The number of unfinished configurations; each counts once."""
        return len(self.waiting | self.to_release | self.to_replicate) + self.unasked


def find_unfinished(spec: Spec, cohorts: Iterable[C], listed: Collection[Key] | None, planned: int) -> Unfinished:
    """The unfinished part of a sweep that is not running.

    Args:
        spec: resolved.
        cohorts: all cohorts of this sweep in the run folder.
        listed: the configurations of the plan; None if the method searches.
        planned: the total number of configurations that a search proposes; unused if `listed` is given.
    """
    known = list(cohorts)
    if listed is None:
        waiting = {cohort.key for cohort in known if not is_ended(spec, cohort.state)}
    else:
        first = [cohort for cohort in known if sorted(cohort.seeds) == sorted(spec.seeds)]
        waiting = set(listed) - {cohort.key for cohort in first if is_ended(spec, cohort.state)}
    return Unfinished(
        frozenset(waiting),
        count_unasked(planned, len({cohort.key for cohort in known})) if listed is None else 0,
        frozenset(cohort.key for cohort in find_to_release(spec, known)),
        frozenset(cohort.key for cohort, _ in (*find_to_replicate(spec, known), *find_further_seeds(spec, known))),
    )


def is_ended(spec: Spec, state: str) -> bool:
    """Whether a result in this state needs no further attempt. Without a pruner, a stopped trial is trained again."""
    if state == "pruned":
        return spec.early_terminate.type != "none"
    return state in FINAL


def count_unasked(planned: int, known: int) -> int:
    """The number of configurations that a search may still propose, if `known` of `planned` are proposed."""
    return max(0, planned - known)


def find_to_replicate(spec: Spec, cohorts: Iterable[C]) -> list[tuple[C, tuple[int, ...]]]:
    """The trials that `replicate.front` still asks for: a cohort of each configuration, and the seeds to add.

    Configurations on the front, or close behind it, are chosen with the first seeds alone. Once they have all their
    seeds, others are chosen with the seeds that are there now, and so on. What was chosen is trained to its end, so a
    launch that was killed in between trains the same as one that was not. Trials that failed are listed again, and
    hold up no others. With `duplicates: replicate` a search gives more seeds before anybody is chosen, so all seeds
    count from the beginning.

    Args:
        spec: resolved.
        cohorts: all cohorts of this sweep.
    """
    wanted = spec.replicate
    if wanted is None or wanted.front is None:
        return []
    known, first = list(cohorts), sorted(spec.seeds)
    ended: dict[Key, set[int]] = {}
    for cohort in known:
        ended.setdefault(cohort.key, set()).update(cohort.seeds if cohort.state in FINAL else ())
    tried = {(cohort.key, cohort.seeds) for cohort in known}
    failed: list[tuple[C, tuple[int, ...]]] = []
    chosen_before: set[Key] = set()
    is_last = spec.duplicates == "replicate"
    while True:
        judged = [one for one in known if is_last or one.key in chosen_before or sorted(one.seeds) == first]
        found = (one.cohorts[0] for one in _find_near(spec, judged, wanted.within))
        chosen = [one for one in found if one.key not in chosen_before]
        trials = [(one, seeds) for one in chosen for seeds in _list_missing(spec, wanted.front, ended[one.key])]
        if any((one.key, seeds) not in tried for one, seeds in trials):
            return failed + trials
        failed += trials
        chosen_before.update(one.key for one in chosen)
        if is_last and not chosen:
            return failed
        is_last = is_last or not chosen


def _find_near(spec: Spec, cohorts: Iterable[C], within: float) -> list[Finished[C]]:
    """The configurations on the front, or at most `within` behind one of no larger costs."""
    ended = find_finished(cohorts, spec.costs)
    best = best_up_to(ended)
    return [one for one in ended if best(one.costs) - one.score <= within]


def _list_missing(spec: Spec, wanted: int, ended: Collection[int]) -> list[tuple[int, ...]]:
    """The seeds that a configuration lacks, of `wanted` ones; `ended` are those that it has.

    In chunks of the sweep's number of seeds, because a cohort of another size must be compiled again.
    """
    size = len(spec.seeds)
    lacking = [seed for seed in choose_further_seeds(spec.seeds, wanted - size) if seed not in ended]
    lacking = lacking[: max(0, wanted - len(ended))]
    return [tuple(lacking[i : i + size]) for i in range(0, len(lacking), size)]
