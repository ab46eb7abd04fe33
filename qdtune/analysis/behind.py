"""Tells whether a stopped configuration is behind a finished one, from finished curves like its own.

It says less than a test: it is about the mean of these seeds, has no interval, and stands outside Holm's correction.
How often it is wrong on recordings is in docs/report-and-answers.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from qdtune.datasets.dataset import DatasetInfo
from qdtune.reach import Curve, nearest, share_reaching
from qdtune.store.cohorts import StoredCohort, find_stored_cohorts
from qdtune.store.columns import metric_in
from qdtune.store.pairs import Side
from qdtune.store.releases import curve_name, curve_of, learned_curves
from qdtune.store.tables import Table

N_ALIKE = 9  # finished curves that a stopped one is compared with: none of them may have gained what it needs


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
        info: of its data set, if that is known.
    """

    trials: Table
    history: Table
    info: DatasetInfo | None = None

    @cached_property
    def cohorts(self) -> dict[str, StoredCohort]:
        """trial_id -> its cohort, of those that have a curve."""
        return {one.trial_id: one for one in find_stored_cohorts(self.trials, self.history) if one.scores}

    @cached_property
    def finished(self) -> list[Curve]:
        """The finished curves without untrained ones."""
        return learned_curves(self.cohorts.values(), metric_in(self.trials), self.info)

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
        return None if None in epochs else Behind(place, min(epoch for epoch in epochs if epoch), N_ALIKE)

    def _epoch_behind(self, stopped: Side, finished: Side) -> int | None:
        """The epoch at which one side was stopped if it is behind the other one; else None."""
        known = [self.cohorts[name] for name in _names(stopped) if name in self.cohorts]
        ends = list(finished.measured.values())
        if len(known) != 1 or known[0].state != "pruned" or not ends:
            return None
        metric = metric_in(self.trials)
        curve = curve_of(known[0], metric)
        own = {curve_name(self.cohorts[name]) for name in _names(finished) if name in self.cohorts}
        others = [one for one in self.finished if one.name not in own]
        alike = nearest(curve, others, N_ALIKE)
        needed = metric.progress(metric.sign * math.fsum(ends) / len(ends))
        is_behind = len(alike) == N_ALIKE and share_reaching(curve, needed, alike) == 1 / (N_ALIKE + 1)
        return len(curve.best) if is_behind else None


def _names(side: Side) -> Iterable[str]:
    return sorted(set(side.trial_ids.values()))
