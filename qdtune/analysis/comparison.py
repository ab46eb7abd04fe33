"""One comparison of a question: its numbers, its verdict, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qdtune.spec.axes import ASKED_AT, AXES, axis_fields, axis_of, bits
from qdtune.spec.axis import Axis
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.metric_text import format_differences, say_difference, say_distance
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.looks import GIVEN_UP, LIVE, SAME
from qdtune.store.seed_tests import MAX_SEEDS

VERDICTS = ("helps", "hurts", "same", "undecided", "behind", "refused")
OBSTACLES = {  # kinds of refusals -> the reason in words; {} is the axis of the question
    "pruned": "a side was stopped early",
    "size": "sizes differ by more than 5 %",
    "failed": "training failed",
    "unfinished": "training did not finish",
    "confounded": "no pair differs in {} alone",
    "seeds": "no seed was trained on both sides",
    "waiting": "no pair of equal size that differs in {} alone is trained yet",
}
NAMED = (*ASKED_AT, "activation")  # the axes that a sentence names beside bits and depth, if they vary in the sweep
TOO_FEW_SEEDS = "too few seeds for an interval"  # said of an interval that holds more than the metric can reach
_MadeAt: Any = axis_fields("_MadeAt", ["weight_bits", "depth", "activation", *ASKED_AT], frozen=True)


@dataclass(frozen=True)
class Comparison(_MadeAt):
    """One comparison of a question, with its verdict, by the metric on the validation split.

    Attributes:
        axis: `depth` or `activation`: the only axis in which the two sides differ.
        value, baseline: the values of this axis on the two sides.
        weight_bits, depth, activation and the axes in `axes.ASKED_AT`: the setting, read from the side with `value`;
            None for an axis that has no effect, such as `scale` if nothing is quantised.
        verdict: one of `VERDICTS`.
        effect: the mean over seeds of the metric at `value` minus the metric at `baseline`; None if the
            comparison is refused. It favours `value` if it has the sign of the metric.
        low, high: the confidence interval of the effect; None if there is none.
        level: the confidence of the interval. It belongs to the level of the test, so the interval excludes zero if
            the verdict is significant, and only then. If the verdict is `same`, it belongs to the two one-sided
            tests, and the interval lies within the margin.
        p: the p value of the two-sided test before correction; None below two seeds.
        n_seeds: the number of seeds that both sides of every pair have.
        n_pairs: the number of pairs of configurations; the difference of a seed is the mean over them.
        size_bytes, baseline_bytes: the mean size of the two sides over the pairs; None if unknown.
        seeds_needed: the number of seeds that would be significant if mean and spread stay the same, 101 for more
            than 100; None if the verdict is significant already, or if more seeds would not help.
        curve_epoch, curve_effect: if a side was stopped early, the last QAT epoch of all sides and the mean
            difference at that epoch.
        behind: with the verdict `behind` the side that is behind, as in `names`; else empty. It was stopped, and is
            judged by curves like its own: no test and no interval (see `behind.py`).
        predicted_from: the QAT epoch at which that side was stopped.
        n_like: the number of finished curves that it was compared with; none of them gained what it would need.
        flags: remarks that belong to the verdict.
        reason: why it is refused, or what is said instead of the interval if there is none; else empty.
        obstacle: a key of `OBSTACLES` if it is refused; else empty.
        confounders: if no pair differs in `axis` alone, the other axes in which the nearest pair differs.
        metric: of the effect.
        look: in a sweep that adds seeds until comparisons are decided, the look, from 1, at which it got its verdict
            or was given up, or the last one so far; else None.
        ending: how it stands there, as in `looks.Walk`; else empty.
        most_seeds: the number of seeds at the last look; else None.
        same_within: the margin within which a difference is none; None if the sweep has none.
        p_same: the p value of the two one-sided tests of this margin before correction; None without it.
    """

    axis: str
    value: int | str
    baseline: int | str
    verdict: str = "refused"
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    p: float | None = None
    n_seeds: int = 0
    n_pairs: int = 0
    size_bytes: float | None = None
    baseline_bytes: float | None = None
    seeds_needed: int | None = None
    curve_epoch: int | None = None
    curve_effect: float | None = None
    behind: str = ""
    predicted_from: int | None = None
    n_like: int = 0
    flags: tuple[str, ...] = ()
    reason: str = ""
    obstacle: str = ""
    confounders: tuple[str, ...] = ()
    metric: Metric = ACCURACY
    look: int | None = None
    ending: str = ""
    most_seeds: int | None = None
    same_within: float | None = None
    p_same: float | None = None

    @property
    def is_significant(self) -> bool:
        """Whether the verdict is `helps` or `hurts`."""
        return self.verdict in ("helps", "hurts")

    @property
    def is_settled(self) -> bool:
        """Whether the verdict is proven by a test: `helps`, `hurts` or `same`."""
        return self.is_significant or self.verdict == "same"

    @property
    def is_interval_useless(self) -> bool:
        """Whether the interval reaches the largest difference that the metric can have, and proves nothing."""
        most = largest_difference(self.metric)
        return not self.is_significant and self.low is not None and (self.low <= -most or (self.high or 0) >= most)

    @property
    def names(self) -> tuple[str, str]:
        """The two sides in words: `depth 2`, `depth 1`; `relu`, `identity`."""
        before = "depth " if self.axis == "depth" else ""
        return f"{before}{self.value}", f"{before}{self.baseline}"

    @property
    def setting(self) -> str:
        """The setting in words: `At 2 bits (absmean, orthogonal)`."""
        return self.describe_setting(NAMED)

    def describe_setting(self, shown: Collection[str]) -> str:
        """The setting in words; of the axes in `NAMED` those in `shown`, and any activation but identity."""
        at = [describe_bits(self.weight_bits), *([f"depth {self.depth}"] if self.axis == "activation" else [])]
        has_between = self.axis == "depth" and ("activation" in shown or self.activation != "identity")
        between = self.activation if has_between else None
        asked = [axis for axis in AXES if axis.asked and axis.name in shown]
        first = [_describe_value(axis, getattr(self, axis.name)) for axis in asked if not axis.is_new]
        later = [_describe_value(axis, getattr(self, axis.name)) for axis in asked if axis.is_new]
        described = ", ".join(filter(None, [*first, between, *later]))
        return f"{' and '.join(at)} ({described})" if described else " and ".join(at)

    @property
    def hint(self) -> str:
        """How many seeds would be significant: `about 9`, `more than 100`; empty if unknown."""
        if not self.seeds_needed:
            return ""
        return f"more than {MAX_SEEDS}" if self.seeds_needed > MAX_SEEDS else f"about {self.seeds_needed}"

    @property
    def sentence(self) -> str:
        """The verdict in one or two sentences."""
        return self.describe(NAMED)

    def describe(self, shown: Collection[str]) -> str:
        """The verdict in one or two sentences; `shown` is as for `describe_setting`."""
        note = f" Note: {'; '.join(self.flags)}." if self.flags else ""
        return f"{self.describe_setting(shown)}, {self._describe_verdict()}{note}"

    def _describe_verdict(self) -> str:
        one, other = self.names
        if self.verdict == "refused":
            return f"{one} is not compared with {other}: {self.reason}."
        if self.verdict == "behind":
            return self._describe_behind()
        over = f"{self.n_seeds} seed{'s' if self.n_seeds > 1 else ''}"
        if self.n_pairs > 1:
            over += f" and {self.n_pairs} pairs"
        better = "better" if self.verdict == "helps" else "worse"
        versus = f"{one} is significantly {better} than {other}" if self.is_significant else f"{one} against {other}"
        if self.verdict == "same":
            versus = f"{one} is the same as {other} {self.margin_text}"
        if self.reason:
            return f"{versus}: {self.reason}{self._describe_look()}."
        assert None not in (self.effect, self.low, self.high, self.level)
        effect, low, high = format_differences(self.metric, self.effect, self.low, self.high)  # type: ignore[arg-type]
        effect = say_difference(self.metric, effect)
        interval = f"{100 * self.level:.4g} % interval {low} to {high}"  # type: ignore[operator]
        if self.is_interval_useless:
            interval = TOO_FEW_SEEDS
        if self.is_settled:
            return f"{versus}: {effect} ({interval}, {over}{self._describe_look()})."
        needed = f"; {self.hint} would be needed" if self.hint else ""
        return f"{versus}: {effect} ({interval}). {self._describe_open(over)}{needed}."

    @property
    def margin_text(self) -> str:
        """`within 0.3 points`; empty without a margin."""
        return "" if self.same_within is None else say_margin(self.metric, self.same_within)

    def _describe_look(self) -> str:
        """`, decided at look 2` or `, found at look 2`; empty without looks or without a proven verdict."""
        if self.look is None or not self.is_settled:
            return ""
        return f", {'found' if self.ending == SAME else 'decided'} at look {self.look}"

    def _describe_open(self, over: str) -> str:
        """`Not significant with 3 seeds`; with looks, whether it is given up or will get more seeds."""
        if self.ending == GIVEN_UP and self.n_seeds < (self.most_seeds or 0):
            return f"Given up at look {self.look} with {over}, because {self.most_seeds} would not decide it"
        if self.ending == LIVE:
            return f"Not decided at look {self.look} with {over}"
        return f"Not significant with {over}"

    def _describe_behind(self) -> str:
        ahead = next(name for name in self.names if name != self.behind)
        gap, sign = self.curve_effect, 1 if self.behind == self.names[0] else -1
        by = ""
        if gap is not None and sign * self.metric.sign * gap < 0:
            (text,) = format_differences(self.metric, abs(gap))
            by = f", {say_distance(self.metric, text.removeprefix('+'))} behind"
        return (
            f"{self.behind} is behind {ahead}: it was stopped at QAT epoch {self.predicted_from}{by}, and none of "
            f"the {self.n_like} finished trainings most like it gained as much as it would need."
        )

    @property
    def verdict_cell(self) -> str:
        """The verdict in a cell of a table; `behind` has the name of the side that is behind: `depth 3 behind`."""
        return f"{self.behind} behind" if self.verdict == "behind" else self.verdict


def _describe_value(axis: Axis, value: Any) -> str | None:
    """The value of an axis as a part of the setting; None if it is the usual value."""
    usual = (None, axis.before) if axis.is_new else (None,)
    return None if value in usual else str(axis.asked).format(value)


def describe_bits(n: int) -> str:
    """`At 1 bit`, `At 2 bits`, `With float weights`."""
    return f"{'With' if n == FLOAT_BITS else 'At'} {bits(n)}"


def wait_for_partner(comparison: Comparison) -> Comparison:
    """The comparison in a sweep that still trains: what is refused for lack of a partner may find one."""
    if comparison.obstacle not in ("size", "confounded"):
        return comparison
    reason = OBSTACLES["waiting"].format(comparison.axis)
    return replace(comparison, obstacle="waiting", reason=reason, confounders=())


def say_margin(metric: Metric, margin: float) -> str:
    """A margin in words, with all its digits: `within 0.3 points`, `within 0.02 in mae`."""
    text = say_distance(metric, f"{100 * margin if metric.is_fraction else margin:.6g}")
    return f"within {'1 point' if text == '1 points' else text}"


def largest_difference(metric: Metric) -> float:
    """The largest difference that two values of a metric can have; infinite for many."""
    low, high = metric.bounds
    return high - low


def named_settings(found: Sequence[Comparison], names: Sequence[str] = NAMED) -> list[str]:
    """The axes of `names` that have several values among comparisons, for `Comparison.describe`."""
    return [name for name in names if len(values_among(found, name)) > 1]


def values_among(found: Sequence[Comparison], name: str) -> set[Any]:
    """The values that an axis has among comparisons; None only if the axis may be null."""
    values = {getattr(one, name) for one in found}
    return values if axis_of(name).may_be_null else values - {None}
