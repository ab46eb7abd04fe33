"""Verdicts on tables whose truth is known, because it was planted; and on what was recorded."""

import math
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qdtune.analysis.answers import answer
from qdtune.analysis.behind import CurveBook
from qdtune.analysis.best_depth import BestDepth
from qdtune.analysis.comparisons import compare_activations, compare_depths
from qdtune.report.conclusions import conclude
from qdtune.spec.metric_text import format_differences
from qdtune.spec.objectives import MACS, SIZE_BYTES
from qdtune.spec.sweep_file import load
from qdtune.spec.tasks import ACCURACY
from qdtune.store.pairs import find_sides
from qdtune.store.pareto_table import aggregate
from qdtune.store.parquet import complete_table
from qdtune.store.questions import SETTING
from qdtune.store.seed_tests import FAMILY_ALPHA
from tests.schemas import HISTORY, TRIALS

DATA = Path(__file__).parents[1] / "data"
NOTHING = HISTORY.empty_table()
NO_CURVES = CurveBook(TRIALS.empty_table(), NOTHING)
SPEC = load(Path(__file__).parents[2] / "tests" / "data" / "recorded.yaml").resolve("mnist")
COMMON = {
    "activation": "identity",
    "act_bits": None,
    "scale": "absmean",
    "factor_init": "orthogonal",
    "hidden": "24",
    "warmup_lr": 0.1,
    "qat_lr": 0.01,
    "dataset": "mnist",
    "model": "mlp",
    "state": "ok",
    "size_bytes": 1000,
    "epochs": 15,
    "inner_dims": [[], []],
}


def configuration(depth, bits, accuracies, **others):
    """A row per seed from 0 on; None leaves a seed out."""
    name = f"{depth}-{bits}-" + "-".join(map(str, others.values()))
    row = COMMON | {"trial_id": name, "depth": depth, "weight_bits": bits} | others
    accuracies = [a if a is None else float(a) for a in accuracies]
    return [
        row | {"seed": s, "val_accuracy": a, "test_accuracy": a} for s, a in enumerate(accuracies) if a is not None
    ]


def table(*configurations):
    return pa.Table.from_pylist([row for rows in configurations for row in rows], schema=TRIALS)


def noise(seed, n=3, std=0.005):
    return np.random.default_rng(seed).normal(0, std, n)


def one(trials, history=NOTHING, ask=compare_depths):
    (found,) = ask(find_sides(trials), CurveBook(trials, history))
    return found


# --- the three verdicts


def test_a_planted_effect_is_found_on_either_side():
    low, high = 0.9 + noise(0), 0.95 + noise(1)
    helps = one(table(configuration(1, 2, low), configuration(2, 2, high)))
    assert (helps.verdict, helps.n_seeds, helps.n_pairs, helps.axis) == ("helps", 3, 1, "depth")
    assert helps.effect == pytest.approx((high - low).mean())
    assert 0 < helps.low < helps.effect < helps.high
    assert helps.sentence.startswith(
        "At 2 bits (absmean, orthogonal, identity), depth 2 is significantly better than depth 1: +5."
    )
    hurts = one(table(configuration(1, 2, high), configuration(2, 2, low)))
    assert (hurts.verdict, hurts.effect) == ("hurts", pytest.approx(-helps.effect))
    assert "depth 2 is significantly worse than depth 1: -5." in hurts.sentence


def test_no_effect_is_undecided_with_the_seeds_that_would_decide_it():
    found = one(table(configuration(1, 2, [0.9, 0.91, 0.92]), configuration(2, 2, [0.93, 0.91, 0.925])))
    assert (found.verdict, found.level) == ("undecided", 0.95)
    assert found.low < 0 < found.high
    assert found.sentence == (
        "At 2 bits (absmean, orthogonal, identity), depth 2 against depth 1: +1.2 points "
        "(95 % interval -2.8 to +5.2). Not significant with 3 seeds; about 10 would be needed."
    )


def test_an_interval_ends_where_differences_do():
    found = one(table(configuration(1, 2, [0.1, 0.9]), configuration(2, 2, [0.9, 0.2])))
    assert (found.low, found.high, found.verdict) == (-1, 1, "undecided")
    assert "points (too few seeds for an interval). Not significant with 2 seeds" in found.sentence


def test_what_differs_in_another_axis_too_is_refused_by_its_name():
    there, here = configuration(1, 2, [0.8] * 3, scale="minmax"), configuration(2, 2, [0.9, 0.91, 0.93])
    found = one(table(there, here))
    assert (found.verdict, found.effect, found.low) == ("refused", None, None)
    assert found.reason == "no pair differs in depth alone; scale (absmean here, minmax there) differs too"
    elsewhere = configuration(1, 2, [0.8] * 3, dataset="digits", qat_lr=0.123456789)
    found = one(table(elsewhere, here))
    assert "qat_lr (0.01 here, 0.123457 there), dataset (mnist here, digits there) differ too" in found.reason


def test_the_question_is_asked_for_each_scale_and_never_pooled():
    rows = []
    for scale, effect in (("minmax", -0.1), ("absmean", 0.03)):
        rows += [configuration(1, 2, 0.85 + noise(1), scale=scale)]
        rows += [configuration(2, 2, 0.85 + effect + noise(2), scale=scale)]
    found = compare_depths(find_sides(table(*rows)), NO_CURVES)
    assert [(c.scale, c.verdict) for c in found] == [("absmean", "helps"), ("minmax", "hurts")]
    assert "minmax at 2 bits rounds about 95 %" in found[1].sentence
    assert not any("minmax" in flag for flag in found[0].flags)


def test_pairs_are_averaged_seed_by_seed_before_anything_is_tested():
    chance = np.random.default_rng(4)
    base, deep = chance.normal(0.9, 0.01, (4, 3)), chance.normal(0.92, 0.01, (4, 3))
    rates = [0.001, 0.01, 0.1, 1.0]
    rows = [configuration(1, 4, a, qat_lr=lr) for a, lr in zip(base, rates, strict=True)]
    rows += [configuration(2, 4, a, qat_lr=lr) for a, lr in zip(deep, rates, strict=True)]
    rows += [configuration(2, 4, [0.1] * 3, qat_lr=7.0)]  # has no partner
    found = one(table(*rows))
    by_seed = (deep - base).mean(axis=0)
    assert (found.n_pairs, found.n_seeds, found.effect) == (4, 3, pytest.approx(by_seed.mean()))
    assert found.high - found.low == pytest.approx(2 * 4.30265 * by_seed.std(ddof=1) / math.sqrt(3), rel=1e-5)
    assert found.sentence.endswith(", 3 seeds and 4 pairs).")


def test_intervals_exclude_zero_exactly_where_the_verdict_is_decided():
    chance = np.random.default_rng(8)
    verdicts = set()
    for _ in range(30):
        effects = chance.choice([0, 0.01, 0.02, 0.05], 4)
        rows = [configuration(1, b, chance.normal(0.9, 0.004, 4)) for b in (1, 2, 3, 4)]
        rows += [
            configuration(2, b, chance.normal(0.9 + e, 0.004, 4)) for b, e in zip((1, 2, 3, 4), effects, strict=True)
        ]
        for c in compare_depths(find_sides(table(*rows)), NO_CURVES):
            verdicts.add(c.verdict)
            assert (c.low > 0 or c.high < 0) == (c.verdict in ("helps", "hurts"))
            assert (c.seeds_needed is None) == (c.verdict != "undecided")
            assert 1 - FAMILY_ALPHA <= c.level <= 1 - FAMILY_ALPHA / 4
    assert {"helps", "undecided"} <= verdicts


def test_the_answers_are_the_same_in_any_order_of_the_rows():
    trials, history = (pq.read_table(DATA / f"fashion_mnist_{kind}.parquet") for kind in ("trials", "history"))
    trials = complete_table(trials, TRIALS)
    expected = answer(trials, history, aggregate(trials), 9000)
    for seed in (0, 1):
        order = random.Random(seed).sample(range(len(trials)), len(trials))
        shuffled = trials.take(order)
        assert answer(shuffled, history, aggregate(shuffled), 9000) == expected


def null_sweep(chance, effect=0.0):
    """Depths 1, 2, 3 at two numbers of bits, three seeds that shift all configurations alike, and Gaussian noise."""
    axes = list(product((1, 2, 3), (1, 4), (0, 1, 2)))
    rows = len(axes)
    depth, bits, seed = (np.array(column, dtype=np.int32) for column in zip(*axes, strict=True))
    accuracy = 0.9 + chance.normal(0, 0.01, 3)[seed] + effect * (depth == 2) + chance.normal(0, 0.004, rows)
    columns = {name: pa.array([value] * rows, TRIALS.field(name).type) for name, value in COMMON.items()}
    own = {"depth": depth, "weight_bits": bits, "seed": seed.astype(np.int64), "val_accuracy": accuracy}
    names = pa.array([f"{d}-{b}" for d, b in zip(depth, bits, strict=True)])
    return pa.table(columns | {name: pa.array(x) for name, x in own.items()} | {"trial_id": names})


def test_no_more_than_a_twentieth_of_null_sweeps_gets_any_verdict():
    chance = np.random.default_rng(11)
    sweeps = 200
    wrong = sum(
        any(c.verdict in ("helps", "hurts") for c in compare_depths(find_sides(null_sweep(chance)), NO_CURVES))
        for _ in range(sweeps)
    )
    assert wrong / sweeps <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps)


def test_a_large_effect_is_nearly_always_found():
    chance = np.random.default_rng(12)
    found = [compare_depths(find_sides(null_sweep(chance, 0.2)), NO_CURVES) for _ in range(30)]
    assert np.mean([c.verdict == "helps" for family in found for c in family if c.value == 2]) > 0.9


# --- which configurations make a pair


def test_depth_one_is_the_baseline_whatever_its_activation_says():
    rows = [configuration(1, 2, 0.8 + noise(0), activation="relu"), configuration(2, 2, 0.9 + noise(1))]
    assert one(table(*rows)).verdict == "helps"
    twins = [*rows, configuration(1, 2, [0.8], activation="tanh")]  # another name of the same network, one seed of it
    assert one(table(*twins)).n_seeds == 3


def test_chains_are_asked_by_what_is_between_their_factors():
    base = configuration(1, 2, 0.8 + noise(0))
    relu, gelu = (configuration(2, 2, 0.9 + noise(n), activation=a) for n, a in ((1, "relu"), (2, "gelu")))
    found = compare_depths(find_sides(table(base, relu, gelu)), NO_CURVES)
    assert [c.activation for c in found] == ["gelu", "relu"]
    assert found[0].setting == "At 2 bits (absmean, orthogonal, gelu)"
    found = compare_depths(find_sides(table(base, relu, configuration(2, 2, 0.9 + noise(3)))), NO_CURVES)
    assert [c.activation for c in found] == ["identity", "relu"]


def test_the_smallest_depth_at_these_bits_is_the_baseline_and_then_activations_have_to_match():
    rows = [configuration(2, 2, 0.8 + noise(0), activation="relu"), configuration(3, 2, 0.9 + noise(1))]
    found = one(table(*rows))
    assert (found.baseline, found.verdict) == (2, "refused")
    assert "activation (identity here, relu there) differs too" in found.reason


def test_activations_are_compared_with_identity_at_the_same_depth_and_bits():
    rows = [configuration(2, 2, 0.9 + noise(0)), configuration(2, 2, 0.8 + noise(1), activation="relu")]
    rows += [configuration(1, 2, 0.5 + noise(2)), configuration(1, 2, 0.6 + noise(2), activation="relu")]
    found = one(table(*rows), ask=compare_activations)
    assert (found.verdict, found.value, found.baseline, found.depth) == ("hurts", "relu", "identity", 2)
    assert found.sentence.startswith(
        "At 2 bits and depth 2 (absmean, orthogonal), relu is significantly worse than identity: -9.9 points"
    )
    alone = table(configuration(3, 2, 0.9 + noise(0)), configuration(2, 2, 0.8 + noise(1), activation="relu"))
    assert "depth (2 here, 3 there) differs too" in one(alone, ask=compare_activations).reason
    assert compare_activations(find_sides(table(configuration(2, 2, [0.9], activation="relu"))), NO_CURVES) == ()


def test_float_weights_have_no_scale_rule():
    rows = [configuration(1, 32, 0.8 + noise(0), scale="minmax"), configuration(2, 32, 0.9 + noise(1))]
    found = one(table(*rows))
    assert (found.verdict, found.scale, found.setting) == ("helps", None, "With float weights (orthogonal, identity)")


def test_only_seeds_that_every_side_has_are_compared():
    base, deep = configuration(1, 2, [0.9, 0.8, None, 0.7]), configuration(2, 2, [0.95, None, 0.99, 0.8])
    found = one(table(base, deep))
    assert (found.n_seeds, found.effect) == (2, pytest.approx(0.075))
    apart = one(table(configuration(1, 2, [0.9, None]), configuration(2, 2, [None, 0.9])))
    assert (apart.verdict, apart.reason) == ("refused", "no seed was trained on both sides")


def test_accuracies_that_are_no_numbers_count_as_missing():
    rows = table(configuration(1, 2, [0.9, 0.8, 0.7]), configuration(2, 2, [0.95, math.nan, 0.8])).to_pylist()
    rows[2]["val_accuracy"] = None
    found = one(pa.Table.from_pylist(rows, schema=TRIALS))
    assert (found.n_seeds, found.effect) == (1, pytest.approx(0.05))


def test_one_seed_decides_nothing_and_says_so():
    found = one(table(configuration(1, 2, [0.8]), configuration(2, 2, [0.9])))
    assert (found.verdict, found.p, found.low) == ("undecided", None, None)
    assert found.sentence.endswith("depth 2 against depth 1: +10.0 points with 1 seed; a test needs at least 2.")


def test_equal_differences_are_judged_by_their_signs_alone():
    same = one(table(configuration(1, 2, [0.8, 0.7, 0.9]), configuration(2, 2, [0.8, 0.7, 0.9])))
    assert (same.verdict, same.p, same.low) == ("undecided", 1, None)
    assert same.sentence.endswith("depth 2 against depth 1: no difference in any of 3 seeds.")
    alike = one(table(configuration(1, 2, [0.8, 0.7, 0.9]), configuration(2, 2, [0.81, 0.71, 0.91])))
    assert (alike.verdict, alike.p, alike.low, alike.seeds_needed) == ("undecided", 0.25, None, None)
    assert "+1.0 points in each of 3 seeds, so only the signs are tested (p = 0.25)." in alike.sentence
    many = one(table(configuration(1, 2, [0.8] * 8), configuration(2, 2, [0.9] * 8)))
    assert (many.verdict, many.p) == ("helps", 2 * 0.5**8)
    assert "depth 2 is significantly better than depth 1: +10.0 points in each of 8 seeds" in many.sentence


def test_nothing_gives_no_answers():
    empty = TRIALS.empty_table()
    found = answer(empty, NOTHING, aggregate(empty), 100)
    assert (found.depth, found.activation, found.by_bits, found.by_size) == ((), (), (), ())
    assert found.best.sentence == "No configuration within 100 bytes has finished."


# --- what is refused


@pytest.mark.parametrize(
    ("told", "reason", "obstacle"),
    [
        (
            {"error": "the warm-up ended at chance (9.8%)"},
            "depth 2 had a warm-up that ended at chance",
            "failed",
        ),
        ({"state": "diverged", "val_accuracy": None}, "depth 2 diverged", "failed"),
        ({"state": "oom", "val_accuracy": None}, "training did not finish", "unfinished"),
    ],
)
def test_training_that_failed_in_any_seed_is_not_compared(told, reason, obstacle):
    deep = configuration(2, 2, 0.5 + noise(1))
    deep[1] |= told
    if told.get("state") == "oom":
        deep = [row | told for row in deep]
    found = one(table(configuration(1, 2, 0.9 + noise(0)), deep))
    assert (found.verdict, found.effect) == ("refused", None)
    assert (found.reason, found.obstacle) == (reason, obstacle)


def test_depths_of_other_widths_are_compared_where_their_sizes_are_equal():
    """The same width where its size fits, else the nearest size of as many hidden layers, and that is said."""
    rows = [configuration(2, 1, [0.9, 0.9], hidden="24", size_bytes=1200)]
    rows += [
        configuration(1, 1, [low, low + 0.001], hidden=hidden, size_bytes=size)
        for hidden, size, low in [("24", 1000, 0.1), ("28", 1170, 0.8), ("30", 1260, 0.3), ("9-9", 1200, 0.2)]
    ]
    random.Random(1).shuffle(rows)
    found = one(table(*rows))
    assert (found.n_pairs, found.baseline_bytes) == (1, 1170)
    assert found.effect == pytest.approx(0.0995)
    assert found.flags == (
        "hidden width 24 instead of 28, for equal bytes",
        "depth 2 has 2.6 % more bytes than depth 1",
    )
    fits = one(table(*rows, configuration(2, 1, [0.7, 0.7], hidden="30", size_bytes=1250)))
    assert fits.n_pairs == 2
    assert fits.effect == pytest.approx((0.0995 + 0.3995) / 2)
    alone = one(table(*[row for row in rows if row[0]["hidden"] in ("24", "9-9")]))
    assert (alone.verdict, alone.reason) == ("refused", "sizes differ by more than 5 %")


def test_convolutions_of_other_widths_are_compared_where_their_sizes_are_equal():
    """Of the same blocks but for their channels, however these are given."""
    narrow, wide = "conv 8 5x5-pw 8-mean", "conv 10 5x5-pw 12-mean"
    deep = configuration(2, 1, [0.9, 0.9], blocks=narrow, hidden="none", size_bytes=1200)
    rows = [
        configuration(1, 1, [low, low + 0.001], blocks=blocks, channels=channels, hidden="none", size_bytes=size)
        for blocks, channels, size, low in [
            (narrow, None, 1000, 0.1),
            (wide, None, 1170, 0.8),
            (narrow, 12, 1260, 0.3),
            ("conv 10 3x3-pw 12-mean", None, 1200, 0.2),
            ("conv 10 5x5-pw 12", None, 1200, 0.2),
        ]
    ]
    random.Random(1).shuffle(rows)
    found = one(table(deep, *rows))
    assert (found.n_pairs, found.baseline_bytes) == (1, 1170)
    assert found.flags[0] == f"blocks {narrow} instead of {wide}, for equal bytes"
    scaled = one(table(deep, *[those for those in rows if those[0]["blocks"] != wide]))
    assert (scaled.baseline_bytes, scaled.flags[0]) == (1260, "channels as written instead of 12, for equal bytes")


def test_sizes_further_apart_than_a_twentieth_are_refused_and_a_hundredth_is_said():
    def sized(size):
        return one(table(configuration(1, 4, 0.8 + noise(0)), configuration(2, 4, 0.9 + noise(1), size_bytes=size)))

    assert (sized(1051).verdict, sized(1051).reason) == ("refused", "sizes differ by more than 5 %")
    assert sized(950).verdict == "refused"
    assert (sized(1050).verdict, sized(1050).flags) == ("helps", ("depth 2 has 5.0 % more bytes than depth 1",))
    assert sized(990).flags == ("depth 1 has 1.0 % more bytes than depth 2",)
    assert (sized(1009).flags, sized(1009).size_bytes, sized(1009).baseline_bytes) == ((), 1009, 1000)


def curve(trial_id, accuracies, seed):
    points = enumerate(accuracies, 1)
    entry = {"trial_id": trial_id, "seed": seed, "phase": "qat"}
    return [entry | {"epoch": e, "val_accuracy": a} for e, a in points] + [
        entry | {"phase": "warmup", "epoch": 9, "val_accuracy": 0.99}
    ]


def test_what_was_stopped_early_is_only_compared_where_its_curve_ends():
    base, deep = configuration(1, 2, [0.9, 0.9]), configuration(2, 2, [0.6, 0.7], state="pruned")
    curves = curve("1-2-", [0.5, 0.8, 0.9], 0) + curve("1-2-", [0.5, 0.9, 0.9], 1)
    curves += curve("2-2-pruned", [0.5, 0.6], 0) + curve("2-2-pruned", [0.1, 0.7], 1)
    history = pa.Table.from_pylist(curves, schema=HISTORY)
    found = one(table(base, deep), history)
    assert (found.verdict, found.effect, found.low, found.curve_epoch) == ("refused", None, None, 2)
    assert found.curve_effect == pytest.approx(-0.2)
    assert found.sentence == (
        "At 2 bits (absmean, orthogonal, identity), depth 2 is not compared with depth 1: depth 2 was stopped early "
        "(difference at QAT epoch 2, the last common one: -20.0 points)."
    )
    lost = one(table(base, deep))
    assert (lost.curve_epoch, lost.verdict, lost.obstacle) == (None, "refused", "pruned")
    assert lost.sentence.endswith("depth 2 was stopped early.")


def test_pairs_that_cannot_be_compared_are_left_out_and_counted():
    rows = [configuration(d, 2, 0.8 + d / 10 + noise(d), qat_lr=lr) for d in (1, 2) for lr in (0.1, 0.2)]
    broken = [row | {"state": "diverged", "val_accuracy": None} for row in configuration(2, 2, [0.1] * 3, qat_lr=0.3)]
    found = one(table(*rows, broken, configuration(1, 2, [0.8] * 3, qat_lr=0.3)))
    assert (found.verdict, found.n_pairs) == ("helps", 2)
    assert "1 of 3 pairs left out because training failed" in found.flags


def test_a_head_left_whole_keeps_its_rank_and_is_compared_with_depth_1():
    base = configuration(1, 2, 0.9 + noise(0), decompose="all")
    split = configuration(2, 2, 0.9 + noise(1), decompose="all", inner_dims=[[23], [7]])
    whole = configuration(2, 2, 0.9 + noise(2), decompose="hidden", inner_dims=[[23], []])
    deeper = configuration(3, 2, 0.9 + noise(3), decompose="hidden", inner_dims=[[22, 22], []])
    found = compare_depths(find_sides(table(base, split, whole, deeper)), NO_CURVES)
    flagged = {(one.depth, one.decompose): "rank 7" in str(one.flags) for one in found}
    assert flagged == {(2, "all"): True, (2, "hidden"): False, (3, "hidden"): False}
    assert {one.verdict for one in found} <= {"undecided", "helps", "hurts"}
    assert found[-1].sentence.startswith("At 2 bits (absmean, orthogonal, identity, hidden layers split), depth 3")


@pytest.mark.parametrize(
    ("axis", "values", "words"),
    [
        ("granularity", ("tensor", "channel"), "a step per channel"),
        ("levels", ("ternary", "full"), "full levels"),
        ("scale", ("minmax", "lsq"), "lsq"),
    ],
)
def test_what_decides_the_answer_is_asked_apart(axis, values, words):
    rows = [configuration(d, 2, 0.9 + noise(d), **{axis: value}) for d in (1, 2) for value in values]
    found = compare_depths(find_sides(table(*rows)), NO_CURVES)
    assert [getattr(one, axis) for one in found] == sorted(values)
    assert {one.n_pairs for one in found} == {1}
    assert sum(words in one.setting for one in found) == 1


def test_the_rank_of_the_last_layer_is_told_where_it_is_capped():
    base = configuration(1, 4, 0.8 + noise(0))
    deep = configuration(2, 4, 0.9 + noise(1), inner_dims=[[23], [7]])
    assert one(table(base, deep)).flags == ("the last layer has rank 7 instead of 10",)
    wide = configuration(2, 4, 0.9 + noise(1), inner_dims=[[23], [10]])
    assert one(table(base, wide)).flags == ()
    wider = [configuration(d, 4, 0.8 + noise(d), inner_dims=[[23], [w]]) for d, w in ((2, 12), (3, 11))]
    assert one(table(*wider)).flags == ()  # both reach the ten that the layer has undivided
    own = [[row | {"model": "nets:net"} for row in rows] for rows in (base, deep)]
    assert one(table(*own)).flags == ()  # what its last layer was is not known
    deeper = configuration(3, 4, 0.9 + noise(1), inner_dims=[[20, 20], [6, 6]], model="nets:net")
    assert "the last layer has rank 6 instead of 7" in one(table(own[1], deeper)).sentence


def test_sentences_of_a_sweep_name_only_what_varies_in_it():
    rows = [configuration(d, 2, 0.8 + d / 100 + noise(d, 4), activation=a) for d, a in PAIRS]
    trials = table(*rows)
    said = answer(trials, NOTHING, aggregate(trials)).sentences
    assert [line.partition(", ")[0] for line in said["depth"]] == ["At 2 bits (identity)", "At 2 bits (relu)"]
    assert said["activation"][0].startswith("At 2 bits and depth 2, relu ")


PAIRS = [(1, "identity"), (2, "identity"), (2, "relu")]


@pytest.mark.parametrize("is_unfinished", [False, True])
def test_what_has_no_partner_yet_is_not_refused_for_good(is_unfinished):
    far = [configuration(1, 2, [0.8, 0.81], size_bytes=500), configuration(2, 2, [0.9, 0.92])]
    alone = configuration(2, 4, [0.9, 0.92])
    other = configuration(1, 4, [0.9, 0.92], qat_lr=0.5)
    trials = table(*far, alone, other)
    found = answer(trials, NOTHING, aggregate(trials), is_unfinished=is_unfinished).depth
    assert {one.verdict for one in found} == {"refused"}
    two_bits = next(one for one in found if one.weight_bits == 2)
    lonely = [tuple(getattr(two_bits, name) for name in SETTING)]  # the plan has no partner for it
    known = answer(trials, NOTHING, aggregate(trials), is_unfinished=is_unfinished, lonely=lonely).depth
    assert {one.obstacle for one in known if one.weight_bits == 2} == {"size"}
    assert [one for one in known if one.weight_bits != 2] == [one for one in found if one.weight_bits != 2]
    if is_unfinished:
        assert {one.obstacle for one in found} == {"waiting"}
        assert all(one.reason.startswith("no pair of equal size that differs in depth alone is ") for one in found)
        assert not any(one.confounders for one in found)
    else:
        assert {one.obstacle for one in found} == {"size", "confounded"}


def test_points_show_two_digits_where_one_would_show_a_zero():
    assert format_differences(ACCURACY, 0.012, -0.0321) == ["+1.2", "-3.2"]
    assert format_differences(ACCURACY, 0.0004, 0.02) == ["+0.04", "+2.00"]
    assert format_differences(ACCURACY, 0.0) == ["0.0"]
    assert format_differences(ACCURACY, -0.00001, 0.00001) == ["0.00", "0.00"]


# --- what is best


def test_the_best_within_a_budget_is_named_with_what_it_is_not_told_apart_from():
    small = configuration(1, 1, [0.7, 0.71, 0.72], size_bytes=100)
    good = configuration(2, 2, [0.9, 0.91, 0.93], size_bytes=200)
    close = configuration(3, 2, [0.91, 0.9, 0.92], size_bytes=210)
    large = configuration(2, 8, [0.99, 0.98, 0.99], size_bytes=800)
    stopped = configuration(2, 1, [0.99] * 3, size_bytes=50, state="pruned")
    trials = table(large, close, stopped, small, good)
    best = answer(trials, NOTHING, aggregate(trials), 210).best
    assert (best.row["depth"], best.row["weight_bits"], best.varying) == (2, 2, ("depth", "weight_bits"))
    assert [row["depth"] for row in best.rivals] == [3]
    assert 0.5 < best.p_best < 1
    assert best.sentence.startswith(
        "The best configuration within 210 bytes is depth 2, 2 bits (200 bytes). It has 91.3 % on the "
        "validation set (95 % interval 87.5 to 95.1, 3 seeds) and 91.3 % on the test set. It is the best in "
    )
    assert best.sentence.endswith("With 3 seeds it is not significantly better than depth 3, 2 bits (210 bytes).")
    anything = answer(trials, NOTHING, aggregate(trials)).best
    assert (anything.row["size_bytes"], anything.rivals, anything.p_best) == (800, (), 1)
    assert anything.sentence.endswith("It is significantly better than every other configuration.")
    assert answer(trials, NOTHING, aggregate(trials), 99).best.row is None
    alone = answer(trials, NOTHING, aggregate(trials), 100).best
    assert alone.sentence.endswith("on the test set. No other configuration within 100 bytes has finished.")


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        (0, "With 3 seeds it is not significantly better than any other configuration."),
        (1, "With 3 seeds it is not significantly better than 5 of 6 others, such as depth 2 (200 bytes); depth 3 "),
        (4, "With 3 seeds it is not significantly better than depth 2 (200 bytes) and depth 3 (300 bytes)."),
    ],
)
def test_rivals_are_counted_and_a_few_of_them_named(worse, told):
    near, far = [0.91, 0.9, 0.92], [0.5, 0.51, 0.525]
    rivals = [configuration(d, 2, near if d < 8 - worse else far, size_bytes=100 * d) for d in range(2, 8)]
    trials = table(configuration(1, 2, [0.92, 0.93, 0.905], size_bytes=100), *rivals)
    said = answer(trials, NOTHING, aggregate(trials)).best.sentence.replace(", 2 bits", "")
    assert told in said
    assert said.endswith("and depth 4 (400 bytes).") == (worse == 1)


def test_the_best_is_named_by_what_varies_and_has_a_meaning_there():
    whole = configuration(1, 2, [0.9, 0.91], size_bytes=300, act_bits=2, decompose="all", hidden="16")
    split = configuration(3, 1, [0.9, 0.92], size_bytes=200, act_bits=None, decompose="hidden", hidden="24")
    trials = table(whole, split)
    best = answer(trials, NOTHING, aggregate(trials)).best
    assert [best.label(row) for row in (best.row, *best.rivals)] == [
        "depth 3, 1 bit, float inputs, hidden 24 (200 bytes)",
        "depth 1, 2 bits, inputs of 2 bits, hidden 16 (300 bytes)",
    ]
    stopped = configuration(2, 1, [0.5, 0.5], size_bytes=250, activation="relu", state="pruned", decompose="all")
    trials = table(whole, split, stopped)
    best = answer(trials, NOTHING, aggregate(trials)).best
    assert best.label(best.row) == ("depth 3, 1 bit, identity, float inputs, decompose hidden, hidden 24 (200 bytes)")


@pytest.mark.parametrize(
    ("accuracies", "said", "draws"),
    [
        ([0.924, 0.924], "(the same in each of 2 seeds)", False),
        ([0.2, 0.8], "(too few seeds for an interval, 2 seeds)", False),
        ([0.9, 0.91], "(95 % interval 84.1 to 96.9, 2 seeds)", False),
        ([0.9, 0.91, 0.92], "(95 % interval 88.5 to 93.5, 3 seeds)", True),
    ],
)
def test_few_seeds_show_neither_shares_of_draws_nor_intervals_that_say_nothing(accuracies, said, draws):
    trials = table(configuration(1, 2, [a - 0.1 for a in accuracies]), configuration(2, 2, accuracies))
    found = answer(trials, NOTHING, aggregate(trials))
    assert said in found.best.sentence
    assert ("bootstrap draws" in found.best.sentence) == draws
    assert ("bootstrap draws" in found.by_bits[0].sentence) == draws
    assert found.best.p_best == 1


def test_depths_that_were_not_trained_to_their_end_are_told_with_the_one_that_was():
    done = configuration(1, 2, [0.9, 0.91])
    stopped = [configuration(d, 2, [0.5, 0.5], state="pruned") for d in (2, 3)]
    failed = configuration(4, 2, [0.5, 0.5], state="oom")
    both = [
        configuration(6, 2, [0.5], state=state, hidden=hidden)
        for state, hidden in (("pruned", "8"), ("diverged", "9"))
    ]
    trials = table(done, *stopped, failed, *both)
    (found,) = answer(trials, NOTHING, aggregate(trials)).by_bits
    assert found.sentence == (
        "At 2 bits, only depth 1 was trained to its end (90.5 %): depths 2 and 3 were stopped early; depth 4 "
        "failed; depth 6 was stopped early or failed."
    )


@pytest.mark.parametrize(
    ("stopped", "told", "concluded"),
    [
        (
            False,
            "At 2 bits, only depth 1 was trained within the budget: 70.5 %.",
            "At 2 bits, only depth 1 was trained within the budget.",
        ),
        (
            True,
            "At 2 bits, only depth 1 was trained to its end (70.5 %): depth 3 was stopped early; depths 2 and 4 are "
            "too large.",
            "At 2 bits, only depth 1 was trained to its end: depth 3 was stopped early; depths 2 and 4 are too "
            "large.",
        ),
    ],
)
def test_depths_that_finished_but_do_not_fit_are_not_said_to_be_unfinished(stopped, told, concluded):
    small = [configuration(1, 2, [0.7, 0.71], size_bytes=100)]
    if stopped:
        small.append(configuration(3, 2, [0.5, 0.5], size_bytes=90, state="pruned"))
    large = [configuration(d, 2, [0.9, 0.93], size_bytes=100 * d) for d in (2, 4)]
    whole, within = table(*small, *large), table(*small)
    if not stopped:
        assert answer(whole, NOTHING, aggregate(whole)).by_size[0].sentence == (
            "Within 100 bytes, only depth 1 was trained: 70.5 %."
        )
    found = answer(within, NOTHING, aggregate(within), 100, whole=aggregate(whole))
    assert found.by_bits[0].sentence == told
    assert conclude("depth", replace(found, depth=()))[1:] == [concluded]


def test_ties_of_the_best_are_counted():
    alike = [configuration(d, 2, [0.9, 0.91, 0.92], size_bytes=200) for d in (1, 2, 3)]
    larger = configuration(4, 2, [0.9, 0.91, 0.92], size_bytes=210)
    trials = table(*alike, larger)
    best = answer(trials, NOTHING, aggregate(trials)).best
    assert best.n_tied == 2
    told = "3 configurations tie: the same mean and the same bytes."
    assert f" on the test set. {told} " in best.sentence
    assert told in best.short_sentence
    trials = table(alike[0], larger)
    assert "tie" not in answer(trials, NOTHING, aggregate(trials)).best.sentence


def test_the_best_of_one_seed_is_sure_of_nothing():
    trials = table(configuration(1, 2, [0.9]), configuration(2, 2, [0.8]))
    found = answer(trials, NOTHING, aggregate(trials))
    assert (found.best.p_best, len(found.best.rivals)) == (None, 1)
    assert found.best.sentence == (
        "The best configuration is depth 1, 2 bits (1,000 bytes). It has 90.0 % on the validation set (1 seed) and "
        "90.0 % on the test set. With 1 seed no difference can be tested."
    )
    assert found.by_bits[0].sentence == (
        "At 2 bits, depth 1 has the highest accuracy, 90.0 % at 1,000 bytes. A test needs at least 2 seeds."
    )


def test_the_best_depth_is_told_for_each_number_of_bits_and_each_size_of_the_front():
    clear = [configuration(d, 4, 0.7 + d / 10 + noise(d), size_bytes=400) for d in (1, 2)]
    close = [configuration(d, 1, a, size_bytes=100 + d) for d, a in ((1, [0.6, 0.65, 0.7]), (2, [0.66, 0.64, 0.7]))]
    trials = table(*clear, *close, configuration(3, 8, [0.99, 0.98, 0.97], size_bytes=800))
    found = answer(trials, NOTHING, aggregate(trials))
    assert [(b.weight_bits, b.depth, b.decided) for b in found.by_bits] == [
        (1, 2, False),
        (4, 2, True),
        (8, 3, False),
    ]
    assert [(b.budget, b.depth) for b in found.by_size] == [(101, 1), (102, 2), (400, 2), (800, 3)]
    assert all(sum(b.probabilities.values()) == pytest.approx(1) for b in found.by_bits)
    assert found.by_bits[1].probability == 1
    assert found.by_bits[1].sentence.startswith(
        "At 4 bits, depth 2 is significantly better than every other depth: 89.9 % at 400 bytes (best in 100 % of "
        "bootstrap draws; corrected p = "
    )
    assert found.by_bits[2].sentence == "At 8 bits, only depth 3 has finished: 98.0 %."
    assert found.by_size[3].decided


@pytest.mark.parametrize(("size", "larger"), [(1050, False), (1051, True)])
def test_a_best_depth_that_is_larger_than_all_others_is_told(size, larger):
    trials = table(
        configuration(1, 1, [0.9, 0.91], size_bytes=size),
        configuration(2, 1, [0.8, 0.81], size_bytes=1000),
        configuration(3, 1, [0.7, 0.71], size_bytes=900),
    )
    answers = answer(trials, NOTHING, aggregate(trials))
    (found,) = answers.by_bits
    assert not any(best.more for best in answers.by_size)
    assert found.more == ((SIZE_BYTES,) if larger else ())
    assert found.sentence.endswith(" It is larger than the best configuration of every other depth.") == larger


def costly(depth, accuracies, size_bytes, macs):
    return configuration(depth, 4, accuracies, size_bytes=size_bytes, macs=macs)


def test_answers_are_about_the_costs_of_the_front():
    trials = table(
        costly(1, [0.8, 0.81, 0.83], 100, 4000),
        costly(2, [0.9, 0.91, 0.92], 300, 900),
        costly(3, [0.7] * 3, 200, 800),
    )
    found = answer(trials, NOTHING, aggregate(trials, costs=(MACS,)))
    assert "is depth 2, 4 bits (900 MACs). It has" in found.best.sentence
    assert [one.budget for one in found.by_size] == [800, 900], "depth 1 is on the front against bytes alone"
    assert found.by_size[0].sentence == "Within 800 MACs, only depth 3 was trained: 70.0 %."
    assert found.by_bits[0].sentence.startswith("At 4 bits, depth 2 is significantly better than every other depth: ")
    assert " at 900 MACs (" in found.by_bits[0].sentence
    assert found.by_bits[0].more == ()

    found = answer(trials, NOTHING, aggregate(trials, costs=(SIZE_BYTES, MACS)))
    assert "is depth 2, 4 bits (300 bytes, 900 MACs). It has" in found.best.sentence
    assert [one.budget for one in found.by_size] == [100, 300]
    assert " at 300 bytes and 900 MACs (" in found.by_bits[0].sentence
    assert found.by_bits[0].more == (SIZE_BYTES,)

    found = answer(trials, NOTHING, aggregate(trials, costs=(MACS, SIZE_BYTES)), budget=250)
    assert found.best.sentence.startswith(
        "The best configuration within 250 bytes is depth 1, 4 bits (4,000 MACs, 100 bytes). It has"
    )


@pytest.mark.parametrize(
    ("costs", "macs", "best", "tie"),
    [
        ((SIZE_BYTES,), (700, 600, 800), 1, " 3 configurations tie: the same mean and the same bytes."),
        ((MACS,), (700, 600, 800), 2, ""),
        ((SIZE_BYTES, MACS), (700, 600, 800), 2, ""),
        ((SIZE_BYTES, MACS), (700, 600, 600), 2, " 2 configurations tie: the same mean and the same bytes and MACs."),
    ],
)
def test_of_equal_accuracies_the_cheapest_is_best_and_equal_costs_tie(costs, macs, best, tie):
    trials = table(*(costly(depth, [0.9, 0.91, 0.92], 300, n) for depth, n in zip((1, 2, 3), macs, strict=True)))
    found = answer(trials, NOTHING, aggregate(trials, costs=costs)).best
    assert found.row["depth"] == best
    assert f" on the test set.{tie} It is the best in " in found.sentence


def test_the_best_depth_is_held_against_the_best_of_each_other_depth():
    best = configuration(2, 4, [0.9, 0.91, 0.92], size_bytes=300)
    far = [
        configuration(1, 4, a, size_bytes=310, qat_lr=lr) for lr, a in ((1.0, [0.1] * 3), (2.0, [0.8, 0.81, 0.821]))
    ]
    near = configuration(3, 4, [0.91, 0.9, 0.9], size_bytes=320)
    trials = table(*far, near, best)
    (found,) = answer(trials, NOTHING, aggregate(trials)).by_bits
    # paired differences -0.01, 0.01, 0.02: t = 0.756 of two degrees of freedom
    assert (found.depth, found.p) == (2, pytest.approx(0.5286, abs=1e-4))
    two = table(best, *far)
    (found,) = answer(two, NOTHING, aggregate(two)).by_bits
    assert found.p == pytest.approx(1.1185e-5, rel=1e-3)  # against the better one: 0.1, 0.1, 0.099
    assert [b.budget for b in answer(two, NOTHING, aggregate(two)).by_size] == [300]


def test_of_equal_accuracies_the_smaller_one_is_best():
    rows = [configuration(d, 4, [0.9, 0.91, 0.92], size_bytes=size) for d, size in ((1, 320), (2, 300), (3, 310))]
    trials = table(*rows)
    found = answer(trials, NOTHING, aggregate(trials))
    assert (found.best.row["depth"], found.best.p_best, found.by_bits[0].depth) == (2, 1, 2)
    assert len(found.best.rivals) == 2


def test_a_bootstrap_that_is_sure_is_not_believed_where_t_is_not():
    trials = table(configuration(1, 2, [0.8, 0.8, 0.8]), configuration(2, 2, [0.801, 0.85, 0.9]))
    (found,) = answer(trials, NOTHING, aggregate(trials)).by_bits
    assert (found.probability, found.decided) == (1, False)
    assert found.sentence == (
        "At 2 bits, depth 2 has the highest mean accuracy, 85.0 % at 1,000 bytes. It is not significantly better "
        "(best in 100 % of bootstrap draws; corrected p = 0.22)."
    )


def test_shares_and_p_values_that_say_nothing_are_left_out():
    found = BestDepth(2, None, 3, 0.9, {1: 0.001, 2: 0.005, 3: 0.614, 4: 0.38}, 1.0, {"size_bytes": 900}, (), 5, {})
    assert found.sentence == (
        "At 2 bits, depth 3 has the highest mean accuracy, 90.0 % at 900 bytes. It is not significantly better (best "
        "in 61 % of bootstrap draws, depth 4 in 38 %)."
    )
    assert replace(found, n_seeds=2).sentence.endswith("at 900 bytes. It is not significantly better.")
    assert replace(found, p=0.3).sentence.endswith("depth 4 in 38 %; corrected p = 0.3).")


def test_a_depth_that_is_worse_with_one_activation_and_best_with_another_is_no_contradiction():
    trials = table(
        configuration(1, 1, [0.93, 0.93, 0.93]),
        configuration(3, 1, [0.910, 0.911, 0.912]),
        configuration(3, 1, [0.94, 0.95, 0.96], activation="relu"),
    )
    found = answer(trials, NOTHING, aggregate(trials))
    (worse,) = [one for one in found.depth if one.verdict == "hurts"]
    assert worse.describe(["activation"]).startswith(
        "At 1 bit (identity), depth 3 is significantly worse than depth 1: "
    )
    assert "identity" in worse.sentence
    assert found.by_bits[0].setting == {"activation": "relu"}
    assert found.by_bits[0].sentence.startswith("At 1 bit, depth 3 (relu) has the highest mean accuracy, 95.0 % at ")
    assert found.by_size[0].sentence.startswith("Within 1,000 bytes, depth 3 (relu) has the highest mean accuracy, ")


def test_the_best_depth_within_a_size_is_told_with_its_bits_if_they_vary():
    rows = [configuration(d, bits, [0.9, 0.91 + d / 100]) for d in (1, 2) for bits in (1, 2)]
    trials = table(*rows)
    (found,) = answer(trials, NOTHING, aggregate(trials)).by_size
    assert found.sentence.startswith("Within 1,000 bytes, depth 2 (1 bit) has the highest mean ")


def test_a_best_depth_among_many_numbers_of_bits_is_not_decided_by_one_small_p():
    """Depth 2 is ahead at 1 bit by what alone would be enough, and at four other numbers of bits by nothing."""
    rows = [configuration(1, 1, [0.8] * 4), configuration(2, 1, [0.81, 0.82, 0.815, 0.83])]
    alone = table(*rows)
    for n in (2, 3, 4, 8):
        rows += [configuration(1, n, 0.9 + noise(n, 4)), configuration(2, n, 0.9 + noise(9 + n, 4))]
    among = table(*rows)
    first, (second, *others) = (answer(t, NOTHING, aggregate(t)).by_bits for t in (alone, among))
    assert (first[0].decided, second.decided) == (True, False)
    assert second.p == pytest.approx(5 * first[0].p)
    assert all(other.p > 0.05 for other in others)


# --- what was recorded


@pytest.mark.parametrize(("name", "refused"), [("mnist", 0), ("fashion_mnist", 10)])
def test_three_seeds_of_the_recordings_decide_no_comparison(name, refused):
    trials, history = (pq.read_table(DATA / f"{name}_{kind}.parquet") for kind in ("trials", "history"))
    trials = complete_table(trials, TRIALS)
    found = answer(trials, history, aggregate(trials), 5000)
    assert (len(found.depth), len(found.activation)) == (30, 15)
    both = found.depth + found.activation
    assert sum(c.verdict == "undecided" for c in both) == 45 - refused
    assert {c.reason.split(",")[0] for c in both if c.verdict == "refused"} <= {
        "depth 4 diverged",
        "identity diverged",
    }
    assert all(c.flags for c in found.depth if c.verdict == "undecided")
    assert found.best.row["weight_bits"] == 2
    for sentences in found.sentences.values():
        for sentence in sentences:
            assert sentence.endswith(".")
            assert not {"nan", "None", "inf"} & set(sentence.replace(",", " ").split())
