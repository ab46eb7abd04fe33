"""Prospects of stopped trainings against brute force, in any order, with ties."""

import math
import random

import pytest

from qdtune.reach import Curve, nearest, neighbours_of, progress, rank_prospects, share_reaching


def curve(name, values, is_finished):
    best = tuple(max(values[: k + 1]) for k in range(len(values)))
    return Curve(name, best, values[-1] if is_finished else None)


def drawn(seed):
    draw = random.Random(seed)
    level = lambda: draw.choice([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])  # noqa: E731
    lengths = [draw.randint(2, 5) for _ in range(draw.randint(0, 14))]
    finished = [curve(f"f{k}", [level() for _ in range(n)], True) for k, n in enumerate(lengths)]
    stopped = [
        (curve(f"s{k}", [level() for _ in range(draw.randint(1, 4))], False), draw.choice([-math.inf, level()]))
        for k in range(draw.randint(1, 8))
    ]
    return stopped, finished


def by_hand(stopped, finished, count):
    """The definition, one stopped training after the other."""
    found = {}
    for one, needed in stopped:
        e = len(one.best)
        gap = needed - one.best[-1]
        long = [other for other in finished if len(other.best) >= e]
        alike = sorted((abs(other.best[e - 1] - one.best[-1]), other.name, other) for other in long)[:count]
        gained = [other.end - other.best[e - 1] >= gap for *_, other in alike]
        found[one.name] = (1.0 if gap <= 0 else (1 + sum(gained)) / (1 + len(gained)), gap)
    return found


@pytest.mark.parametrize("seed", range(200))
def test_prospects_are_those_of_the_definition_in_any_order(seed):
    stopped, finished = drawn(seed)
    count = 1 + seed % 9
    wanted = by_hand(stopped, finished, count)
    order = sorted(wanted, key=lambda name: (-wanted[name][0], wanted[name][1], name))
    for shuffle in range(3):
        draw = random.Random(shuffle)
        some, others = draw.sample(stopped, len(stopped)), draw.sample(finished, len(finished))
        found = rank_prospects(some, others, count)
        assert [some[one.place][0].name for one in found] == order
        assert {some[one.place][0].name: (one.share, one.gap) for one in found} == wanted
        for one in found:
            own, needed = some[one.place]
            assert share_reaching(own, needed, nearest(own, others, count)) == one.share


def test_with_too_few_finished_no_prospect_is_at_most_the_risk():
    stopped = [(curve("s", [0.0], False), 1.0)]
    for risk in (0.05, 0.1, 0.3, 1 / 3):
        count = neighbours_of(risk)
        finished = [curve(f"f{k}", [1.0, 1.0], True) for k in range(count)]
        assert rank_prospects(stopped, finished[:-1], count)[0].share > risk
        assert rank_prospects(stopped, finished, count)[0].share <= risk


@pytest.mark.parametrize(
    ("risk", "count"),
    [(0.1, 9), (0.05, 19), (0.3, 3), (0.5, 1), (1 / 3, 2), (0.01, 99), (0.9999999999, 1), (1e-310, 999_999_999)],
)
def test_neighbours_of(risk, count):
    assert neighbours_of(risk) == count


def test_progress_grows_with_the_score_and_ends():
    assert progress(0.9, True, 0.001) == pytest.approx(math.log(10))
    assert progress(1.0, True, 0.001) == progress(0.9995, True, 0.001)
    assert progress(-0.1, False, 0.001) == pytest.approx(math.log(10))
    assert progress(-3.0, True, 0.001) < progress(0.0, True, 0.001)  # an R² below 0
    assert math.isfinite(progress(0.0, False, 0.001))


def test_who_has_what_it_needs_is_sure_and_shorter_curves_tell_nothing():
    stopped = curve("s", [1.0, 2.0], False)
    assert share_reaching(stopped, 2.0, []) == 1.0
    short = Curve("short", (3.0,), 3.0)
    assert nearest(stopped, [short], 3) == []
