"""The answers about a metric that goes down are those about the same metric turned upside down."""

from dataclasses import replace

import pyarrow as pa
import pytest

from qdtune.analysis.run import load_run
from qdtune.spec.tasks import ACCURACY, MSE, R2
from qdtune.store.columns import trials_schema
from qdtune.store.pairs import find_sides
from qdtune.store.seed_tests import equal_within
from tests.judged import make_spec, write_run


def load(folder, metric, value_of, **options):
    write_run(folder, make_spec("regression", metric), value_of, **options)
    return load_run(folder)


def turned(one):
    """A comparison without the sign of its effect."""
    low, high = (None, None) if one.low is None else (-one.high, -one.low)
    effect = None if one.effect is None else -one.effect
    return replace(one, effect=effect, low=low, high=high, metric=R2)


def told(one):
    """What a comparison holds, with its numbers to 6 digits."""
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in vars(one).items()
        if name not in ("reason", "metric", "size_bytes", "baseline_bytes")
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder, dead = tmp_path_factory.mktemp("runs"), [(3, "diverged")]
    up = load(folder / "up", "r2", lambda skill: skill, dead=dead)
    return up, load(folder / "down", "mse", lambda skill: 2 - skill, dead=dead)


def test_verdicts_and_their_order_are_the_same(runs):
    up, down = (run.answers() for run in runs)
    for axis in ("depth", "activation"):
        first, second = getattr(up, axis), getattr(down, axis)
        assert [told(one) for one in first] == [told(turned(one)) for one in second]
    assert {one.verdict for one in up.activation} == {"helps"}
    assert all(one.effect < 0 for one in down.activation)


def test_the_best_and_its_rivals_are_the_same(runs):
    up, down = (run.answers() for run in runs)
    key = ("depth", "weight_bits", "activation")
    rows = [[{name: row[name] for name in key} for row in (one.best.row, *one.best.rivals)] for one in (up, down)]
    assert rows[0] == rows[1]
    assert len(rows[0]) > 2
    assert up.best.p_best == down.best.p_best
    for name in ("by_bits", "by_size"):
        pairs = zip(getattr(up, name), getattr(down, name), strict=True)
        for one, other in pairs:
            assert (one.depth, one.probabilities, one.decided, one.ended) == (
                other.depth, other.probabilities, other.decided, other.ended)  # fmt: skip
            assert one.p == pytest.approx(other.p)
            assert one.value == pytest.approx(2 - other.value)


def test_sentences_name_the_metric_and_have_no_points(runs):
    for run, word, name in zip(runs, ("highest", "lowest"), ("r2", "mse"), strict=True):
        text = " ".join(sentence for lines in run.answers().sentences.values() for sentence in lines)
        assert f"depth 2 (relu) has the {word} mean {name}, " in text
        assert f": {name} {'+' if name == 'r2' else '-'}0.0" in text
        assert not {"accuracy", "points"} & set(text.replace(",", " ").split())


@pytest.mark.parametrize("factor", [1e-7, 1e6])
def test_the_unit_of_a_metric_decides_nothing(runs, tmp_path, factor):
    scaled = load(tmp_path / "run", "mse", lambda skill: factor * (2 - skill), dead=[(3, "diverged")])
    for axis in ("depth", "activation"):
        first, second = (getattr(run.answers(), axis) for run in (runs[1], scaled))
        assert [(one.verdict, one.seeds_needed) for one in first] == [
            (one.verdict, one.seeds_needed) for one in second
        ]


def test_equal_is_what_float32_cannot_tell_apart():
    assert equal_within(ACCURACY, [0.1, 0.2]) == 1e-6
    assert equal_within(R2, [-0.1, 0.2]) == 1e-6
    assert equal_within(MSE, [4e-8, 2e-8], [[1e-8, 1e-8], [8e-8, float("nan")]]) == pytest.approx([4e-14, 8e-14])


def test_the_last_layer_of_an_autoencoder_is_as_wide_as_its_inputs():
    for metric, rank in ((ACCURACY, 10), (MSE, 24)):
        row = {
            "trial_id": "a",
            "dataset": "mnist",
            "model": "mlp",
            "hidden": "24",
            "depth": 1,
            "seed": 0,
            "state": "ok",
        }
        (side,) = find_sides(pa.Table.from_pylist([row | {metric.val: 0.5}], schema=trials_schema(metric)))
        assert (side.metric, side.head_rank) == (metric, rank)
