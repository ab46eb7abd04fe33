"""The best depth at a number of bits or within a cost, such as bytes: its numbers, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qdtune.analysis.best import LEAST_DRAWN, as_percent, name_first, say_first
from qdtune.analysis.comparison import describe_bits
from qdtune.spec.metric_text import best_word, say_metric, value_text
from qdtune.spec.objectives import DEFAULT_COSTS, Objective, say_larger, say_list
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.seed_tests import FAMILY_ALPHA

# How depths ended that were not trained to their end, or not within the budget.
STOPPED, FAILED, TOO_LARGE = "stopped early", "failed", "too large"
LEAST_SHARE = 0.01  # of the draws, from which a depth is named that is not the best
SURE_SHARE = 0.95  # the share of draws from which a best depth is significant


@dataclass(frozen=True)
class BestDepth:
    """The best depth at a number of bits or within a cost; the other of the two is None.

    Attributes:
        weight_bits, budget: the bits, or the first of `costs`, such as bytes; every other axis may have any value.
        depth: the depth of the configuration with the best mean on the validation split.
        value: this mean.
        spent: the costs of this configuration, by name.
        more: the costs of which it has over 5 % more than the best configuration of each other depth, because these
            alone may then be the reason; always empty within a budget, where costs may differ.
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
        costs: of the front.
    """

    weight_bits: int | None
    budget: int | None
    depth: int
    value: float
    probabilities: dict[int, float]
    p: float | None
    spent: Mapping[str, int]
    more: tuple[Objective, ...]
    n_seeds: int
    ended: dict[int, str]
    metric: Metric = ACCURACY
    setting: dict[str, str] = field(default_factory=dict)
    n_tested: int | None = None
    costs: tuple[Objective, ...] = DEFAULT_COSTS

    @property
    def first_seeds(self) -> str:
        """`the first 3 seeds`, if the test uses these alone; else empty."""
        return "" if self.n_tested is None else name_first(self.n_tested)

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
        if self.weight_bits is None:
            where = f"Within {self.costs[0].say(self.budget or 0)}"
        else:
            where = describe_bits(self.weight_bits)
        value = say_metric(self.metric, self.value)
        if self.is_alone:
            return f"{where}, {self.describe_alone(value)}."
        spent = [cost.say(self.spent[cost.name]) for cost in self.costs]
        size = f" at {say_list(spent)}" if self.budget is None else ""
        mean, mean_value = f"{value}{size}", f"{value_text(self.metric, self.value)}{size}"
        named = self.named
        if self.probability is None:
            best = f"{best_word(self.metric)} {self.metric.name}, {mean_value}"
            return f"{where}, {named} has the {best}. A test needs at least 2 seeds."
        test = "no two seeds are shared" if self.p is None else f"corrected p = {self.p:.3g}"
        draws = self._describe_draws() if (self.n_tested or self.n_seeds) >= LEAST_DRAWN else ""
        # A p of 1 says no more than the verdict.
        proof = "; ".join(part for part in (draws, test) if part and part != "corrected p = 1")
        proof = f" ({proof})" if proof else ""
        than = "than the best configuration of every other depth"
        larger = f" It {say_larger(self.more)} {than}." if self.more else ""
        if self.decided:
            first = f", tested with {self.first_seeds}" if self.first_seeds else ""
            best = f"{named} is significantly better than every other depth: {mean}"
            return f"{where}, {best}{proof}{first}.{larger}"
        best = f"{named} has the {best_word(self.metric)} mean {self.metric.name}, {mean_value}"
        return f"{where}, {best}. {say_first('It', self.n_tested)} is not significantly better{proof}.{larger}"

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
        rest = [f"depth {d} in {as_percent(p, 0)}" for d, p in sorted(others.items(), key=lambda item: -item[1])]
        return ", ".join([f"best in {as_percent(self.probability or 0, 0)} of bootstrap draws", *rest])


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


def _name_depths(depths: Sequence[int]) -> str:
    """`depth 2`, `depths 2 and 4`, `depths 2 to 4`; ascending."""
    *first, last = map(str, depths)
    if not first:
        return f"depth {last}"
    if len(depths) > 2 and depths[-1] - depths[0] == len(depths) - 1:
        return f"depths {first[0]} to {last}"
    return f"depths {', '.join(first)} and {last}"
