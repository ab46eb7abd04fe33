"""Two questions: does depth help, and does an activation between the factors help? Compares pairs and tests them.

Each comparison is made at one setting: one number of bits, and one value of each axis in `axes.ASKED_AT`, because
these change the answer. A comparison usually has several pairs, which differ in width or learning rate, for example.
The difference of a seed is the mean over these pairs, and the t test is over the seeds. Holm's correction keeps the
chance of any wrong verdict in a question at 5 %.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qdtune.analysis.behind import CurveBook
from qdtune.analysis.comparison import OBSTACLES, Comparison, largest_difference
from qdtune.spec.axes import HIDDEN, OUTLINED
from qdtune.spec.metric_text import format_differences, say_difference
from qdtune.spec.tasks import Metric
from qdtune.spec.values import cell_text
from qdtune.store.decisions import Schedule, judge_question
from qdtune.store.looks import DECIDED, GIVEN_UP, SAME
from qdtune.store.pairs import SIZES_EQUAL, Side, curve_difference, mean_differences
from qdtune.store.questions import SETTING, Asked, Pairs, list_activations, list_depths
from qdtune.store.seed_tests import (
    PairedTest,
    apply_holm,
    count_seeds_needed,
    equal_within,
    half_width,
    same_test,
    t_test,
)

# A comparison, its differences by seed, and the largest difference that is none.
Prepared = tuple[Comparison, dict[int, float], float]


class Tested(NamedTuple):
    """The mean, the sample deviation and the p value of one comparison."""

    mean: float
    std: float
    p: float


def _test_of(found: PairedTest, place: int) -> Tested:
    return Tested(float(found.mean[place]), float(found.std[place]), float(found.p[place]))


def compare_depths(everything: list[Side], curves: CurveBook) -> tuple[Comparison, ...]:
    """The comparisons of `questions.list_depths`, tested with all seeds.

    Args:
        everything: the configurations, see `pairs.find_sides`.
        curves: of the sweep.
    """
    return _test_family(_prepare(asked, curves) for asked in list_depths(everything))


def compare_activations(everything: list[Side], curves: CurveBook) -> tuple[Comparison, ...]:
    """The comparisons of `questions.list_activations`, tested with all seeds.

    Args:
        everything, curves: as for `compare_depths`.
    """
    return _test_family(_prepare(asked, curves) for asked in list_activations(everything))


def compare_at_looks(
    axis: str, schedule: Schedule, sides: Sequence[list[Side]], curves: CurveBook
) -> tuple[Comparison, ...]:
    """The comparisons of a question in a sweep with `replicate.until`, each with the seeds and the level of its look.

    Args:
        axis: of the question.
        schedule: the looks of the sweep.
        sides: the configurations with the seeds of each look, see `decisions.find_sides_at_looks`.
        curves: of the sweep.
    """
    family, result = judge_question(axis, schedule, sides), []
    places = {id(member): i for i, member in enumerate(family.members)}
    for member in family.everyone:
        i = places.get(id(member))
        look = 0 if i is None else family.walk.looks[i]
        asked = member.at[look]
        assert isinstance(asked, Asked), "a question about an axis has no neighbours"
        comparison, by_seed, equal = _prepare(asked, curves)
        if i is not None and by_seed and len(by_seed) < schedule.looks[look]:
            comparison, by_seed = replace(comparison, reason=OBSTACLES["unfinished"], obstacle="unfinished"), {}
        if i is not None and by_seed:
            ending, tested = family.walk.endings[i], _test_of(family.walk.tests[look], i)
            alpha = family.walk.interval_alpha(i)
            comparison = _judge(comparison, by_seed, equal, tested, ending == DECIDED, alpha)
            comparison = _call_same(comparison) if ending == SAME else comparison
            if (margin := schedule.same_within) is not None:
                p_same = float(same_test(family.walk.tests[look], margin, equal)[i])
                comparison = replace(comparison, same_within=margin, p_same=None if np.isnan(p_same) else p_same)
            if axis in schedule.questions:
                comparison = replace(comparison, look=look + 1, ending=ending, most_seeds=schedule.looks[-1])
                if ending == GIVEN_UP and tested.std > 0:
                    needed = count_seeds_needed(tested.mean, tested.std, family.walk.last_level, equal)
                    comparison = replace(comparison, seeds_needed=needed)
        result.append(comparison)
    return tuple(result)


def _name_comparison(asked: Asked) -> Comparison:
    side = asked.group[0]
    shared = {name: side.key[name] for name in SETTING}
    return Comparison(asked.axis, side.key[asked.axis], asked.baseline, **shared, metric=side.metric)


def _prepare(asked: Asked, curves: CurveBook) -> Prepared:
    """The comparison before its test; without differences if it is refused."""
    comparison, pairs, found = _name_comparison(asked), asked.pairs, asked.by_obstacle
    if not pairs:
        apart, one, other = asked.baselines.find_confounders(asked.group, asked.match)
        differ = ", ".join(
            f"{name} ({_format_key(one, name)} here, {_format_key(other, name)} there)" for name in apart
        )
        verb = "differs" if len(apart) == 1 else "differ"
        reason = f"no pair differs in {comparison.axis} alone; {differ} {verb} too"
        return replace(comparison, reason=reason, obstacle="confounded", confounders=apart), {}, 0.0
    sound = found.get(None, [])
    if "pruned" in found:
        return _judge_stopped(comparison, sound + found["pruned"], curves), {}, 0.0
    if not sound:
        why = max((str(name) for name in found), key=lambda name: (len(found[name]), name))
        reason = _describe_refusal(comparison, why, found[why])
        return replace(comparison, n_pairs=len(pairs), reason=reason, obstacle=why), {}, 0.0
    by_seed = mean_differences(sound)
    comparison = replace(
        comparison,
        n_pairs=len(sound),
        flags=(*_find_flags(comparison, sound), *_describe_left_out(found, len(pairs))),
    )
    sizes = [[side.size for side in those] for those in zip(*sound, strict=True)]
    means = [float(np.mean(s)) if None not in s else None for s in sizes]
    comparison = replace(comparison, size_bytes=means[0], baseline_bytes=means[1])
    if not by_seed:
        comparison = replace(comparison, reason=OBSTACLES["seeds"], obstacle="seeds")
    values = [value for pair in sound for side in pair for value in side.measured.values()]
    return comparison, by_seed, float(equal_within(comparison.metric, values))


def _format_key(side: Side, name: str) -> str:
    value = side.key[name]
    return f"{value:g}" if isinstance(value, float) else cell_text(value)


def _describe_refusal(comparison: Comparison, why: str, pairs: Pairs) -> str:
    if why != "failed":
        return OBSTACLES[why]
    failed = [(name, side.failure) for pair in pairs for name, side in zip(comparison.names, pair, strict=True)]
    name, how = next((name, how) for name, how in failed if how)
    return f"{name} {how}"


def _judge_stopped(comparison: Comparison, pairs: Pairs, curves: CurveBook) -> Comparison:
    """The comparison if a side was stopped early: one side is behind, or it is refused.

    A stopped side has no final result, and the remaining pairs would be a biased choice.
    """
    comparison, gap = replace(comparison, n_pairs=len(pairs)), None
    if where := curve_difference(pairs, curves.history):
        epoch, gap = where
        comparison = replace(comparison, curve_epoch=epoch, curve_effect=gap)
    if behind := curves.find_behind(pairs):
        name = comparison.names[behind.place]
        return replace(comparison, verdict="behind", behind=name, predicted_from=behind.epoch, n_like=behind.alike)
    stopped = [
        name for name, those in zip(comparison.names, zip(*pairs, strict=True), strict=True) if _is_any_pruned(those)
    ]
    reason = f"{' and '.join(stopped)} {'was' if len(stopped) == 1 else 'were'} stopped early"
    if gap is not None:
        at = f"QAT epoch {comparison.curve_epoch}, the last common one"
        reason += f" (difference at {at}: {_say(comparison.metric, gap)})"
    return replace(comparison, reason=reason, obstacle="pruned")


def _is_any_pruned(those: Iterable[Side]) -> bool:
    return any(side.state == "pruned" for side in those)


def _find_flags(comparison: Comparison, pairs: Pairs) -> Iterator[str]:
    ranks = {(one.head_rank, other.head_rank) for one, other in pairs}
    capped = sorted((a, b) for a, b in ranks if a is not None and b is not None and a < b)
    if capped:
        a, b = capped[0]
        yield f"the last layer has rank {a} instead of {b}"
    for axis in OUTLINED:
        values = [[side.key[axis.name] for side in pair] for pair in pairs]
        texts = [["as written" if value is None else cell_text(value) for value in pair] for pair in values]
        if different := [(one, other) for one, other in texts if one != other]:
            what = "hidden width" if axis is HIDDEN else axis.name
            yield f"{what} {' instead of '.join(min(different))}, for equal bytes"
    if comparison.scale == "minmax" and comparison.weight_bits == 2:
        yield "minmax at 2 bits rounds about 95 % of the first layer to zero, which may be the reason"
    apart = [(one.size - other.size) / min(one.size, other.size) for one, other in pairs if one.size and other.size]
    if apart and abs(widest := max(apart, key=abs)) >= SIZES_EQUAL:
        larger, smaller = comparison.names if widest > 0 else comparison.names[::-1]
        yield f"{larger} has {100 * abs(widest):.1f} % more bytes than {smaller}"


def _describe_left_out(found: dict[str | None, Pairs], total: int) -> Iterator[str]:
    for why, those in found.items():
        if why is not None:
            yield f"{len(those)} of {total} pairs left out because {OBSTACLES[why]}"


def _test_family(prepared: Iterable[Prepared]) -> tuple[Comparison, ...]:
    """All comparisons of a question with their verdicts: they are one family for Holm's procedure."""
    family = list(prepared)
    seeds = sorted({seed for _, by_seed, _ in family for seed in by_seed})
    table = np.array([[by_seed.get(s, np.nan) for s in seeds] for _, by_seed, _ in family])
    table = table.reshape(len(family), len(seeds))
    found = t_test(table, np.array([equal for *_, equal in family]))
    rejected, levels = apply_holm(found.p)
    return tuple(
        _judge(comparison, by_seed, equal, _test_of(found, i), bool(rejected[i]), float(levels[i]))
        for i, (comparison, by_seed, equal) in enumerate(family)
    )


def _judge(
    comparison: Comparison,
    by_seed: dict[int, float],
    equal: float,
    tested: Tested,
    is_rejected: bool,
    alpha: float,
) -> Comparison:
    """The comparison with its verdict and interval.

    Args:
        comparison, by_seed, equal: as `_prepare` returns them.
        tested: its test.
        is_rejected: whether its effect is significant.
        alpha: the level at which it was tested.
    """
    metric, n, effect, std = comparison.metric, len(by_seed), tested.mean, tested.std
    if by_seed:
        comparison = replace(comparison, n_seeds=n, effect=effect, verdict="undecided")
    if n == 1:
        reason = f"{_say(metric, effect)} with 1 seed; a test needs at least 2"
        comparison = replace(comparison, reason=reason)
    elif n > 1:
        comparison = replace(comparison, p=tested.p)
        if is_rejected:
            comparison = replace(comparison, verdict="helps" if metric.sign * effect > 0 else "hurts")
        if std > 0:
            half, most = half_width(std, n, alpha), largest_difference(metric)
            low, high = max(effect - half, -most), min(effect + half, most)
            comparison = replace(comparison, low=low, high=high, level=1 - alpha)
            if not is_rejected:
                comparison = replace(comparison, seeds_needed=count_seeds_needed(effect, std, alpha, equal))
        else:
            comparison = replace(comparison, reason=_describe_equal(comparison, effect, n))
    return comparison


def _call_same(comparison: Comparison) -> Comparison:
    """A judged comparison with the verdict `same` instead."""
    comparison = replace(comparison, verdict="same", seeds_needed=None)
    if comparison.reason and comparison.p != 1:
        reason = f"{_say(comparison.metric, comparison.effect or 0.0)} in each of {comparison.n_seeds} seeds"
        comparison = replace(comparison, reason=reason)
    return comparison


def _describe_equal(comparison: Comparison, effect: float, n: int) -> str:
    """The reason if the difference is the same in all seeds."""
    if comparison.p == 1:
        return f"no difference in any of {n} seeds"
    tested = f"so only the signs are tested (p = {comparison.p:.2g})"
    return f"{_say(comparison.metric, effect)} in each of {n} seeds, {tested}"


def _say(metric: Metric, difference: float) -> str:
    return say_difference(metric, format_differences(metric, difference)[0])
