"""The best configuration: its numbers, and the sentences that say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdtune.analysis.comparison import TOO_FEW_SEEDS
from qdtune.messages import format_count
from qdtune.spec.axes import axis_of, idle_at_depth
from qdtune.spec.metric_text import say_interval, say_metric, value_text
from qdtune.spec.objectives import DEFAULT_COSTS, Objective, say_costs, say_list
from qdtune.spec.tasks import ACCURACY, Metric
from qdtune.store.seed_tests import equal_within

MAX_RIVALS = 3  # rivals of the best configuration that its sentence names
LEAST_DRAWN = 3  # seeds from which a share of bootstrap draws is said: two seeds have but three different draws


@dataclass(frozen=True)
class Best:
    """The best configuration of at most `budget` bytes.

    Attributes:
        budget: bytes; None: no limit.
        row: the row of the Pareto table with the best mean on the validation split; None if nothing within the budget
            has finished.
        p_best: the share of bootstrap draws over seeds in which it is the best within the budget; None below two
            seeds that are tested.
        rivals: rows of the Pareto table within the budget that do not differ significantly from it (paired t test
            over shared seeds, Holm's correction), from best to worst. The test is slightly biased in its favour,
            because the same metric selected it.
        varying: the axes with several values in this sweep, finished or not, where they have an effect.
        n_others: the number of other finished configurations within the budget.
        metric: that judges.
        n_tested: the number of first seeds that the test and the draws use; None: all.
        n_tied: the number of other configurations with the same mean and the same costs.
        costs: of the front.
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
    costs: tuple[Objective, ...] = DEFAULT_COSTS

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        row, metric = self.row, self.metric
        if row is None:
            return f"No configuration{self._within} has finished."
        n = format_count(row["n_seeds"], "seed")
        test = "" if row[metric.test] is None else f" and {value_text(metric, row[metric.test])} on the test set"
        share = ""
        if self.p_best is not None and self.n_others and (self.n_tested or row["n_seeds"]) >= LEAST_DRAWN:
            share = f" It is the best in {as_percent(self.p_best, 0)} of bootstrap draws{self._of_first}."
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
        if not self.n_others or (self.n_tested or row["n_seeds"]) == 1:
            return best
        best, it = f"{best}{self._describe_ties()}", say_first("It", self.n_tested)
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
        return "" if self.n_tested is None else f" of {name_first(self.n_tested)}"

    def _describe_ties(self) -> str:
        """` 3 configurations tie: the same mean and the same bytes.`; empty if it is alone."""
        if not self.n_tied:
            return ""
        same = say_list([cost.head for cost in self.costs])
        return f" {self.n_tied + 1} configurations tie: the same mean and the same {same}."

    def _describe_rivals(self, seeds: str) -> str:
        if not self.n_others:
            return f"No other configuration{self._within} has finished."
        if not self.rivals:
            return f"{say_first('It', self.n_tested)} is significantly better than every other configuration."
        if self.row and (self.n_tested or self.row["n_seeds"]) == 1:
            return f"With {seeds if self.n_tested is None else name_first(1)} no difference can be tested."
        count, named = len(self.rivals), _join([self.label(rival) for rival in self.rivals[:MAX_RIVALS]])
        if count == self.n_others > MAX_RIVALS:
            named = "any other configuration"
        elif count > MAX_RIVALS:
            named = f"{count} of {self.n_others} others, such as {named}"
        seeds = seeds if self.n_tested is None else name_first(self.n_tested)
        return f"With {seeds} it is not significantly better than {named}."

    def label(self, row: Mapping[str, Any]) -> str:
        """A row of the Pareto table in words, with the axes that vary: `depth 2, 4 bits, relu (9,563 bytes)`."""
        words = [axis_of(name).said(row[name]) for name in ("depth", "weight_bits")]
        words += describe_setting(row, self.varying, "depth", "weight_bits").values()
        return f"{', '.join(words)} ({say_costs(self.costs, row)})"


def describe_setting(row: Mapping[str, Any], varying: Sequence[str], *asked: str) -> dict[str, str]:
    """Axis -> the value in words of a row, for each axis that varies and has an effect in it.

    Args:
        row: of the Pareto table.
        varying: the axes with several values in the sweep.
        asked: axes that are left out, because the sentence says them anyway.
    """
    hidden = (*asked, *idle_at_depth(row["depth"]))
    said = {name: axis_of(name).said(row[name]) for name in varying if name not in hidden}
    return {name: words for name, words in said.items() if words}


def name_first(count: int) -> str:
    """`the first 3 seeds`, `the first seed`."""
    return "the first seed" if count == 1 else f"the first {format_count(count, 'seed')}"


def say_first(who: str, n_tested: int | None) -> str:
    """The beginning of a sentence about a test with the first seeds: `With the first 3 seeds it`, or `It`."""
    return who if n_tested is None else f"With {name_first(n_tested)} {who[0].lower()}{who[1:]}"


def _join(labels: Sequence[str]) -> str:
    """`A`, `A and B`, `A; B and C`: labels have commas of their own."""
    *first, last = labels
    return f"{'; '.join(first)} and {last}" if first else last


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


def as_percent(fraction: float, digits: int = 1) -> str:
    """A fraction in percent: `90 %`."""
    return f"{100 * fraction:.{digits}f} %"
