"""Whether a training that was stopped could still reach a value, judged by the curves of those that were finished.

Progress is -ln(error), the best so far: halving the error is worth as much at any level. A stopped training is
compared with the finished ones that had made the most similar progress at the epoch at which it was stopped. The
share is a dial that was measured on recordings. It is no guarantee, because stopped and finished trainings are
different samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEAST_RISK = 1e-9  # a smaller risk counts as this one: no sweep has so many trials


def progress(score: float, is_share: bool, least: float) -> float:
    """-ln(error) of a score, of which more is better.

    Args:
        score: a metric that goes up to 1 at most; or the negative of an error, which is 0 or more.
        is_share: which of the two.
        least: smaller errors count as this one.
    """
    return -math.log(max(1 - score if is_share else -score, least))


@dataclass(frozen=True)
class Curve:
    """The progress of one training.

    Attributes:
        name: tells equal curves apart, so that their order is always the same.
        best: the best progress up to each epoch, from epoch 1 on; at least one.
        end: the progress of what it came to; None if it was stopped.
    """

    name: str
    best: tuple[float, ...]
    end: float | None = None


def nearest(stopped: Curve, finished: Iterable[Curve], count: int) -> list[Curve]:
    """The finished curves, at most `count`, that were nearest to a stopped one at its last epoch.

    Args:
        stopped: the curve up to where it was stopped.
        finished: curves with an end; one that is shorter than `stopped` is left out.
        count: 1 or more.
    """
    last = len(stopped.best) - 1
    long = [curve for curve in finished if len(curve.best) > last]
    return sorted(long, key=lambda curve: (abs(curve.best[last] - stopped.best[last]), curve.name))[:count]


def share_reaching(stopped: Curve, needed: float, alike: Sequence[Curve]) -> float:
    """(1 + how many of `alike` gained as much as the stopped curve needs) / (1 + their number), above 0 and up to 1.

    Args:
        stopped: the curve up to where it was stopped.
        needed: the progress that it would have to reach.
        alike: see `nearest`.
    """
    last = len(stopped.best) - 1
    gap = needed - stopped.best[last]
    if gap <= 0:
        return 1.0
    gains = (curve.end - curve.best[last] for curve in alike if curve.end is not None)
    return (1 + sum(gain >= gap for gain in gains)) / (len(alike) + 1)


def neighbours_of(risk: float) -> int:
    """How many nearest curves can tell a share of `risk`, above 0 and below 1, from none: 9 for 0.1."""
    return max(1, math.ceil(round(1 / max(risk, LEAST_RISK), 9)) - 1)


@dataclass(frozen=True)
class Prospect:
    """A stopped training and the share of similar ones that gained enough for the front.

    Attributes:
        place: its index.
        share: see `share_reaching`.
        gap: the progress that it lacks.
        alike: how many finished ones it was compared with.
    """

    place: int
    share: float
    gap: float
    alike: int


def rank_prospects(stopped: Sequence[tuple[Curve, float]], finished: Sequence[Curve], count: int) -> list[Prospect]:
    """The prospect of each stopped training to reach what it needs; the best prospect first.

    As `share_reaching` of the `nearest` curves, but the finished curves are laid out once for all that were stopped
    at one epoch: a large sweep has thousands of both.

    Args:
        stopped: each curve with the progress that it would have to reach; minus infinity if there is nothing.
        finished: curves with an end.
        count: of nearest curves, 1 or more.
    """
    import numpy as np  # a sweep file is checked without it

    by_name = sorted(finished, key=lambda curve: curve.name)
    found: list[Prospect] = []
    laid_out: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for place, (curve, needed) in enumerate(stopped):
        last = len(curve.best) - 1
        if last not in laid_out:
            long = [(one.best[last], one.end) for one in by_name if len(one.best) > last]
            at, end = np.array(long, dtype=float).reshape(-1, 2).T
            laid_out[last] = at, end - at
        at, gains = laid_out[last]
        gap = needed - curve.best[last]
        alike = gains[np.argsort(np.abs(at - curve.best[last]), kind="stable")[:count]]
        share = 1.0 if gap <= 0 else float(1 + (alike >= gap).sum()) / (len(alike) + 1)
        found.append(Prospect(place, share, gap, len(alike)))
    return sorted(found, key=lambda prospect: (-prospect.share, prospect.gap, stopped[prospect.place][0].name))
