"""Whether a training that was stopped could still reach a value, judged by the curves of those that were finished.

Progress is -ln(error), the best so far: halving the error is worth as much at any level. A stopped training is
compared with the finished ones that had made the most similar progress at the epoch at which it was stopped. They do
not promise anything about it: what was stopped and what was finished were not drawn alike. The share is a dial that
was measured on recordings, and no guarantee.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LEAST_ERROR = 0.001  # of a metric that goes up to 1; smaller errors count as this one
TINY = 1e-12  # the same for an error without a scale


def progress(score: float, is_share: bool) -> float:
    """-ln(error) of a score, of which more is better.

    Args:
        score: a metric that goes up to 1 at most; or the negative of an error, which is 0 or more.
        is_share: which of the two.
    """
    return -math.log(max(1 - score, LEAST_ERROR) if is_share else max(-score, TINY))


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
    return math.ceil(round(1 / risk, 9)) - 1


@dataclass(frozen=True)
class Chance:
    """A stopped training and the share of similar ones that gained enough for the front.

    Attributes:
        place: its index.
        share: see `share_reaching`; 1 if nothing finished is as small.
        gap: the progress that it lacks.
    """

    place: int
    share: float
    gap: float


def rank_chances(
    stopped: Sequence[tuple[float, Curve]], finished: Sequence[tuple[float, Curve]], count: int
) -> list[Chance]:
    """The chance of each stopped training to reach the best finished one of no larger size; the best chance first.

    Args:
        stopped, finished: the size in bytes and the curve of each.
        count: of nearest curves, 1 or more.
    """
    sizes, bests = [], list[float]()
    for size, curve in sorted(finished, key=lambda entry: entry[0]):
        assert curve.end is not None, "a finished curve has an end"
        sizes.append(size)
        bests.append(max([curve.end, *bests[-1:]]))
    found = []
    for place, (size, curve) in enumerate(stopped):
        n = bisect_right(sizes, size)
        if not n:
            found.append(Chance(place, 1.0, -math.inf))
            continue
        alike = nearest(curve, (one for _, one in finished), count)
        found.append(Chance(place, share_reaching(curve, bests[n - 1], alike), bests[n - 1] - curve.best[-1]))
    return sorted(found, key=lambda chance: (-chance.share, chance.gap, stopped[chance.place][1].name))
