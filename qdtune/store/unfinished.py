"""The unfinished part of a sweep: one answer for the queue that trains it and for readers of its run folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from qdtune.spec.sweep_file import Spec
from qdtune.store.cohorts import C, Finished, Key, best_up_to, find_finished
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
        to_replicate: see `find_to_replicate` and `decisions.find_further_seeds`.
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
        frozenset(found.cohorts[0].key for found in find_to_replicate(spec, known))
        | frozenset(cohort.key for cohort, _ in find_further_seeds(spec, known)),
    )


def is_ended(spec: Spec, state: str) -> bool:
    """Whether a result in this state needs no further attempt. Without a pruner, a stopped trial is trained again."""
    if state == "pruned":
        return spec.early_terminate.type != "none"
    return state in FINAL


def count_unasked(planned: int, known: int) -> int:
    """The number of configurations that a search may still propose, if `known` of `planned` are proposed."""
    return max(0, planned - known)


def find_to_replicate(spec: Spec, cohorts: Iterable[C]) -> list[Finished[C]]:
    """The configurations on the front, or close behind it, with fewer seeds than `replicate` asks for."""
    wanted = spec.replicate
    if wanted is None or wanted.front is None:
        return []
    ended = find_finished(cohorts)
    best = best_up_to(ended)
    near = [one for one in ended if best(one.size_bytes) - one.score <= wanted.within]
    return [one for one in near if len(one.seeds) < (wanted.front or 0)]
