"""Chances of stopped trainings against brute force, in any order, with ties."""

import math
import random

import pytest

from qdtune.reach import Curve, nearest, neighbours_of, progress, rank_chances, share_reaching


def curve(name, values, is_finished):
    best = tuple(max(values[: k + 1]) for k in range(len(values)))
    return Curve(name, best, values[-1] if is_finished else None)


def drawn(seed):
    draw = random.Random(seed)
    level = lambda: draw.choice([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])  # noqa: E731
    finished = [
        (draw.choice([10, 20, 30]), curve(f"f{k}", [level() for _ in range(5)], True))
        for k in range(draw.randint(0, 14))
    ]
    stopped = [
        (draw.choice([5, 10, 20, 30]), curve(f"s{k}", [level() for _ in range(draw.randint(1, 4))], False))
        for k in range(draw.randint(1, 8))
    ]
    return stopped, finished


def by_hand(stopped, finished, count):
    """The definition, one stopped training after the other."""
    found = {}
    for size, one in stopped:
        smaller = [other.end for other_size, other in finished if other_size <= size]
        if not smaller:
            found[one.name] = (1.0, -math.inf)
            continue
        e = len(one.best)
        needed = max(smaller) - one.best[-1]
        alike = sorted((abs(other.best[e - 1] - one.best[-1]), other.name, other) for _, other in finished)[:count]
        gained = [other.end - other.best[e - 1] >= needed for *_, other in alike]
        found[one.name] = (1.0 if needed <= 0 else (1 + sum(gained)) / (1 + len(gained)), needed)
    return found


@pytest.mark.parametrize("seed", range(200))
def test_chances_are_those_of_the_definition_in_any_order(seed):
    stopped, finished = drawn(seed)
    count = 1 + seed % 9
    wanted = by_hand(stopped, finished, count)
    order = sorted(wanted, key=lambda name: (-wanted[name][0], wanted[name][1], name))
    for shuffle in range(3):
        draw = random.Random(shuffle)
        some, others = draw.sample(stopped, len(stopped)), draw.sample(finished, len(finished))
        found = rank_chances(some, others, count)
        assert [some[chance.place][1].name for chance in found] == order
        assert {some[chance.place][1].name: (chance.share, chance.gap) for chance in found} == wanted


def test_with_too_few_finished_no_chance_is_at_most_the_risk():
    stopped = [(10, curve("s", [0.0], False))]
    for risk in (0.05, 0.1, 0.3, 1 / 3):
        count = neighbours_of(risk)
        finished = [(5, curve(f"f{k}", [1.0, 1.0], True)) for k in range(count)]
        assert rank_chances(stopped, finished[:-1], count)[0].share > risk
        assert rank_chances(stopped, finished, count)[0].share <= risk


@pytest.mark.parametrize(("risk", "count"), [(0.1, 9), (0.05, 19), (0.3, 3), (0.5, 1), (1 / 3, 2), (0.01, 99)])
def test_neighbours_of(risk, count):
    assert neighbours_of(risk) == count


def test_progress_grows_with_the_score_and_ends():
    assert progress(0.9, True) == pytest.approx(math.log(10))
    assert progress(1.0, True) == progress(0.9995, True)
    assert progress(-0.1, False) == pytest.approx(math.log(10))
    assert progress(-3.0, True) < progress(0.0, True)  # an R² below 0
    assert math.isfinite(progress(0.0, False))


def test_who_has_what_it_needs_is_sure_and_shorter_curves_tell_nothing():
    stopped = curve("s", [1.0, 2.0], False)
    assert share_reaching(stopped, 2.0, []) == 1.0
    short = Curve("short", (3.0,), 3.0)
    assert nearest(stopped, [short], 3) == []
