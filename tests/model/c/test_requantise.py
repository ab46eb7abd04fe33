"""Whole numbers that give exactly the codes of the float program, against the float program at every sum."""

from dataclasses import replace

import numpy as np
import pytest

from qdtune.model.c.requantise import FAR, Requantiser, _choose, _fit_shift, fit
from qdtune.model.c.stages import BENDS
from qdtune.model.c.steps import SumRange, find_steps, find_thresholds, range_of_sums
from qdtune.reader import ACTIVATIONS, GRIDS


def draw(seed, activation):
    """A float program from sums to codes, and the range of its sums."""
    generator = np.random.default_rng([seed, *activation.encode()])
    channels, bits = int(generator.integers(1, 6)), int(generator.integers(1, 9))
    levels = "unsigned" if activation == "relu" else str(generator.choice(["symmetric", "unsigned"]))
    low, high, is_binary = GRIDS[bits, levels]
    weights = generator.integers(-3, 4, (channels, int(generator.integers(2, 40))))
    sums = range_of_sums(weights, 0, int(generator.choice([1, 3, 15])))
    if generator.random() < 0.4:  # powers of two, whose values often lie halfway between two codes
        worth, step = (np.float32(2.0 ** -int(generator.integers(0, 6))) for _ in range(2))
        scale = np.full(channels, 0.5, np.float32) * generator.choice([-1, 1], channels).astype(np.float32)
        shift = (generator.integers(-127, 128, channels) / 32).astype(np.float32)
    else:
        worth, step = (np.float32(generator.lognormal(-1, 1)) for _ in range(2))
        scale, shift = (generator.normal(0, 1, channels).astype(np.float32) for _ in range(2))

    def value_of(numbers):
        return (numbers.astype(np.float32) * worth) * scale + shift

    def code_of(values):
        x = ACTIVATIONS[activation](values)
        codes = np.where(x >= 0, 1, -1) if is_binary else np.clip(np.round(x / step), low, high)
        return codes.astype(np.int64)

    return value_of, code_of, sums, abs(worth * scale.astype(np.float64))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_sum_gets_the_code_of_the_float_program(activation):
    fitted = 0
    for seed in range(12):
        value_of, code_of, sums, slope = draw(seed, activation)
        steps = find_steps(code_of, BENDS.get(activation, ()))
        found = fit(find_thresholds(value_of, sums, steps), slope)
        every = np.arange(int(sums.low.min()), int(sums.high.max()) + 1)[:, None].clip(sums.low, sums.high)
        if found is not None:
            fitted += 1
            assert np.array_equal(found.codes_of(every), code_of(value_of(every))), seed
            scaled = every * found.multiplier + found.offset
            assert abs(scaled).max() <= found.largest
    assert fitted >= (9 if activation == "leaky_relu" else 11), "floats are the exception"


def test_steps_are_at_the_first_float_of_each_code():
    step = np.float32(0.3)
    found = find_steps(lambda x: np.clip(np.round(x / step), -2, 3).astype(np.int64))
    assert found.codes.tolist() == [-2, -1, 0, 1, 2, 3]
    before = np.nextafter(found.at, np.float32(-np.inf))
    assert np.round(found.at / step).tolist() == [-1, 0, 1, 2, 3]
    assert np.round(before / step).tolist() == [-2, -1, 0, 1, 2]


def test_powers_of_two_need_no_multiplier_and_round_halves_to_even():
    """A sum of 3 is 1.5 steps, which is 2; one of 1 is half a step, which is 0."""
    sums = SumRange(np.array([-8]), np.array([8]))
    steps = find_steps(lambda x: np.clip(np.round(x), -3, 3).astype(np.int64))
    found = fit(find_thresholds(lambda s: s.astype(np.float32) / 2, sums, steps), np.array([0.5]))
    assert found is not None
    assert (found.multiplier.tolist(), found.offset.tolist(), found.shift, found.to_even) == ([1], [0], 1, True)
    assert found.codes_of(np.arange(-8, 9)[:, None])[:, 0].tolist() == [
        *[-3, -3, -3, -2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2, 3, 3, 3]
    ]


def test_a_line_that_no_whole_numbers_draw_is_refused():
    """No straight line, and too many steps for a table."""
    sums = SumRange(np.array([0]), np.array([5000]))
    steps = find_steps(lambda x: np.clip(np.round(x), 0, 1000).astype(np.int64))
    found = find_thresholds(lambda s: np.where(s < 1000, s / 2, 400 + s / 10).astype(np.float32), sums, steps)
    assert fit(found, np.array([0.2])) is None


def test_a_damaged_multiplier_would_be_seen():
    value_of, code_of, sums, slope = draw(1, "relu")
    found = fit(find_thresholds(value_of, sums, find_steps(code_of)), slope)
    assert found is not None
    worse = Requantiser(found.multiplier * 2, found.offset, found.shift, found.to_even, found.codes, None, 0)
    every = np.arange(int(sums.low.min()), int(sums.high.max()) + 1)[:, None].clip(sums.low, sums.high)
    assert not np.array_equal(worse.codes_of(every), code_of(value_of(every)))


def test_a_line_that_float32_bends_gets_exceptions():
    """Many sums, many codes: float32 rounds some sums over a step, and these are listed."""
    generator = np.random.default_rng(0)
    sums = SumRange(np.full(3, -70_000), np.full(3, 70_000))
    scale, shift = (generator.normal(0, 1, 3).astype(np.float32) for _ in range(2))
    worth, step = np.float32(1e-4), np.float32(0.05)

    def value_of(numbers):
        return (numbers.astype(np.float32) * worth + np.float32(900)) * scale + shift - 900 * scale

    def code_of(values):
        return np.clip(np.round(values / step), 0, 255).astype(np.int64)

    found = fit(find_thresholds(value_of, sums, find_steps(code_of)), abs(worth * scale.astype(np.float64)))
    assert found is not None
    assert 0 < len(found.exceptions) < 60
    every = np.arange(-70_000, 70_001)[:, None].repeat(3, 1)
    assert np.array_equal(found.codes_of(every), code_of(value_of(every)))
    without = replace(found, exceptions=found.exceptions[:0])
    assert (without.codes_of(every) != code_of(value_of(every))).sum() == len(found.exceptions)


def test_sums_that_are_worth_nearly_nothing_have_one_code():
    sums = SumRange(np.array([-9]), np.array([9]))
    steps = find_steps(lambda x: np.clip(np.round(x), -7, 7).astype(np.int64))
    value = np.float32(1e-20)
    found = fit(find_thresholds(lambda n: n.astype(np.float32) * value + 3, sums, steps), np.full(1, 1e-20))
    assert found is not None
    assert found.codes_of(np.arange(-9, 10)[:, None]).ravel().tolist() == [3] * 19


def test_channels_of_one_slope_share_a_multiplier():
    """Each channel alone would take the first multiplier that fits, and the program a table of them."""
    generator, channels = np.random.default_rng(0), 20
    sums = SumRange(np.full(channels, -900), np.full(channels, 900))
    shift = (generator.integers(-127, 128, channels) / 16).astype(np.float32)
    steps = find_steps(lambda x: np.clip(np.round(x / np.float32(1.017)), 0, 7).astype(np.int64))
    found = find_thresholds(lambda s: s.astype(np.float32) * np.float32(0.01) + shift, sums, steps)
    slope = np.full(channels, 0.01)
    line, spread = fit(found, slope), _fit_shift(found, slope / 1.017, is_shared=False)
    assert line is not None
    assert spread is not None
    assert [len(set(one.multiplier.tolist())) for one in (line, spread)] == [1, 2]
    assert not line.is_wide
    every = np.arange(-900, 901)[:, None].repeat(channels, 1)
    assert np.array_equal(line.codes_of(every), spread.codes_of(every))


def test_a_channel_that_never_steps_needs_no_wide_offset():
    sums = SumRange(np.full(3, -50), np.full(3, 50))
    shift = np.array([0, -300, 300], np.float32)  # the second channel has the lowest code, the third the highest
    steps = find_steps(lambda x: np.clip(np.round(x), 0, 15).astype(np.int64))
    found = fit(
        find_thresholds(lambda s: s.astype(np.float32) * np.float32(0.3) + shift, sums, steps), np.full(3, 0.3)
    )
    assert found is not None
    assert not found.is_wide
    codes = found.codes_of(np.arange(-50, 51)[:, None].repeat(3, 1))
    assert (set(codes[:, 1]), set(codes[:, 2])) == ({0}, {15})


@pytest.mark.parametrize(
    ("low", "high", "chosen"),
    [(-5, 5, 0), (37, FAR, 64), (-FAR, -37, -64), (300, 520, 512), (33, 39, 36), (-39, -33, -36), (1, 1, 1)],
)
def test_offsets_are_short(low, high, chosen):
    assert _choose(np.array([low]), np.array([high])).tolist() == [chosen]
