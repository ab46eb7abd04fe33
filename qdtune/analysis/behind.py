"""Whether a configuration that was stopped is behind one that was finished, judged by finished curves like its own.

It says less than a test: it is about the mean of these seeds, has no interval, and stands outside Holm's correction.
How often it is wrong on recordings is in docs/report-and-answers.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from qdtune.analysis.pairs import Side
from qdtune.datasets.known import find_dataset
from qdtune.reach import Curve, nearest, share_reaching
from qdtune.spec.objectives import untrained_value
from qdtune.store.columns import metric_in
from qdtune.store.tables import Table
from qdtune.store.unfinished import CHANCE_MARGIN, StoredCohort, find_stored_cohorts

ALIKE = 9  # finished curves that a stopped one is compared with: none of them may have gained what it needs


@dataclass(frozen=True)
class Behind:
    """The side of pairs that is behind.

    Attributes:
        place: 0 for the first side of each pair, 1 for the second.
        epoch: the QAT epoch from which it is predicted: the earliest at which a side was stopped.
        alike: the number of finished curves that it was compared with.
    """

    place: int
    epoch: int
    alike: int


@dataclass(frozen=True)
class CurveBook:
    """The curves of one sweep.

    Attributes:
        trials: one row per seed, as `columns.trials_schema`.
        history: one row per seed and epoch, as `columns.history_schema`.
    """

    trials: Table
    history: Table

    @cached_property
    def cohorts(self) -> dict[str, StoredCohort]:
        """trial_id -> its cohort, of those that have a curve."""
        return {one.trial_id: one for one in find_stored_cohorts(self.trials, self.history) if one.scores}

    @cached_property
    def finished(self) -> list[Curve]:
        """The finished curves, without those that ended where a network is that has learned nothing."""
        metric = metric_in(self.trials)
        data = find_dataset(self.trials["dataset"][0].as_py()) if self.trials.num_rows else None
        nothing = untrained_value(metric, data.info) if data else None
        floor = -math.inf if nothing is None else metric.sign * nothing + CHANCE_MARGIN
        scored = [(name, one, one.score) for name, one in self.cohorts.items() if one.score is not None]
        return [self._curve(name, one, score) for name, one, score in scored if score > floor]

    def _curve(self, name: str, cohort: StoredCohort, score: float | None = None) -> Curve:
        metric = metric_in(self.trials)
        best = tuple(metric.progress(value) for value in cohort.scores)
        return Curve(name, best, None if score is None else metric.progress(score))

    def find_behind(self, pairs: Sequence[tuple[Side, Side]]) -> Behind | None:
        """Which side of all pairs is behind; None if it cannot be said.

        The same side of each pair must have been stopped and the other one finished.
        """
        places = {place for pair in pairs for place, side in enumerate(pair) if side.state == "pruned"}
        if len(places) != 1 or any(side.state != "ok" for pair in pairs for side in pair if side.state != "pruned"):
            return None
        (place,) = places
        if any(pair[place].state != "pruned" for pair in pairs):
            return None
        epochs = [self._epoch_behind(pair[place], pair[1 - place]) for pair in pairs]
        return None if None in epochs else Behind(place, min(epoch for epoch in epochs if epoch), ALIKE)

    def _epoch_behind(self, stopped: Side, finished: Side) -> int | None:
        """The epoch at which one side was stopped if it is behind the other one; else None."""
        known = [self.cohorts[name] for name in _names(stopped) if name in self.cohorts]
        ends = list(finished.measured.values())
        if len(known) != 1 or known[0].state != "pruned" or not ends:
            return None
        metric, curve = metric_in(self.trials), self._curve(known[0].trial_id, known[0])
        others = [one for one in self.finished if one.name not in finished.trial_ids.values()]
        alike = nearest(curve, others, ALIKE)
        needed = metric.progress(metric.sign * math.fsum(ends) / len(ends))
        is_behind = len(alike) == ALIKE and share_reaching(curve, needed, alike) == 1 / (ALIKE + 1)
        return len(curve.best) if is_behind else None


def _names(side: Side) -> Iterable[str]:
    return sorted(set(side.trial_ids.values()))
