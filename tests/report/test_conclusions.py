"""The answers of a run in a few sentences: grouped, significant ones first, refusals counted by their reason."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from qdtune.analysis.answers import Answers
from qdtune.analysis.best import Best
from qdtune.analysis.best_depth import BestDepth
from qdtune.analysis.comparison import Comparison
from qdtune.report.conclusions import (
    advise_refusals,
    conclude,
    describe_best_depths,
    describe_correction,
    describe_counts,
    describe_refusals,
    describe_verdicts,
    sum_up,
)
from qdtune.report.groups import (
    MAX_GROUPS,
    behind_sentences,
    describe_bits_list,
    same_sentences,
    significant_sentences,
)
from qdtune.report.words import trouble
from qdtune.spec.objectives import MACS, SIZE_BYTES
from tests.decided import Launches, noisy, sweep, table_of

BASE = Comparison(
    "activation",
    "relu",
    "identity",
    weight_bits=2,
    depth=2,
    activation="relu",
    scale="lsq",
    factor_init="isometry",
)
TESTED = replace(BASE, n_seeds=5, n_pairs=1, level=0.95, p=0.01)
HELPS = replace(TESTED, verdict="helps", effect=0.02, low=0.01, high=0.03)
HURTS = replace(TESTED, verdict="hurts", effect=-0.02, low=-0.03, high=-0.01)
UNDECIDED = replace(TESTED, verdict="undecided", effect=0.01, low=-0.01, high=0.03, seeds_needed=9)
NOBODY = Best(None, None)
ROW = {"depth": 2, "weight_bits": 2, "activation": "relu", "size_bytes": 900, "n_seeds": 5, "test_accuracy": 0.9}
ROW |= {"val_accuracy": 0.91, "val_accuracy_low": 0.9, "val_accuracy_high": 0.92}
BEST = Best(None, ROW, 0.99, (), ("depth",), 3)


def at(comparison, *bits, **changes):
    return [replace(comparison, weight_bits=n, **changes) for n in bits]


def asked(*found, depth=(), best=NOBODY, by_bits=()):
    return Answers(depth, found, best, by_bits, (), ())


def best_depth(bits, depth, p):
    spent = {"size_bytes": 900, "macs": 50}
    return BestDepth(bits, None, depth, 0.9, {1: 0.0, 2: 0.0} | {depth: 1.0}, p, spent, (), 5, {})


def test_significant_comparisons_of_one_pair_of_values_are_one_sentence():
    found = [*at(HELPS, 1, 2), *at(UNDECIDED, 4, 8), *at(replace(HELPS, effect=0.005), 3)]
    assert conclude("activation", asked(*found)) == [
        "relu is significantly better than identity in 3 of 5 comparisons (at 1, 2 and 3 bits), by 0.5 to 2.0 "
        "points.",
        "2 comparisons are not significant with 5 seeds. The closest would need about 9.",
    ]
    assert significant_sentences(at(HELPS, 1, 2, 32))[0].endswith(
        "in all 3 comparisons (at 1 and 2 bits and with float weights), by 2.0 points."
    )


SAME = replace(TESTED, verdict="same", effect=0.001, low=-0.002, high=0.003, same_within=0.004, ending="same", look=2)


def test_what_is_the_same_is_one_sentence_after_the_significant_ones():
    found = [*at(HELPS, 1, 2, look=1), *at(SAME, 4, 8), *at(SAME, 3, look=3, n_seeds=9), *at(UNDECIDED, 5)]
    lines = conclude("activation", asked(*found))
    assert lines[:2] == [
        "relu is significantly better than identity in 2 of 6 comparisons (at 1 and 2 bits; look 1, 5 seeds), by 2.0 "
        "points.",
        "relu is the same as identity within 0.4 points in 3 of 6 comparisons (at 3, 4 and 8 bits; looks 2 and 3, 5 "
        "and 9 seeds).",
    ]
    assert "relu against identity" in lines[2]
    assert describe_verdicts(found) == "6 comparisons: 2 help, 3 the same, 1 undecided"
    assert same_sentences([SAME]) == [
        "At 2 bits and depth 2, relu is the same as identity within 0.4 points: +0.1 points (95 % interval -0.2 to "
        "+0.3, 5 seeds, found at look 2)."
    ]
    names = ["relu", "gelu", "tanh", "hardtanh"]
    assert same_sentences([replace(SAME, value=name) for name in names])[-1] == (
        "1 more pair of values, within 0.4 points: hardtanh is the same as identity (at 2 bits; look 2, 5 seeds)."
    )


def test_better_and_worse_are_not_mixed_and_a_single_result_is_said_in_full():
    lines = significant_sentences([*at(HELPS, 8), *at(HURTS, 1, 2)])
    assert lines == [
        "relu is significantly worse than identity in 2 of 3 comparisons (at 1 and 2 bits), by 2.0 points.",
        "At 8 bits and depth 2, relu is significantly better than identity: +2.0 points (95 % interval +1.0 to +3.0, "
        "5 seeds).",
    ]


def test_many_results_are_counted():
    names = ["relu", "gelu", "tanh", "hardtanh", "leaky_relu"]
    found = [replace(HELPS, value=name) for name in names]
    lines = significant_sentences([*found, *at(replace(HURTS, value="hardtanh"), 1), *at(UNDECIDED, 4)])
    assert len(lines) == MAX_GROUPS + 1
    assert lines[-1] == (
        "3 more results are significant: hardtanh is better than identity (at 2 bits); leaky_relu is better than "
        "identity (at 2 bits); hardtanh is worse than identity (at 1 bit)."
    )
    assert significant_sentences(found[:4])[-1] == (
        "1 more result is significant: hardtanh is better than identity (at 2 bits)."
    )
    behind = [replace(BASE, verdict="behind", value=name, behind=name) for name in names]
    assert behind_sentences(behind)[MAX_GROUPS:] == [
        "In 2 more comparisons a side is behind: hardtanh is behind identity (at 2 bits); leaky_relu is behind "
        "identity (at 2 bits)."
    ]


def test_the_correction_is_told_with_what_it_counts():
    found = [*at(HELPS, 1, 2), UNDECIDED, replace(UNDECIDED, p=None), BASE]
    assert describe_correction(found, None) == "Corrected for 3 tests (Holm)."
    assert describe_correction(found, 900) == (
        "Corrected for 3 tests within the budget (Holm). Choose a budget before you look at results, because "
        "verdicts depend on it."
    )
    assert describe_correction([HELPS], None) == describe_correction([BASE], 900) == ""
    looked = [replace(HELPS, look=1)] * 2
    assert describe_correction(looked, None) == ""
    assert describe_correction(looked, 900).startswith("Choose a budget before you look")
    assert describe_correction([HELPS], 900).startswith("Corrected for 1 test within the budget (Holm). ")


def test_a_setting_is_said_only_if_it_varies():
    assert "(lsq" not in conclude("activation", asked(HELPS))[0]
    lines = conclude("activation", asked(HELPS, replace(HELPS, scale="minmax")))
    assert [line.split(",")[0] for line in lines] == ["At 2 bits and depth 2 (lsq)", "At 2 bits and depth 2 (minmax)"]


@pytest.mark.parametrize(
    ("axis", "value", "words"),
    [("layer_act_bits", "8-2", "inputs of 8-2 bits"), ("first_bits", 8, "first layer 8 bits")],
)
def test_a_value_beside_null_is_said(axis, value, words):
    """Null is a value of these axes; of others it is the mark of an axis without effect."""
    other = replace(HELPS, **{axis: value})
    lines = conclude("activation", asked(HELPS, other))
    assert [f"({words})" in line for line in lines] == [False, True]
    assert significant_sentences([*at(HELPS, 1, 2, 4), *at(replace(other, verdict="hurts"), 1, 2)])[1].startswith(
        f"relu is significantly worse than identity in 2 of 5 comparisons (at 1 and 2 bits, {words})"
    )
    assert (
        f"(at 1, 2 and 4 bits, {axis} null)"
        in significant_sentences([*at(HELPS, 1, 2, 4), *at(replace(other, verdict="hurts"), 1, 2)])[0]
    )


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            at(replace(UNDECIDED, seeds_needed=101), 1, 2, 3),
            "None of 3 comparisons is significant with 5 seeds. The closest would need more than 100.",
        ),
        (
            [*at(UNDECIDED, 1, 2), *at(replace(UNDECIDED, n_seeds=3, seeds_needed=6), 3)],
            "None of 3 comparisons is significant with 3 to 5 seeds. The closest would need about 6.",
        ),
        (
            at(replace(UNDECIDED, n_seeds=1, seeds_needed=None), 1, 2, 3),
            "3 comparisons cannot be tested: a test needs at least 2 seeds.",
        ),
        (
            [UNDECIDED],
            "At 2 bits and depth 2, relu against identity: +1.0 points (95 % interval -1.0 to +3.0). Not significant "
            "with 5 seeds; about 9 would be needed.",
        ),
    ],
)
def test_what_is_not_significant_is_counted_with_the_seeds_it_would_need(found, sentence):
    assert conclude("activation", asked(*found)) == [sentence]


def test_values_that_vary_in_the_sweep_are_named_with_a_group_that_has_only_some_of_them():
    worse = at(HURTS, 1, 2, axis="depth", value=3, baseline=1, activation="identity")
    other = at(UNDECIDED, 1, 2, axis="depth", value=3, baseline=1, activation="relu")
    better = at(HELPS, 1, axis="depth", value=3, baseline=1, activation="relu", scale="minmax")
    assert significant_sentences([*worse, *other, *better]) == [
        "Depth 3 is significantly worse than depth 1 in 2 of 5 comparisons (at 1 and 2 bits, lsq, identity), by 2.0 "
        "points.",
        "At 1 bit (minmax, relu), depth 3 is significantly better than depth 1: +2.0 points (95 % interval +1.0 to "
        "+3.0, 5 seeds).",
    ]
    assert significant_sentences(
        [*worse, *at(UNDECIDED, 4, axis="depth", value=3, baseline=1, activation="identity")]
    )[0].endswith("in 2 of 3 comparisons (at 1 and 2 bits), by 2.0 points.")


def test_best_depths_of_several_bits_are_told_with_what_else_varies():
    settings = [
        {"activation": name, "qat_lr": f"qat_lr {n}"} for n, name in enumerate(["relu", "gelu", "relu", "relu"])
    ]
    by_bits = tuple(replace(best_depth(n + 1, 2, 0.01), setting=one) for n, one in enumerate(settings))
    (line,) = conclude("depth", asked(by_bits=by_bits))
    assert line == (
        "Depth 2 (relu or gelu, qat_lr 0 or qat_lr 1 or qat_lr 2 or 1 other) is significantly better than every "
        "other depth at 1, 2, 3 and 4 bits."
    )


@pytest.mark.parametrize(
    ("larger", "end"),
    [
        ((), "at 1, 2 and 4 bits."),
        ((2, 4), "At 2 and 4 bits it is more than 5 % larger there than the best of every other depth."),
        ((1, 2, 4), "It is more than 5 % larger there than the best of every other depth."),
    ],
)
def test_where_a_best_depth_is_larger_than_all_others_is_told_with_it(larger, end):
    more = dict.fromkeys(larger, (SIZE_BYTES,))
    by_bits = tuple(replace(best_depth(bits, 1, 0.01), more=more.get(bits, ())) for bits in (1, 2, 4))
    (line,) = conclude("depth", asked(by_bits=by_bits))
    assert line.startswith("Depth 1 is significantly better than every other depth at 1, 2 and 4 bits.")
    assert line.endswith(end)


def test_what_else_a_best_depth_has_more_of_is_named():
    costs, both = {"costs": (MACS, SIZE_BYTES)}, (MACS, SIZE_BYTES)
    by_bits = [replace(best_depth(bits, 1, 0.01), more=more, **costs) for bits, more in ((1, both), (2, (MACS,)))]
    (line,) = conclude("depth", asked(by_bits=tuple(by_bits)))
    assert line == (
        "Depth 1 is significantly better than every other depth at 1 and 2 bits. At 1 bit it has more than 5 % more "
        "MACs and bytes there than the best of every other depth. At 2 bits it has more than 5 % more MACs there "
        "than the best of every other depth."
    )
    assert " at 50 MACs and 900 bytes (" in by_bits[1].sentence
    assert by_bits[1].sentence.endswith(" It has more MACs than the best configuration of every other depth.")


@pytest.mark.parametrize(
    ("cost", "within", "sizes"), [(SIZE_BYTES, "N bytes", "1 size"), (MACS, "N MACs", "1 number of MACs")]
)
def test_two_questions_about_the_best_depth_name_the_cost(cost, within, sizes):
    found = replace(best_depth(2, 1, 0.01), costs=(cost,))
    answers = replace(asked(by_bits=(found,)), by_size=(replace(found, weight_bits=None, budget=900),))
    *_, line = describe_best_depths(answers)
    assert line.startswith(f'The best depth "at N bits" and the best "within {within}" are two questions')
    assert f"(Holm, for 1 bit width and for {sizes})" in line


def test_best_depths_are_grouped_by_depth_and_open_bits_come_last():
    by_bits = (best_depth(1, 2, 0.01), best_depth(2, 2, 0.02), best_depth(4, 1, 0.7), best_depth(8, 1, 0.9))
    lines = conclude("depth", asked(best=BEST, by_bits=by_bits, depth=tuple(at(HURTS, 1, 2, axis="depth", value=2))))
    assert lines[0] == BEST.sentence
    assert lines[1] == "Depth 2 is significantly better than every other depth at 1 and 2 bits."
    assert "worse" in lines[2]
    assert lines[-1] == (
        "At 4 and 8 bits, no depth is significantly better than every other depth. Depth 1 has the best mean at 4 "
        "and 8 bits."
    )
    (_, alone) = conclude("depth", asked(best=BEST, by_bits=by_bits[3:]))
    assert alone == by_bits[3].sentence
    unknown = replace(by_bits[0], p=None)  # a single depth, or a single seed: there is nothing to conclude
    assert conclude("depth", asked(best=BEST, by_bits=(unknown,))) == [BEST.sentence]


def alone(bits, **ended):
    ended = {int(depth.removeprefix("d")): how for depth, how in ended.items()}
    return BestDepth(bits, None, 1, 0.9, {1: 1.0}, None, {"size_bytes": 900}, (), 5, ended)


def test_bits_at_which_one_depth_alone_was_trained_to_its_end_are_said():
    by_bits = (
        alone(1, d2="stopped early", d3="stopped early", d4="stopped early"),
        alone(2, d2="stopped early", d3="stopped early", d4="stopped early"),
        best_depth(3, 2, 0.7),
        best_depth(4, 2, 0.7),
        alone(8, d2="failed", d4="stopped early", d3="failed"),
        alone(32),  # no other depth was tried
    )
    assert conclude("depth", asked(by_bits=by_bits)) == [
        "At 3 and 4 bits, no depth is significantly better than every other depth. Depth 2 has the best mean at 3 "
        "and 4 bits.",
        "At 1 and 2 bits, only depth 1 was trained to its end: depths 2 to 4 were stopped early.",
        "At 8 bits, only depth 1 was trained to its end: depths 2 and 3 failed; depth 4 was stopped early.",
    ]
    assert by_bits[0].sentence == (
        "At 1 bit, only depth 1 was trained to its end (90.0 %): depths 2 to 4 were stopped early."
    )


def test_refusals_are_one_line_with_a_count_for_each_reason():
    sizes, stopped = replace(BASE, obstacle="size"), replace(BASE, obstacle="pruned")
    assert describe_refusals("depth", [sizes, *at(stopped, 1, 2), HELPS]) == (
        "3 refused: 2 because a side was stopped early, 1 because sizes differ by more than 5 %"
    )
    assert describe_refusals("depth", [sizes]) == "1 refused because sizes differ by more than 5 %"
    assert describe_refusals("depth", [HELPS]) == ""
    assert conclude("activation", asked(sizes, stopped)) == []
    apart = replace(BASE, obstacle="confounded", confounders=("qat_lr",))
    assert describe_refusals("depth", [apart]) == "1 refused because no pair differs in depth alone"
    assert advise_refusals("depth", [apart, stopped, sizes]) == [
        "With `early_terminate: {type: none}` no side is stopped early.",
        "A grid over `depth` has comparable pairs if it holds fixed: `qat_lr`.",
    ]
    assert describe_verdicts([sizes, HELPS, HURTS]) == "3 comparisons: 1 helps, 1 hurts, 1 refused"
    assert describe_counts("depth", [sizes, HELPS, HURTS]) == (
        "3 comparisons: 1 helps, 1 hurts, 1 refused because sizes differ by more than 5 %"
    )
    assert describe_counts("depth", [sizes, stopped]) == (
        "2 comparisons: 2 refused (1 because sizes differ by more than 5 %, 1 because a side was stopped early)"
    )
    assert describe_counts("depth", [HELPS]) == "1 comparison: 1 helps"
    assert describe_verdicts([HELPS, HURTS, HELPS, HURTS]) == "4 comparisons: 2 help, 2 hurt"


def test_a_launch_ends_with_the_best_and_every_question_in_sum():
    found = asked(
        *at(HELPS, 1, 2, 3), UNDECIDED, best=BEST, depth=(replace(HURTS, axis="depth", value=2, baseline=1),)
    )
    assert sum_up(found) == [
        "The best configuration is depth 2, 2 bits (900 bytes): 91.0 % on the validation set. It is significantly "
        "better than every other configuration.",
        "Depth, 1 comparison: 1 hurts.",
        "Activation, 4 comparisons: 3 help, 1 undecided.",
    ]
    assert sum_up(asked(UNDECIDED)) == ["Activation, 1 comparison: 1 undecided."]
    some, same = replace(BEST, rivals=(ROW,)), replace(BEST, rivals=(ROW,) * 3)
    assert [sum_up(asked(best=best))[0].partition(". ")[2] for best in (some, same, replace(BEST, n_others=0))] == [
        "It is significantly better than 2 of 3 others.",
        "It is not significantly better than any other configuration.",
        "",
    ]


@pytest.mark.parametrize(
    ("bits", "text"),
    [([1], "at 1 bit"), ([2], "at 2 bits"), ([1, 2, 8], "at 1, 2 and 8 bits"), ([32], "with float weights")],
)
def test_bits_are_listed_as_they_are_said(bits, text):
    assert describe_bits_list(bits) == text


def test_further_seeds_that_failed_are_told():
    launches = Launches(
        sweep({"depth": [1, 2], "weight_bits": [1, 8]}), noisy(), fate=lambda t: "failed" if 3 in t.seeds else None
    )
    launches.launch(random.Random(0))
    run = SimpleNamespace(states={"ok": 4}, trials=table_of(launches.results))
    assert trouble(run) == ["further seeds of 4 configurations ended as failed (see the column `error`)"]
