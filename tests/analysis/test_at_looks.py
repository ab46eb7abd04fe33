"""Verdicts of a sweep that adds seeds until comparisons are decided: those of its looks, in numbers and in words."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from qdtune.analysis.answers import Answers, answer
from qdtune.analysis.behind import CurveBook
from qdtune.analysis.comparisons import compare_depths
from qdtune.report.conclusions import conclude, sum_up
from qdtune.spec.configuration import Configuration
from qdtune.store.decisions import Schedule, schedule_of
from qdtune.store.looks import DECIDED, GIVEN_UP, LIVE, SAME
from qdtune.store.pairs import find_sides
from qdtune.store.pareto_table import aggregate
from qdtune.store.tables import rows_of_seeds
from tests.decided import AXES, Launches, Value, noisy, sweep, table_of
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
    tested = [one for one in (*found.by_bits, *found.by_size) if not one.is_alone]
    assert tested
    for one in tested:
        assert re.search("With the first 3 seeds it is not|, tested with the first 3 seeds", one.sentence)
    assert "With the first 3 seeds it is " in found.best.short_sentence
    fresh = answer(trials, HISTORY.empty_table(), aggregate(trials)).best
    assert found.best.row == fresh.row
    assert f"With {fresh.row['n_seeds']} seeds it is not significantly better" in fresh.sentence
    assert "With the first 3 seeds it is not significantly better" in found.best.sentence


def test_a_reader_learns_once_why_the_best_is_tested_with_fewer_seeds_than_comparisons():
    launches = Launches(sweep(), noisy())
    launches.launch(random.Random(0))
    found = answers_of(launches)
    most = max(one.n_seeds for one in (*found.depth, *found.activation))
    told = (
        "The best configuration and the best depths are tested with the first 3 seeds, because results decide who "
        f"gets more. The comparisons use up to {most}."
    )
    assert most > 3
    assert conclude("depth", found).count(told) == sum_up(found).count(told) == 1
    (merged,) = (line for line in conclude("depth", found) if line.startswith("At 1 and 8 bits"))
    assert merged.startswith("At 1 and 8 bits with the first 3 seeds, no depth is significantly better")
    first = Launches(sweep(), noisy())
    first.launch(random.Random(0), kill_after=20)
    found = answers_of(first)
    assert not any("first 3 seeds" in line for line in [*conclude("depth", found), *sum_up(found)])


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


# --- with a margin


def alike(trial: Configuration, seed: int) -> float:
    """At 8 bits depth changes nothing, at 1 bit it helps; ReLU hurts a little at 8 bits."""
    effect = 0.05 if trial.weight_bits == 1 else 0.0
    slightly = -0.003 if trial.activation == "relu" and trial.weight_bits == 8 else 0.0
    return noisy(effect, noise=0.0005)(trial, seed) + slightly


@pytest.fixture(scope="module")
def with_margin() -> tuple[Launches, Answers]:
    launches = Launches(sweep(replicate={"questions": QUESTIONS, "same_within": 0.004}), alike)
    launches.launch(random.Random(0))
    return launches, answers_of(launches)


def test_what_is_the_same_within_the_margin_is_said_with_its_look(with_margin):
    launches, found = with_margin
    same = [one for one in found.depth if one.verdict == "same"]
    assert same
    for one in same:
        assert (one.ending, one.weight_bits, one.same_within, one.seeds_needed) == (SAME, 8, 0.004, None)
        assert -0.004 < one.low <= one.effect <= one.high < 0.004
        assert one.p_same <= (1 - one.level) / 2
        assert " is the same as depth 1 within 0.4 points: " in one.sentence
        assert f"{one.n_seeds} seeds and 2 pairs, found at look {one.look})." in one.sentence
    tally = launches.queue().count_decisions()
    endings = Counter(one.ending for one in (*found.depth, *found.activation, *found.front))
    assert endings == tally.counts
    assert f"{endings[DECIDED]} of {tally.total} comparisons decided, {endings[SAME]} the same, " in str(tally)


def test_a_significant_difference_within_the_margin_is_said_as_a_difference_alone(with_margin):
    _, found = with_margin
    (small,) = (one for one in found.activation if one.weight_bits == 8 and one.depth == 2)
    assert (small.verdict, small.ending) == ("hurts", DECIDED)
    assert -0.004 < small.effect < small.high < 0
    assert "the same" not in small.sentence


def differing(*first: float, later: float) -> Value:
    """The larger side differs by `first` with the first seeds, and by `later`, up or down in turn, with others."""

    def value(trial: Configuration, seed: int) -> float:
        here = first[seed] if seed < len(first) else later * (-1) ** seed
        return 0.9 + here * (trial.depth == 2 or trial.weight_bits == 8)

    return value


def test_what_is_the_same_gets_no_more_seeds():
    spec = sweep({"depth": [1, 2], "weight_bits": [1]}, replicate={"same_within": 0.004})
    launches = Launches(spec, differing(0.001, -0.001, 0.0, later=0.001))
    launches.launch(random.Random(0))
    (one,) = answers_of(launches).depth
    assert (one.verdict, one.n_seeds) == ("same", 6)
    assert launches.further == 2 * 3


def test_conclusions_tell_what_is_the_same(with_margin):
    _, found = with_margin
    lines = conclude("depth", found)
    assert any("the same as depth 1 within 0.4 points" in line for line in lines)


def test_near_ties_can_be_the_same_by_the_further_seeds():
    """The first seeds favour 8 bits, so that both are on the front; the others show no difference."""
    spec = sweep({"weight_bits": [1, 8]}, replicate={"questions": ["front"], "same_within": 0.01})
    launches = Launches(spec, differing(0.004, -0.001, 0.002, later=0.0002))
    launches.launch(random.Random(0))
    (tie,) = answers_of(launches).front
    assert (tie.ending, tie.same_within, tie.n_seeds) == (SAME, 0.01, 3)
    assert -0.01 < tie.low < tie.high < 0.01
    assert " is the same as w1 (366 bytes) within 1 point: -0.01 points (" in tie.sentence


def test_one_first_seed_tells_no_best_configuration_however_many_others_have():
    launches = Launches(sweep({"depth": [1, 2], "weight_bits": [1, 8]}, seeds=[0]), noisy())
    launches.launch(random.Random(0))
    found = answers_of(launches)
    assert found.best.row["n_seeds"] > 1
    assert found.best.p_best is None
    assert "With the first seed no difference can be tested." in found.best.sentence
    assert "significant" not in found.best.short_sentence
    assert all("at least 2 seeds" in one.sentence for one in found.by_bits)
