"""Verdicts of a sweep that adds seeds until comparisons are decided: those of its looks, in numbers and in words."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from qdtune.analysis.answers import Answers, answer
from qdtune.analysis.behind import CurveBook
from qdtune.analysis.comparisons import compare_depths
from qdtune.report.conclusions import conclude
from qdtune.spec.configuration import Configuration
from qdtune.store.decisions import Schedule, schedule_of
from qdtune.store.looks import DECIDED, GIVEN_UP, LIVE
from qdtune.store.pairs import find_sides
from qdtune.store.pareto_table import aggregate
from qdtune.store.tables import rows_of_seeds
from tests.decided import AXES, Launches, noisy, sweep, table_of
from tests.schemas import HISTORY

QUESTIONS = ["depth", "activation", "front"]


def uneven(trial: Configuration, seed: int) -> float:
    """At 8 bits depth helps with little noise, at 1 bit with much."""
    effect, noise = (0.05, 0.0002) if trial.weight_bits == 8 else (0.03, 0.02)
    return noisy(effect, noise)(trial, seed)


def answers_of(launches: Launches) -> Answers:
    trials = table_of(launches.results)
    return answer(trials, HISTORY.empty_table(), aggregate(trials), schedule=schedule_of(launches.spec))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kill_after", [20, 26, 40, None])
def test_the_report_counts_as_the_queue_does(seed, kill_after):
    launches = Launches(sweep(replicate={"questions": QUESTIONS}), noisy(seed=seed))
    queue = launches.launch(random.Random(seed), kill_after=kill_after)
    found = answers_of(launches)
    endings = Counter(one.ending for one in (*found.depth, *found.activation, *found.front))
    assert endings == queue.count_decisions().counts
    for one in (*found.depth, *found.activation):
        assert one.n_seeds == 3 * one.look
        assert one.is_significant == (one.ending == DECIDED)
        if one.is_significant:
            assert not one.low <= 0 <= one.high
        else:
            assert one.low <= 0 <= one.high
        assert one.level >= 1 - (0.005, 0.010, 0.015, 0.020)[one.look - 1]


def test_a_decided_comparison_keeps_the_numbers_of_its_look():
    """Its sides get more seeds for others; they do not change the verdict."""
    launches = Launches(sweep(replicate={"questions": QUESTIONS}), uneven)
    launches.launch(random.Random(0), kill_after=20)
    first = {one.setting + str(one.names): one for one in answers_of(launches).depth}
    launches.launch(random.Random(0))
    last = {one.setting + str(one.names): one for one in answers_of(launches).depth}
    decided = [name for name, one in first.items() if one.ending == DECIDED]
    assert decided
    assert all(first[name] == last[name] for name in decided)


def test_the_level_is_that_of_the_look_and_no_fresh_test_is_made_on_top():
    """A family of one at p = 0.01: significant at 5 %, not at the 0.5 % of the first look."""

    def value(trial, seed):
        return 0.5 + (0.01 * (1, 1.2, 1.35)[seed] if trial.depth > 1 else 0)

    axes = {"depth": [1, 2], "weight_bits": [1]}
    launches = Launches(sweep(axes), value)
    launches.launch(random.Random(0), kill_after=2)
    trials = table_of(launches.results)
    (fresh,) = compare_depths(find_sides(trials), CurveBook(trials, HISTORY.empty_table()))
    (looked,) = answers_of(launches).depth
    assert 0.005 < fresh.p == looked.p < 0.05
    assert (fresh.verdict, looked.verdict, looked.ending) == ("helps", "undecided", LIVE)
    assert looked.level == pytest.approx(0.995)


def test_a_question_that_gets_no_seeds_is_tested_with_the_first_ones_at_alpha():
    launches = Launches(sweep(replicate={"questions": ["depth"], "alpha": 0.04}), noisy())
    launches.launch(random.Random(0))
    found = answers_of(launches)
    assert {one.ending for one in found.activation} == {""}
    assert {one.look for one in found.activation} == {None}
    assert {one.n_seeds for one in found.activation} == {3}
    assert max(one.level for one in found.activation) >= 1 - 0.04
    assert found.front == ()


def test_the_best_configurations_are_tested_with_the_first_seeds_alone():
    launches = Launches(sweep(), noisy())
    launches.launch(random.Random(0))
    trials, first = table_of(launches.results), Schedule((0, 1, 2), (3, 6), 0.05, ("depth",))
    few = rows_of_seeds(trials, first.seeds)
    found = answer(trials, HISTORY.empty_table(), aggregate(trials), schedule=first)
    same = answer(few, HISTORY.empty_table(), aggregate(trials), schedule=first)
    assert (found.best, found.by_bits, found.by_size) == (same.best, same.by_bits, same.by_size)
    fresh = answer(trials, HISTORY.empty_table(), aggregate(trials)).best
    assert found.best.row == fresh.row
    assert f"With {fresh.row['n_seeds']} seeds it is not significantly better" in fresh.sentence
    assert "With the first 3 seeds it is not significantly better" in found.best.sentence


def test_sentences_say_the_look():
    launches = Launches(sweep(replicate={"questions": QUESTIONS}), uneven)
    launches.launch(random.Random(0), kill_after=20)
    found = answers_of(launches)
    by_ending = {one.ending: one.sentence for one in (*found.depth, *found.activation) if one.look == 1}
    assert "3 seeds and 2 pairs, decided at look 1)." in by_ending[DECIDED]
    assert "Given up at look 1 with 3 seeds and 2 pairs, because 12 would not decide it" in by_ending[GIVEN_UP]
    assert "Not decided at look 1 with 3 seeds" in by_ending[LIVE]
    launches.launch(random.Random(0))
    found = answers_of(launches)
    assert any(" given up" in line for line in conclude("activation", found))


def test_an_unfinished_first_cohort_is_refused_and_counts():
    launches = Launches(sweep({"depth": [1, 2], "weight_bits": [4, 8]}), uneven)
    launches.fate = lambda trial: "failed" if (trial.depth, trial.weight_bits) == (2, 4) else None
    launches.launch(random.Random(0))
    failed, other = answers_of(launches).depth
    assert (failed.verdict, failed.obstacle) == ("refused", "unfinished")
    assert (other.ending, other.look) == (DECIDED, 1)
    assert other.level == pytest.approx(1 - 0.005 / 2)
    assert launches.queue().count_decisions().total == 2


def test_near_ties_have_sentences_too():
    launches = Launches(sweep(replicate={"questions": QUESTIONS}), noisy())
    launches.launch(random.Random(0), kill_after=20)
    before = answers_of(launches).front
    assert before
    assert all(one.sentence.endswith("do not tell them apart, and there are no others yet.") for one in before)
    launches.launch(random.Random(0))
    after = answers_of(launches).front
    assert [one.larger for one in after] == [one.larger for one in before]
    assert {one.n_seeds for one in after} <= {3, 6, 9}
    assert all(f" further seeds, look {one.look})" in one.sentence for one in after)
    assert {one.sentence.rpartition(". ")[2] for one in after if one.ending == GIVEN_UP} == {"Not significant."}


def test_near_ties_do_not_name_what_is_the_same_in_all_configurations():
    launches = Launches(sweep(AXES | {"weight_bits": [8]}, replicate={"questions": QUESTIONS}), noisy())
    launches.launch(random.Random(0))
    found = answers_of(launches).front
    assert found
    assert not any("w8" in one.sentence for one in found)
