"""More seeds until comparisons are decided: what a queue trains, whenever it is killed, within which budget."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from qdtune.spec.plan import plan
from qdtune.store.cohorts import find_stored_cohorts
from qdtune.store.further_seeds import count_decisions, find_further_seeds, judge_cohorts
from qdtune.store.looks import GIVEN_UP, LIVE
from qdtune.store.unfinished import find_unfinished
from tests.decided import DRAWN_BY, ONE_WIDTH, Launches, noisy, sweep, table_of
from tests.schemas import HISTORY

QUESTIONS = ["depth", "activation", "front"]
WAYS = [
    {},
    {"questions": QUESTIONS},
    {"questions": ["front"]},
    {"questions": QUESTIONS, "budget": 24},
    {"questions": QUESTIONS, "budget": 45},
    {"questions": QUESTIONS, "budget": {"seconds": 30}},
    {"looks": [3, 9, 12], "questions": QUESTIONS},
    {"looks": [3, 9, 12], "questions": QUESTIONS, "budget": 30},
]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_whenever_it_is_killed_the_same_is_trained(way, seed):
    spec, value = sweep(replicate=way), noisy(seed=seed)
    whole = Launches(spec, value)
    whole.launch(random.Random(0))
    assert len(set(whole.trained)) == len(whole.trained)
    assert whole.further > 0
    chance = random.Random(seed)
    killed = Launches(spec, value)
    for _ in range(200):
        before = len(killed.trained)
        killed.launch(chance, at_once=chance.randint(1, 5), kill_after=chance.choice([3, 10, 30]))
        if len(killed.trained) == before:
            break
    assert sorted(killed.trained) == sorted(whole.trained)
    assert str(killed.queue().count_decisions()) == str(whole.queue().count_decisions())


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_reader_of_the_folder_knows_what_is_left(way):
    spec = sweep(replicate=way)
    launches, chance = Launches(spec, noisy()), random.Random(3)
    listed, seen = {trial.key for trial in plan(spec).trials}, Counter()
    while True:
        before = len(launches.trained)
        queue = launches.launch(chance, at_once=3, kill_after=5)
        if len(launches.trained) == before:
            break
        stored = find_stored_cohorts(table_of(launches.results), HISTORY.empty_table())
        left = find_unfinished(spec, stored, listed, 0)
        again = launches.queue()
        assert left.to_replicate == {trial.key for trial in again._replicates()}
        assert str(count_decisions(spec, stored)) == str(again.count_decisions())
        seen[bool(left.to_replicate)] += 1
        assert (left.count > 0) == again.more()
    assert seen[True] > 1
    assert queue.over


def test_whole_cohorts_are_trained_for_both_sides_of_live_comparisons_alone():
    spec = sweep({"depth": [1, 2], "weight_bits": [1, 2, 3, 4, 8]})
    launches = Launches(
        spec,
        lambda trial, s: noisy(effect=0.05 * (trial.weight_bits > 4), noise=0.001 if trial.weight_bits > 4 else 0.02)(
            trial, s
        ),
    )
    launches.launch(random.Random(0), kill_after=len(plan(spec).trials))
    (family,) = judge_cohorts(spec, launches.results)
    endings = dict(zip((member.at[0].name for member in family.members), family.walk.endings, strict=True))
    assert LIVE in endings.values()
    assert len(set(endings.values())) > 1
    wanted = find_further_seeds(spec, launches.results)
    assert {seeds for _, seeds in wanted} == {(3, 4, 5)}
    live = {name[0] for name, ending in endings.items() if ending == LIVE}
    assert {result.trial.weight_bits for result, _ in wanted} == live
    sides = Counter(result.trial.weight_bits for result, _ in wanted)
    assert set(sides.values()) == {2}


@pytest.mark.parametrize("budget", [1, 5, 6, 30, 61, 10_000])
def test_the_budget_of_trainings_is_kept_and_both_sides_fit_in_it(budget):
    spec = sweep(ONE_WIDTH, replicate={"budget": budget})
    launches = Launches(spec, noisy())
    queue = launches.launch(random.Random(0), at_once=4)
    assert launches.further <= budget
    free = Launches(sweep(ONE_WIDTH), noisy())
    free.launch(random.Random(0))
    if budget < 6:
        assert launches.further == 0
    elif budget < free.further:
        assert launches.further > budget - 12  # the next comparison has up to two sides more than fit
        assert queue.count_decisions().counts[LIVE] > 0
    else:
        assert sorted(launches.trained) == sorted(free.trained)
    more = Launches(free.spec, launches.value, launches.results, list(launches.trained))
    more.launch(random.Random(1))  # with a larger budget it goes on
    assert sorted(more.trained) == sorted(free.trained)


def test_the_budget_of_seconds_counts_what_was_trained_and_expects_as_much_again():
    launches = Launches(sweep(ONE_WIDTH, replicate={"budget": {"seconds": 40}}), noisy())
    launches.launch(random.Random(0))
    assert 30 < launches.further <= 40  # a second each


def test_the_closest_comparisons_come_first():
    spec = sweep({"depth": [1, 2], "weight_bits": [1, 2, 3, 4, 8]}, replicate={"budget": 6})
    launches = Launches(spec, noisy())
    launches.launch(random.Random(0), kill_after=len(plan(spec).trials))
    (family,) = judge_cohorts(spec, launches.results)
    closest = min(family.walk.pending, key=family.p_before)
    bits = family.members[closest].at[0].name[0]
    assert {result.trial.weight_bits for result, _ in find_further_seeds(spec, launches.results)} == {bits}


@pytest.mark.parametrize("state", ["failed", "timeout", "oom"])
def test_further_seeds_that_fail_are_tried_once_per_launch(state):
    launches = Launches(sweep(), noisy(), fate=lambda trial: state if trial.seeds != (0, 1, 2) else None)
    queue = launches.launch(random.Random(0), at_once=2)
    counts = Counter(launches.trained)
    assert max(counts.values()) == (2 if state == "oom" else 1)  # alone on a machine it may fit
    assert queue.count_decisions().counts[LIVE] > 0
    first = sum(seeds != (0, 1, 2) for _, seeds in counts)
    launches.fate = lambda trial: None
    launches.launch(random.Random(1))
    whole = Launches(sweep(), noisy())
    whole.launch(random.Random(0))
    assert first > 0
    assert set(launches.trained) == set(whole.trained)


def test_further_seeds_that_always_fail_hold_up_no_other_comparisons():
    spec = sweep({"depth": [1, 2], "weight_bits": [1, 2, 4, 8]})

    def fate(trial):
        return "failed" if trial.weight_bits == 8 and trial.depth == 2 and 3 in trial.seeds else None

    launches = Launches(spec, noisy(), fate=fate)
    queue = launches.launch(random.Random(0), at_once=2)
    (family,) = judge_cohorts(spec, launches.results)
    (failed,) = (place for place, ending in enumerate(family.walk.endings) if ending == LIVE)
    assert family.members[failed].at[0].name[0] == 8
    assert max(seed for _, seeds in launches.trained for seed in seeds) == 8  # the others reach look 3
    assert queue.count_decisions().look is None
    again = find_further_seeds(spec, launches.results)
    assert [(result.trial.weight_bits, result.trial.depth, seeds) for result, seeds in again] == [(8, 2, (3, 4, 5))]
    launches.fate = lambda trial: None
    assert launches.launch(random.Random(1)).count_decisions().counts[LIVE] == 0


def test_a_side_that_diverges_with_more_seeds_ends_its_comparison():
    def value(trial, seed):
        return None if seed == 4 and trial.depth > 1 else noisy()(trial, seed)

    launches = Launches(sweep({"depth": [1, 2], "weight_bits": [1, 2, 4, 8]}), value)
    queue = launches.launch(random.Random(0))
    assert max(seed for _, seeds in launches.trained for seed in seeds) == 5
    tally = queue.count_decisions()
    assert tally.counts[LIVE] == 0
    (family,) = judge_cohorts(launches.spec, launches.results)
    assert all(look == 0 for look in family.walk.looks)


@pytest.mark.parametrize("budget", [None, 24])
def test_a_side_that_diverges_changes_nothing_of_what_was_begun(budget):
    def value(trial, seed):
        chance = random.Random(repr((trial.key[:DRAWN_BY], seed)))
        return None if seed > 2 and chance.random() < 0.2 else noisy()(trial, seed)

    spec = sweep(ONE_WIDTH, replicate={"budget": budget})
    whole, killed = Launches(spec, value), Launches(spec, value)
    whole.launch(random.Random(0))
    assert any(result.state == "diverged" for result in whole.results)
    while killed.queue().more():
        killed.launch(random.Random(0), kill_after=1)
    assert sorted(killed.trained) == sorted(whole.trained)


def test_a_search_decides_after_its_last_proposal():
    spec = sweep({"depth": [1, 2], "weight_bits": [1, 2, 4, 8]}, method="tpe", run_cap=8)
    launches = Launches(spec, noisy())
    queue = launches.launch(random.Random(0), at_once=2)
    assert len({key for key, _ in launches.trained}) == 8
    assert [seeds == (0, 1, 2) for _, seeds in launches.trained][:8] == [True] * 8
    assert queue.count_decisions().total == 4
    assert launches.further > 0


def test_near_ties_are_tested_without_the_seeds_that_chose_them():
    """With the first seeds 8 bits are far ahead, with the others both are the same: no verdict may favour 8 bits."""

    def value(trial, seed):
        noise = noisy(effect=0, noise=0.01)(trial, seed)
        return noise + (0.013 if seed < 3 and trial.weight_bits == 8 else 0)

    spec = sweep({"weight_bits": [1, 8]}, replicate={"questions": ["front"]})
    launches = Launches(spec, value)
    queue = launches.launch(random.Random(0))
    assert queue.count_decisions().counts == {GIVEN_UP: 1}
    (family,) = judge_cohorts(spec, launches.results)
    assert [len(table.differences[0]) for table in family.tables] == [0, 3, 6, 9]


def test_neighbours_that_the_first_seeds_tell_apart_get_no_more():
    spec = sweep({"weight_bits": [1, 8]}, replicate={"questions": ["front"]})

    def value(trial, seed):
        return 0.5 + 0.05 * trial.weight_bits + noisy(noise=0.001)(trial, seed) / 10

    launches = Launches(spec, value)
    assert launches.launch(random.Random(0)).count_decisions() is None
    assert launches.further == 0


def test_the_tally_counts_the_trainings_of_a_look_and_of_all():
    launches, seen = Launches(sweep(ONE_WIDTH), noisy()), []
    launches.launch(random.Random(0), kill_after=15)
    before = launches.queue().count_decisions()
    while launches.queue().more():
        launches.launch(random.Random(0), kill_after=1)
        seen.append(launches.queue().count_decisions())
    assert (before.look, before.looks, before.begun, before.first, before.further) == (2, 4, 0, 45, 0)
    assert before.progress == f"look 2 of 4: 0/{before.needed} trainings; {before}"
    second = [tally for tally in (before, *seen) if tally.look == 2]
    assert {tally.begun + tally.needed for tally in second} == {before.needed}
    assert [tally.begun for tally in second] == list(range(0, before.needed, 3))
    last = seen[-1]
    assert (last.look, last.progress) == (None, str(last))
    assert last.further == launches.further
    assert (
        last.summary
        == f"{last}, after {45 + launches.further} trainings, {launches.further} of them with further seeds"
    )


def test_the_tally_counts_comparisons_that_are_not_tested():
    """With 8 bits the first seeds of depth 2 diverge, so the report refuses this comparison."""
    spec = sweep({"depth": [1, 2], "weight_bits": [1, 8]})
    launches = Launches(spec, lambda t, s: None if t.depth == 2 and t.weight_bits == 8 else noisy()(t, s))
    tally = launches.launch(random.Random(0), kill_after=4).count_decisions()
    assert (tally.total, tally.untested) == (1, 1)
    assert str(tally) == "0 of 1 comparisons decided, 0 given up, 1 live, 1 not tested"


def test_seeds_above_the_first_ones_are_the_same_for_all():
    spec = sweep({"depth": [1, 2], "weight_bits": [1, 2]}, seeds=[7, 3])
    launches = Launches(spec, noisy())
    launches.launch(random.Random(0))
    assert {seeds for _, seeds in launches.trained} <= {(7, 3), (8, 9), (10, 11), (12, 13)}
    assert (8, 9) in {seeds for _, seeds in launches.trained}
