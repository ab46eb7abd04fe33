"""`replicate: {until: decided}` in a sweep file: what it accepts, its defaults, its canonical text."""

from __future__ import annotations

import pytest

from qdtune.messages import SpecError
from qdtune.spec.choices import QUESTION_AXES
from qdtune.spec.replicate import questions_of
from qdtune.spec.sweep_file import Spec, loads
from qdtune.store.questions import QUESTIONS

TEXT = b"""
version: 1
name: a
parameters:
  depth: {values: [1, 2]}
  weight_bits: {values: [1, 2]}
seeds: [0, 1, 2]
data: {dataset: digits, val_size: 100}
"""


def read(*overrides: str) -> Spec:
    return loads(TEXT, "a.yaml", overrides)


def told(*overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(*overrides)
    return [problem.what for problem in caught.value.problems]


def test_defaults_are_four_looks_and_the_axes_that_vary():
    spec = read("replicate={until: decided}")
    assert spec.looks == (3, 6, 9, 12)
    assert questions_of(spec) == ("depth",)
    assert (spec.replicate.alpha, spec.replicate.same_within, spec.replicate.budget) == (0.05, None, None)
    assert read("replicate={until: decided}", "seeds=[0, 1, 2, 3, 4]").looks == (5, 10, 15, 20)


def test_other_ways_have_no_looks():
    assert read().looks is None
    assert read("replicate={front: 5}").looks is None
    assert questions_of(read("replicate={front: 5}")) == ()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("{front: 5}", "replicate: {front: 5, within: 0.005}"),
        ("{until: decided}", "replicate: {until: decided, alpha: 0.05}"),
        ("{until: decided, budget: 60}", "replicate: {until: decided, alpha: 0.05, budget: 60}"),
        ("{until: decided, same_within: 0.003}", "replicate: {until: decided, alpha: 0.05, same_within: 0.003}"),
    ],
)
def test_canonical_text_has_the_keys_of_its_way_alone(given, text):
    spec = read(f"replicate={given}")
    assert text in spec.to_yaml()
    assert loads(spec.to_yaml().encode(), "b.yaml") == spec


def test_budgets():
    assert read("replicate={until: decided, budget: 60}").replicate.trainings == 60
    timed = read("replicate={until: decided, budget: {seconds: 90}}")
    assert (timed.replicate.trainings, timed.replicate.seconds) == (None, 90.0)
    assert loads(timed.to_yaml().encode(), "b.yaml") == timed


BUDGET = "(a number of trainings, one per configuration and seed; or {seconds: N}; or null)"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("{until: never}", "unknown 'never' (decided)"),
        ("{until: decided, front: 5}", "has both 'front' and 'until' (one of them)"),
        ("{until: decided, within: 0.1}", "within is a key of front"),
        ("{front: 5, looks: [3, 6]}", "looks is a key of until: decided"),
        ("{front: 5, same_within: 0.1}", "same_within is a key of until: decided"),
        ("{until: decided, same_within: 0.0}", "0 is not allowed: no two means are equal (above 0, or null)"),
        ("{until: decided, same_within: 1.5}", "1.5 is not allowed (an accuracy, 0 to 1)"),
        ("{until: decided, budget: 0}", f"0 is not allowed {BUDGET}"),
        ("{until: decided, budget: 1.5}", f"1.5 is not allowed {BUDGET}"),
        ("{until: decided, budget: true}", f"true is not allowed {BUDGET}"),
        ("{until: decided, budget: {hours: 1}}", f"a mapping is not allowed {BUDGET}"),
        ("{until: decided, budget: {seconds: 0}}", "seconds: 0 is not allowed (a number above 0)"),
        (
            "{until: decided, looks: [5, 10]}",
            "[5, 10] must begin with 3, the number of seeds, and have two looks or more (such as [3, 6, 9, 12])",
        ),
        (
            "{until: decided, looks: [3]}",
            "[3] must begin with 3, the number of seeds, and have two looks or more (such as [3, 6, 9, 12])",
        ),
        (
            "{until: decided, looks: [3, 7]}",
            "[3, 7] must rise in multiples of 3, the number of seeds trained together (such as [3, 6, 9, 12])",
        ),
        (
            "{until: decided, looks: [3, 9, 6]}",
            "[3, 9, 6] must rise in multiples of 3, the number of seeds trained together (such as [3, 6, 9, 12])",
        ),
        ("{until: decided, questions: [bytes]}", "unknown 'bytes' (depth, activation, front)"),
        (
            "{until: decided, questions: [activation]}",
            "activation has one value in this sweep, so there is nothing to compare "
            "(leave it out, or give parameters.activation more values)",
        ),
        ("{until: decided, alpha: 1}", "1 is not allowed (above 0, below 1)"),
    ],
)
def test_mistakes_are_told_in_one_line(given, line):
    assert told(f"replicate={given}") == [line]


def test_a_sweep_without_questions_is_refused():
    more = ("parameters.depth={value: 1}", "replicate={until: decided}")
    assert told(*more) == ["no question: none of depth, activation varies (write questions: [front])"]
    assert questions_of(read(more[0], "replicate={until: decided, questions: [front]}")) == ("front",)


def test_a_search_that_repeats_configurations_is_refused():
    more = ("method=tpe", "run_cap=4", "duplicates=replicate", "replicate={until: decided}")
    assert told(*more) == [
        "has no use with replicate.until, which decides itself who gets more seeds (write duplicates: resample)"
    ]


def test_each_axis_that_a_file_may_ask_about_has_a_question():
    assert tuple(QUESTIONS) == QUESTION_AXES
