"""Looks: levels, Holm's procedure over them, and giving up, against a slow version that is written plainly."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.stats import t as student

from qdtune.store.looks import DECIDED, GIVEN_UP, LIVE, SAME, LookTable, Walk, rising_levels, walk_looks
from qdtune.store.seed_tests import half_width, same_test

LOOKS = (3, 6, 9, 12)
EQUAL = 1e-6


def tables_of(values: np.ndarray, looks=LOOKS, lost_at: dict[int, int] | None = None) -> list[LookTable]:
    """The tables of a family with all its differences (m, S); a comparison in `lost_at` is lost from that look on."""
    found = []
    for look, n in enumerate(looks):
        here = np.full((len(values), n), np.nan)
        known = values[:, :n]
        here[:, : known.shape[1]] = known
        lost = np.array([(lost_at or {}).get(i, len(looks)) <= look for i in range(len(values))], dtype=bool)
        here[lost] = np.nan
        found.append(LookTable(here, np.full(len(values), EQUAL), lost, np.zeros_like(lost)))
    return found


def slowly(values: np.ndarray, looks=LOOKS, alpha=0.05) -> list[tuple[str, int]]:
    """How each comparison ends and at which look, if every live one has the seeds of every look."""
    m, shares = len(values), sum(range(1, len(looks) + 1))
    ends: dict[int, tuple[str, int]] = {}
    for look, n in enumerate(looks):
        level = alpha * (look + 1) / shares
        p = {}
        for i in range(m):
            if ends.get(i, ("", 0))[0] == DECIDED:
                continue
            row = values[i, :n]
            statistic = row.mean() * math.sqrt(n) / row.std(ddof=1)
            p[i] = 2 * student.sf(abs(statistic), n - 1)
        hypotheses = sorted(p, key=lambda i: p[i])
        for place, i in enumerate(hypotheses):
            if p[i] > level / (len(hypotheses) - place):
                break
            ends[i] = (DECIDED, look)
        undecided = [i for i in range(m) if ends.get(i, ("", 0))[0] != DECIDED]
        for i in undecided:
            row = values[i, :n]
            reach = abs(row.mean()) * math.sqrt(looks[-1]) / row.std(ddof=1)
            threshold = student.ppf(1 - alpha * len(looks) / shares / (2 * len(undecided)), looks[-1] - 1)
            if i not in ends and (reach + 1 < threshold or look == len(looks) - 1):
                ends[i] = (GIVEN_UP, look)
    return [ends[i] for i in range(m)]


def drawn(seed: int, m: int) -> np.ndarray:
    noise = np.random.default_rng(seed)
    return noise.normal(noise.choice([0, 0.5, 1, 2, 4], size=(m, 1)), 1, size=(m, LOOKS[-1]))


def walk(values: np.ndarray, **more) -> Walk:
    return walk_looks(tables_of(values, **more), rising_levels(0.05, len(more.get("looks", LOOKS))))


@pytest.mark.parametrize("seed", range(40))
def test_verdicts_and_looks_are_those_of_the_slow_version(seed):
    values = drawn(seed, m=1 + seed)
    found = walk(values)
    assert list(zip(found.endings, found.looks, strict=True)) == slowly(values)
    assert found.pending == ()


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_comparisons_does_not_matter(seed):
    values = drawn(seed, m=20)
    order = np.random.default_rng(seed).permutation(20)
    first, second = walk(values), walk(values[order])
    assert [first.endings[i] for i in order] == list(second.endings)
    assert [first.looks[i] for i in order] == list(second.looks)


def test_levels_rise_and_sum_to_alpha():
    assert rising_levels(0.05, 4) == pytest.approx((0.005, 0.010, 0.015, 0.020))
    for count in range(1, 9):
        levels = rising_levels(0.1, count)
        assert math.fsum(levels) == pytest.approx(0.1)
        assert list(levels) == sorted(levels)


@pytest.mark.parametrize("seed", range(60))
def test_more_results_never_withdraw_a_verdict(seed):
    """Seeds come in any order, one comparison at a time; what is decided stays so, at its look or an earlier one."""
    chance, values = random.Random(seed), drawn(seed, m=8)
    known = np.full_like(values, np.nan)
    known[:, :3] = values[:, :3]
    decided: dict[int, int] = {}
    for _ in range(24):
        i = chance.randrange(8)
        n = int(np.isfinite(known[i]).sum())
        known[i, : n + 3] = values[i, : n + 3]
        found = walk(known)
        now = {
            i: look for i, (end, look) in enumerate(zip(found.endings, found.looks, strict=True)) if end == DECIDED
        }
        assert decided.keys() <= now.keys()
        assert all(now[i] <= look for i, look in decided.items())
        decided = now


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_given_up_before_all_live_ones_have_the_seeds(seed):
    values = drawn(seed, m=8)
    first = walk(values[:, :3])
    live = [i for i, end in enumerate(first.endings) if end == LIVE]
    if len(live) < 2:
        return
    assert first.pending == tuple(live)
    assert first.pending_look == 1
    known = np.full_like(values, np.nan)
    known[:, :3] = values[:, :3]
    known[live[:-1], :6] = values[live[:-1], :6]
    partly = walk(known)
    assert partly.pending == (live[-1],)
    assert {i for i, end in enumerate(partly.endings) if end == GIVEN_UP} == {
        i for i, end in enumerate(first.endings) if end == GIVEN_UP
    }


def test_one_that_was_given_up_is_decided_if_it_has_the_seeds_all_the_same():
    noise = np.random.default_rng(5)
    values = np.vstack([noise.normal(0, 0.01, (1, 12)) + 1, noise.normal(0, 1, (1, 12))])
    values[0, :3] = [-1.0, 1.1, 0.0]  # hopeless at first
    values[1, :3] = [1.0, 1.05, 0.3]
    only_first = values.copy()
    only_first[0, 3:] = np.nan
    assert walk(only_first).endings[0] == GIVEN_UP
    values[0, 3:] = 8 + noise.normal(0, 0.01, 9)
    values[0, :3] = [7.0, 9.1, -2.0]
    assert walk(values).endings[0] == DECIDED


def test_a_lost_comparison_is_given_up_at_its_last_look_and_holds_nobody_up():
    values = np.array([[1.0, 2.0, 3.5] + [2.0] * 9, [1.0, 2.2, 3.0] + [1.0, 2.0, 3.0] * 3])
    found = walk(values, lost_at={0: 1})
    assert (found.endings[0], found.looks[0]) == (GIVEN_UP, 0)
    assert found.endings[1] == DECIDED


def test_one_without_its_first_seeds_counts_in_the_family_and_waits_for_nothing():
    """At p = 0.004 a comparison is decided alone, and not in a family of two."""
    row = np.array([1.0, 1.05, 1.2])
    statistic = row.mean() * math.sqrt(3) / row.std(ddof=1)
    assert 0.0025 < 2 * student.sf(statistic, 2) < 0.005
    assert walk(row[None]).endings == (DECIDED,)
    both = walk(np.vstack([row, [np.nan] * 3]))
    assert both.endings == (LIVE, LIVE)
    assert both.pending == (0,)


def test_a_first_table_without_columns_tests_nothing():
    values = drawn(3, m=6)
    tables = tables_of(values, looks=(0, 3, 6, 9))
    found = walk_looks(tables, (0.0, *rising_levels(0.05, 3)))
    assert min(found.looks) >= 1
    nothing = walk_looks(tables_of(values[:, :0], looks=(0, 3)), (0.0, 0.05))
    assert nothing.pending == tuple(range(6))
    assert set(nothing.endings) == {LIVE}


def test_differences_that_are_all_zero_are_given_up_at_once():
    assert walk(np.zeros((1, 3))).endings == (GIVEN_UP,)
    assert walk(np.full((1, 3), 0.5)).endings == (LIVE,)  # equal in all seeds: a sign test with more of them


def test_an_empty_family():
    found = walk(np.empty((0, 3)))
    assert (found.endings, found.pending) == ((), ())


# --- the same within a margin

MARGIN = 1.5


def slowly_with_margin(values: np.ndarray, looks=LOOKS, alpha=0.05) -> list[tuple[str, int]]:
    """As `slowly`, with a margin; without giving up before the last look."""
    m, shares = len(values), sum(range(1, len(looks) + 1))
    ends = []
    for row in values:
        end = (GIVEN_UP, len(looks) - 1)
        for look, n in enumerate(looks):
            level = alpha * (look + 1) / shares / m
            mean, error = row[:n].mean(), row[:n].std(ddof=1) / math.sqrt(n)
            # Two one-sided tests: above -margin, and below it.
            sides = (mean + MARGIN) / error, (MARGIN - mean) / error
            is_different = 2 * student.sf(abs(mean) / error, n - 1) <= level
            if is_different or max(student.sf(side, n - 1) for side in sides) <= level:
                end = (DECIDED if is_different else SAME, look)
                break
        ends.append(end)
    return ends


def drawn_near(seed: int, m: int) -> np.ndarray:
    noise = np.random.default_rng(seed)
    return noise.normal(noise.choice([0, 0.5, 1, 1.5], size=(m, 1)) * MARGIN, 1, size=(m, LOOKS[-1]))


def walk_near(values: np.ndarray, margin: float | None = MARGIN) -> Walk:
    return walk_looks(tables_of(values), rising_levels(0.05, len(LOOKS)), margin)


@pytest.mark.parametrize("seed", range(20))
def test_verdicts_with_a_margin_are_those_of_the_slow_version(seed):
    values = drawn_near(seed, m=1 + seed)
    found = walk_near(values)
    expected = slowly_with_margin(values)
    for ending, look, (known, at) in zip(found.endings, found.looks, expected, strict=True):
        assert ending == known
        assert look == at or ending == GIVEN_UP
    if seed >= 10:
        assert SAME in found.endings


def test_an_interval_shows_each_verdict():
    verdicts = set()
    for seed in range(30):
        found = walk_near(drawn_near(seed, m=6))
        for i, ending in enumerate(found.endings):
            test = found.tests[found.looks[i]]
            half = half_width(test.std[i], int(test.n[i]), found.interval_alpha(i))
            low, high = test.mean[i] - half, test.mean[i] + half
            assert (ending == DECIDED) == (not low <= 0 <= high) or ending == SAME
            assert ending != SAME or -MARGIN < low < high < MARGIN
            verdicts.add(ending)
    assert verdicts == {DECIDED, SAME, GIVEN_UP}


def test_a_significant_difference_within_the_margin_is_decided_and_not_the_same():
    noise = np.random.default_rng(1).normal(0, 0.1, size=(1, 12))
    found = walk_near(0.7 + noise)
    assert found.endings == (DECIDED,)
    test = found.tests[found.looks[0]]
    assert same_test(test, MARGIN)[0] < test.p[0] < found.levels[0]


def test_it_is_given_up_only_if_neither_verdict_can_be_reached():
    hopeless_difference = np.array([[-1.0, 1.1, 0.0]])
    wide = hopeless_difference * 5
    assert walk_near(hopeless_difference, None).endings == (GIVEN_UP,)
    assert walk_near(hopeless_difference, 1.5).endings == (LIVE,)
    assert walk_near(wide, 1.5).endings == (GIVEN_UP,)
    same = np.tile([-0.1, 0.1, 0.0, 0.05], 3)[None]
    assert (walk_near(same).endings, walk_near(same, None).endings) == ((SAME,), (GIVEN_UP,))


def test_equal_values_are_tested_by_their_signs():
    """Each p is 2^-n: 1/8 with 3 seeds, 1/4096 with 12."""
    assert walk_near(np.zeros((1, 3))).endings == (LIVE,)
    found = walk_near(np.zeros((1, 12)))
    assert (found.endings, found.looks) == ((SAME,), (2,))  # 1/512 is below 1.5 %, 1/64 not below 1 %
    assert walk_near(np.full((1, 12), 2 * MARGIN)).endings == (DECIDED,)


@pytest.mark.parametrize("seed", range(20))
def test_more_results_never_withdraw_a_verdict_of_either_kind(seed):
    """Seeds come for what lacks them, in any order, and for others that share their sides."""
    chance, values = random.Random(seed), drawn_near(seed, m=8)
    known = np.full_like(values, np.nan)
    known[:, :3] = values[:, :3]
    seen: dict[int, tuple[str, int]] = {}
    while True:
        found = walk_near(known)
        now = {
            i: (end, look)
            for i, (end, look) in enumerate(zip(found.endings, found.looks, strict=True))
            if end in (DECIDED, SAME)
        }
        assert seen.keys() <= now.keys()
        assert all(now[i][0] == end and now[i][1] <= look for i, (end, look) in seen.items())
        seen = now
        if not found.pending:
            break
        others = [i for i in range(8) if i not in found.pending and np.isnan(known[i, -1])]
        i = chance.choice(others if others and chance.random() < 0.3 else found.pending)
        n = int(np.isfinite(known[i]).sum())
        known[i, : n + 3] = values[i, : n + 3]
