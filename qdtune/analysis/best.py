"""The best configuration and the best depth: their numbers, and the sentences that say them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qdtune.analysis.comparison import TOO_FEW_SEEDS, describe_bits
from qdtune.messages import format_count
from qdtune.spec.axes import axis_of, idle_at_depth
from qdtune.spec.metric_text import best_word, say_interval, say_metric, value_text
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.seed_tests import FAMILY_ALPHA, equal_within

MAX_RIVALS = 3  # rivals of the best configuration that its sentence names
# How depths ended that were not trained to their end, or not within the budget.
STOPPED, FAILED, TOO_LARGE = "stopped early", "failed", "too large"
LEAST_SHARE = 0.01  # of the draws, from which a depth is named that is not the best
SURE_SHARE = 0.95  # the share of draws from which a best depth is significant
LEAST_DRAWN = 3  # seeds from which a share of bootstrap draws is said: two seeds have but three different draws


@dataclass(frozen=True)
class Best:
    """The best configuration of at most `budget` bytes.

    Attributes:
        budget: bytes; None: no limit.
        row: the row of the Pareto table with the best mean on the validation split; None if nothing within the budget
            has finished.
        p_best: the share of bootstrap draws over seeds in which it is the best within the budget; None below two
            seeds.
        rivals: rows of the Pareto table within the budget that do not differ significantly from it (paired t test
            over shared seeds, Holm's correction), from best to worst. The test is slightly biased in its favour,
            because the same metric selected it.
        varying: the axes with several values in this sweep, finished or not, where they have an effect.
        n_others: the number of other finished configurations within the budget.
        metric: that judges.
        n_tested: the number of first seeds that the test and the draws use; None: all.
        n_tied: the number of other configurations with the same mean and the same bytes.
    """

    budget: int | None
    row: dict[str, Any] | None
    p_best: float | None = None
    rivals: tuple[dict[str, Any], ...] = ()
    varying: tuple[str, ...] = ()
    n_others: int = 0
    metric: Metric = ACCURACY
    n_tested: int | None = None
    n_tied: int = 0

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        row, metric = self.row, self.metric
        if row is None:
            return f"No configuration{self._within} has finished."
        n = format_count(row["n_seeds"], "seed")
        test = "" if row[metric.test] is None else f" and {value_text(metric, row[metric.test])} on the test set"
        share = ""
        if self.p_best is not None and self.n_others and row["n_seeds"] >= LEAST_DRAWN:
            share = f" It is the best in {_as_percent(self.p_best, 0)} of bootstrap draws{self._of_first}."
        value = f"{say_metric(metric, row[metric.val])} on the validation set ({_describe_spread(row, metric, n)})"
        return (
            f"The best configuration{self._within} is {self.label(row)}. It has {value}{test}."
            f"{self._describe_ties()}{share} {self._describe_rivals(n)}"
        )

    @property
    def short_sentence(self) -> str:
        """The answer in short: its value, and how many others it beats; empty if nothing has finished."""
        row = self.row
        if row is None:
            return ""
        value = say_metric(self.metric, row[self.metric.val])
        best = f"The best configuration{self._within} is {self.label(row)}: {value} on the validation set."
        if not self.n_others or row["n_seeds"] == 1:
            return best
        best, it = f"{best}{self._describe_ties()}", _say_first("It", self.n_tested)
        beaten = self.n_others - len(self.rivals)
        if beaten == self.n_others:
            return f"{best} {it} is significantly better than every other configuration."
        if not beaten:
            return f"{best} {it} is not significantly better than any other configuration."
        return f"{best} {it} is significantly better than {beaten} of {self.n_others} others."

    @property
    def _within(self) -> str:
        return "" if self.budget is None else f" within {format_count(self.budget, 'byte')}"

    @property
    def _of_first(self) -> str:
        return "" if self.n_tested is None else f" of {_name_first(self.n_tested)}"

    def _describe_ties(self) -> str:
        """` 3 configurations tie: the same mean and the same bytes.`; empty if it is alone."""
        if not self.n_tied:
            return ""
        return f" {self.n_tied + 1} configurations tie: the same mean and the same bytes."

    def _describe_rivals(self, seeds: str) -> str:
        if not self.n_others:
            return f"No other configuration{self._within} has finished."
        if not self.rivals:
            return f"{_say_first('It', self.n_tested)} is significantly better than every other configuration."
        if self.row and self.row["n_seeds"] == 1:
            return "With 1 seed no difference can be tested."
        count, named = len(self.rivals), _join([self.label(rival) for rival in self.rivals[:MAX_RIVALS]])
        if count == self.n_others > MAX_RIVALS:
            named = "any other configuration"
        elif count > MAX_RIVALS:
            named = f"{count} of {self.n_others} others, such as {named}"
        seeds = seeds if self.n_tested is None else _name_first(self.n_tested)
        return f"With {seeds} it is not significantly better than {named}."

    def label(self, row: Mapping[str, Any]) -> str:
        """A row of the Pareto table in words, with the axes that vary: `depth 2, 4 bits, relu (9,563 bytes)`."""
        words = [axis_of(name).said(row[name]) for name in ("depth", "weight_bits")]
        words += describe_setting(row, self.varying, "depth", "weight_bits").values()
        return f"{', '.join(words)} ({row['size_bytes']:,} bytes)"


def describe_setting(row: Mapping[str, Any], varying: Sequence[str], *asked: str) -> dict[str, str]:
    """Axis -> the value in words of a row, for each axis that varies and has an effect in it.

    Args:
        row: of the Pareto table.
        varying: the axes with several values in the sweep.
        asked: axes that are left out, because the sentence says them anyway.
    """
    hidden = (*asked, *idle_at_depth(row["depth"]))
    return {name: axis_of(name).said(row[name]) for name in varying if name not in hidden}


@dataclass(frozen=True)
class BestDepth:
    """The best depth at a number of bits or within a number of bytes; the other of the two is None.

    Attributes:
        weight_bits, budget: the bits or the bytes; every other axis may have any value.
        depth: the depth of the configuration with the best mean on the validation split.
        value: this mean.
        size_bytes: the size of this configuration.
        larger: whether it is more than 5 % larger than the best configuration of each other depth, because its size
            alone may then be the reason; always False within a budget, where sizes may differ.
        probabilities: depth -> the share, 0..1, of bootstrap draws over seeds in which it has the best configuration;
            empty if the best configuration has fewer than two seeds.
        p: the largest p value of paired t tests against the best configuration of each other depth, after Holm's
            correction over all numbers of bits, or all budgets; None if there is no other depth, or if the two
            configurations share fewer than two seeds.
        n_seeds: the number of seeds of the best configuration.
        ended: depth -> how all its configurations there ended, for each depth of which none was trained to its end:
            `stopped early`, `failed` or `stopped early or failed`; `too large` if all of them are larger than the
            budget.
        metric: that judges.
        setting: axis -> value in words of the best configuration, for each further axis that varies in the sweep.
        n_tested: the number of first seeds that the test and the draws use; None: all.
    """

    weight_bits: int | None
    budget: int | None
    depth: int
    value: float
    probabilities: dict[int, float]
    p: float | None
    size_bytes: int
    larger: bool
    n_seeds: int
    ended: dict[int, str]
    metric: Metric = ACCURACY
    setting: dict[str, str] = field(default_factory=dict)
    n_tested: int | None = None

    @property
    def first_seeds(self) -> str:
        """`the first 3 seeds`, if the test uses these alone; else empty."""
        return "" if self.n_tested is None else _name_first(self.n_tested)

    @property
    def named(self) -> str:
        """The best configuration in words: `depth 2 (relu, hidden 24)`."""
        return f"depth {self.depth} ({', '.join(self.setting.values())})" if self.setting else f"depth {self.depth}"

    @property
    def is_alone(self) -> bool:
        """Whether no other depth was trained to its end."""
        return len(self.probabilities) == 1

    @property
    def probability(self) -> float | None:
        """The probability of `depth`; None if unknown."""
        return self.probabilities.get(self.depth)

    @property
    def decided(self) -> bool:
        """Whether the probability is at least `SURE_SHARE` and a t test agrees.

        The bootstrap alone is overconfident with few seeds: if all of three seeds favour one side, which happens by
        chance one time in four, every draw favours it.
        """
        return self.p is not None and self.p <= FAMILY_ALPHA and (self.probability or 0) >= SURE_SHARE

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        where = f"Within {self.budget:,} bytes" if self.weight_bits is None else describe_bits(self.weight_bits)
        value = say_metric(self.metric, self.value)
        if self.is_alone:
            return f"{where}, {self.describe_alone(value)}."
        size = f" at {self.size_bytes:,} bytes" if self.budget is None else ""
        mean, mean_value = f"{value}{size}", f"{value_text(self.metric, self.value)}{size}"
        named = self.named
        if self.probability is None:
            best = f"{best_word(self.metric)} {self.metric.name}, {mean_value}"
            return f"{where}, {named} has the {best}. A test needs at least 2 seeds."
        test = "no two seeds are shared" if self.p is None else f"corrected p = {self.p:.3g}"
        draws = self._describe_draws() if self.n_seeds >= LEAST_DRAWN else ""
        # A p of 1 says no more than the verdict.
        proof = "; ".join(part for part in (draws, test) if part and part != "corrected p = 1")
        proof = f" ({proof})" if proof else ""
        larger = " It is larger than the best configuration of every other depth." if self.larger else ""
        if self.decided:
            first = f", tested with {self.first_seeds}" if self.first_seeds else ""
            best = f"{named} is significantly better than every other depth: {mean}"
            return f"{where}, {best}{proof}{first}.{larger}"
        best = f"{named} has the {best_word(self.metric)} mean {self.metric.name}, {mean_value}"
        return f"{where}, {best}. {_say_first('It', self.n_tested)} is not significantly better{proof}.{larger}"

    def describe_alone(self, value: str = "") -> str:
        """How the other depths ended, if this one is alone: `only depth 1 was trained to its end: depth 2 failed`.

        Args:
            value: of this depth; empty: it is left out.
        """
        colon = f": {value}" if value else ""
        if not self.ended:
            return f"only depth {self.depth} has finished{colon}"
        if set(self.ended.values()) == {TOO_LARGE}:
            within = " within the budget" if self.budget is None else ""
            return f"only depth {self.depth} was trained{within}{colon}"
        brackets = f" ({value})" if value else ""
        return f"only depth {self.depth} was trained to its end{brackets}: {describe_ended(self.ended)}"

    def _describe_draws(self) -> str:
        """`best in 90 % of bootstrap draws, depth 1 in 10 %`, without depths that are rarely the best."""
        others = {depth: p for depth, p in self.probabilities.items() if p >= LEAST_SHARE and depth != self.depth}
        rest = [f"depth {d} in {_as_percent(p, 0)}" for d, p in sorted(others.items(), key=lambda item: -item[1])]
        return ", ".join([f"best in {_as_percent(self.probability or 0, 0)} of bootstrap draws", *rest])


def describe_ended(ended: Mapping[int, str]) -> str:
    """How depths ended: `depths 2 to 4 were stopped early`, `depth 2 was stopped early; depth 4 failed`.

    Args:
        ended: depth -> how, as in `BestDepth.ended`.
    """
    parts = []
    for how in dict.fromkeys(ended.values()):
        depths = sorted(depth for depth, other in ended.items() if other == how)
        was = {FAILED: "", TOO_LARGE: "is " if len(depths) == 1 else "are "}.get(how)
        if was is None:
            was = "was " if len(depths) == 1 else "were "
        parts.append(f"{_name_depths(depths)} {was}{how}")
    return "; ".join(parts)


def _name_first(count: int) -> str:
    """`the first 3 seeds`."""
    return f"the first {format_count(count, 'seed')}"


def _say_first(who: str, n_tested: int | None) -> str:
    """The beginning of a sentence about a test with the first seeds: `With the first 3 seeds it`, or `It`."""
    return who if n_tested is None else f"With {_name_first(n_tested)} {who[0].lower()}{who[1:]}"


def _join(labels: Sequence[str]) -> str:
    """`A`, `A and B`, `A; B and C`: labels have commas of their own."""
    *first, last = labels
    return f"{'; '.join(first)} and {last}" if first else last


def _name_depths(depths: Sequence[int]) -> str:
    """`depth 2`, `depths 2 and 4`, `depths 2 to 4`; ascending."""
    *first, last = map(str, depths)
    if not first:
        return f"depth {last}"
    if len(depths) > 2 and depths[-1] - depths[0] == len(depths) - 1:
        return f"depths {first[0]} to {last}"
    return f"depths {', '.join(first)} and {last}"


def _describe_spread(row: Mapping[str, Any], metric: Metric, seeds: str) -> str:
    """The 95 % interval on the validation split in words, and the number of seeds."""
    low, high = row[f"{metric.val}_low"], row[f"{metric.val}_high"]
    if low is None:
        return seeds
    if high - low <= equal_within(metric, [low, high]):
        return f"the same in each of {seeds}"
    if low <= metric.bounds[0] and high >= metric.bounds[1]:
        return f"{TOO_FEW_SEEDS}, {seeds}"
    return f"95 % interval {say_interval(metric, low, high)}, {seeds}"


def _as_percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"
