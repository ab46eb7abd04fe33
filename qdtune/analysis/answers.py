"""The answers of a sweep in numbers and in sentences: which results are significant and which are not.

Every verdict is based on the validation split; test accuracies are only reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.analysis.comparison import Comparison, describe_bits
from qdtune.analysis.comparisons import compare_activations, compare_depths
from qdtune.analysis.pairs import SIZES_APART, find_sides
from qdtune.analysis.seed_tests import FAMILY_ALPHA, apply_holm, correct_p, t_test, win_shares
from qdtune.messages import format_count
from qdtune.spec.axes import AXIS_NAMES, axis_of, idle_at_depth
from qdtune.store.pareto_table import by_seed
from qdtune.store.tables import Table, rows_equal, rows_known, rows_where

MAX_RIVALS = 3  # rivals of the best configuration that its sentence names
SURE_SHARE = 0.95  # the share of draws from which a best depth is significant


@dataclass(frozen=True)
class Best:
    """The best configuration of at most `budget` bytes.

    Attributes:
        budget: bytes; None: no limit.
        row: the row of the Pareto table with the highest mean validation accuracy; None if nothing within the budget
            has finished.
        p_best: the share of bootstrap draws over seeds in which it is the best within the budget; None below two
            seeds.
        rivals: rows of the Pareto table within the budget that do not differ significantly from it (paired t test
            over shared seeds, Holm's correction), by falling accuracy. The test is slightly biased in its favour,
            because it was selected by its accuracy.
        varying: the axes with several values in this sweep.
        n_others: the number of other finished configurations within the budget.
    """

    budget: int | None
    row: dict[str, Any] | None
    p_best: float | None = None
    rivals: tuple[dict[str, Any], ...] = ()
    varying: tuple[str, ...] = ()
    n_others: int = 0

    @property
    def sentence(self) -> str:
        """The answer in a sentence."""
        row = self.row
        within = "" if self.budget is None else f" within {self.budget:,} bytes"
        if row is None:
            return f"No configuration{within} has finished."
        low, high = row["val_accuracy_low"], row["val_accuracy_high"]
        n = format_count(row["n_seeds"], "seed")
        spread = f"95 % interval {100 * low:.1f} to {100 * high:.1f}, {n}" if low is not None else n
        test = "" if row["test_accuracy"] is None else f" and {_as_percent(row['test_accuracy'])} on the test set"
        share = ""
        if self.p_best is not None and self.n_others:
            share = f" It is the best in {_as_percent(self.p_best, 0)} of bootstrap draws."
        return (
            f"The best configuration{within} is {self.label(row)}. It has {_as_percent(row['val_accuracy'])} on the "
            f"validation set ({spread}){test}.{share} {self._describe_rivals(n)}"
        )

    def _describe_rivals(self, seeds: str) -> str:
        if not self.n_others:
            return "No other configuration has finished."
        if not self.rivals:
            return "It is significantly better than every other configuration."
        if self.row and self.row["n_seeds"] == 1:
            return "With 1 seed no difference can be tested."
        named = "; ".join(self.label(rival) for rival in self.rivals[:MAX_RIVALS])
        more = f"; and {len(self.rivals) - MAX_RIVALS} more" if len(self.rivals) > MAX_RIVALS else ""
        return f"With {seeds} it is not significantly better than {named}{more}."

    def label(self, row: Mapping[str, Any]) -> str:
        """A row of the Pareto table in words: `depth 2, 4 bits, relu (9,563 bytes)`."""
        shown = ["depth", "weight_bits", *(["activation"] if row["depth"] > 1 else [])]
        idle = idle_at_depth(row["depth"])
        shown += [name for name in self.varying if name not in (*shown, *idle)]
        words = [axis_of(name).said(row[name]) for name in shown]
        return f"{', '.join(words)} ({row['size_bytes']:,} bytes)"


@dataclass(frozen=True)
class BestDepth:
    """The best depth at a number of bits or within a number of bytes; the other of the two is None.

    Attributes:
        weight_bits, budget: the bits or the bytes; every other axis may have any value.
        depth: the depth of the configuration with the highest mean validation accuracy.
        accuracy: this mean, a fraction.
        size_bytes: the size of this configuration.
        larger: whether it is more than 5 % larger than the best configuration of each other depth, because its size
            alone may then be the reason; always False within a budget, where sizes may differ.
        probabilities: depth -> the share, 0..1, of bootstrap draws over seeds in which it has the best configuration;
            empty if the best configuration has fewer than two seeds.
        p: the largest p value of paired t tests against the best configuration of each other depth, after Holm's
            correction over all numbers of bits, or all budgets; None if there is no other depth, or if the two
            configurations share fewer than two seeds.
    """

    weight_bits: int | None
    budget: int | None
    depth: int
    accuracy: float
    probabilities: dict[int, float]
    p: float | None
    size_bytes: int
    larger: bool

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
        if len(self.probabilities) == 1:
            return f"{where}, only depth {self.depth} has finished: {_as_percent(self.accuracy)}."
        mean = _as_percent(self.accuracy) + (f" at {self.size_bytes:,} bytes" if self.budget is None else "")
        if self.probability is None:
            return f"{where}, depth {self.depth} has the highest accuracy, {mean}. A test needs at least 2 seeds."
        others = {depth: p for depth, p in self.probabilities.items() if p >= 0.005 and depth != self.depth}
        rest = [f"depth {d} in {_as_percent(p, 0)}" for d, p in sorted(others.items(), key=lambda item: -item[1])]
        draws = ", ".join([f"best in {_as_percent(self.probability, 0)} of bootstrap draws", *rest])
        test = "no two seeds are shared" if self.p is None else f"corrected p = {self.p:.3g}"
        larger = " It is larger than the best configuration of every other depth." if self.larger else ""
        if self.decided:
            best = f"depth {self.depth} is significantly better than every other depth: {mean}"
            return f"{where}, {best} ({draws}; {test}).{larger}"
        best = f"depth {self.depth} has the highest mean accuracy, {mean}"
        return f"{where}, {best}. It is not significantly better ({draws}; {test}).{larger}"


@dataclass(frozen=True)
class Answers:
    """All answers of a sweep.

    Attributes:
        depth: the comparisons of depths.
        activation: the comparisons of activations between the factors.
        best: the best configuration within the budget.
        by_bits: the best depth at each number of bits, ascending.
        by_size: the best depth within each size of the front, ascending.
    """

    depth: tuple[Comparison, ...]
    activation: tuple[Comparison, ...]
    best: Best
    by_bits: tuple[BestDepth, ...]
    by_size: tuple[BestDepth, ...]

    @property
    def sentences(self) -> dict[str, tuple[str, ...]]:
        """Name of the attribute -> its sentences."""
        return {
            name: tuple(one.sentence for one in getattr(self, name))
            for name in ("depth", "activation", "by_bits", "by_size")
        } | {"best": (self.best.sentence,)}


def answer(trials: Table, history: Table, pareto: Table, budget: int | None = None) -> Answers:
    """The answers that the tables of one sweep give.

    Args:
        trials: one row per seed, as `columns.TRIALS`.
        history: one row per seed and epoch, as `columns.HISTORY`.
        pareto: one row per configuration, from `pareto_table.aggregate`.
        budget: bytes; None: no limit.
    """
    rows, accuracies = _rank_rows(trials, pareto)
    everything = find_sides(trials)
    return Answers(
        compare_depths(everything, history),
        compare_activations(everything, history),
        _find_best(rows, accuracies, budget),
        *_find_best_depths(rows, accuracies),
    )


def _rank_rows(trials: Table, pareto: Table) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """The ranked rows of the Pareto table by size, and their accuracies (n, S) by seed, NaN if a seed is missing."""
    keys = [*AXIS_NAMES, "dataset"]
    rows = sorted(rows_known(pareto, "pareto_rank").to_pylist(), key=_size_order)
    place = {tuple(row[name] for name in keys): i for i, row in enumerate(rows)}
    ok = rows_equal(trials, "state", "ok")
    owner = [place.get(key, -1) for key in zip(*(ok[name].to_pylist() for name in keys), strict=True)]
    ok, places = rows_where(ok, [i >= 0 for i in owner]), np.array([i for i in owner if i >= 0], dtype=np.int64)
    return rows, by_seed(places, ok["seed"], ok["val_accuracy"])


def _size_order(row: Mapping[str, Any]) -> tuple[int, str]:
    return row["size_bytes"], row["trial_id"]


def _find_best(rows: list[dict[str, Any]], accuracies: NDArray[np.float64], budget: int | None) -> Best:
    count = len(rows) if budget is None else sum(row["size_bytes"] <= budget for row in rows)
    if not count:
        return Best(budget, None)
    varying = tuple(axis for axis in AXIS_NAMES if len({row[axis] for row in rows}) > 1)
    best = _find_top(rows[:count])
    rejected, _ = apply_holm(t_test(accuracies[best] - np.delete(accuracies[:count], best, axis=0)).p)
    others = [row for i, row in enumerate(rows[:count]) if i != best]
    rivals = [row for row, is_other in zip(others, rejected, strict=True) if not is_other]
    p_best = None
    if rows[best]["n_seeds"] > 1:
        p_best = float(win_shares(accuracies[:count], [np.arange(count)])[0][best])
    rivals.sort(key=lambda row: (-row["val_accuracy"], _size_order(row)))
    return Best(budget, rows[best], p_best, tuple(rivals), varying, len(others))


def _find_best_depths(
    rows: list[dict[str, Any]], accuracies: NDArray[np.float64]
) -> tuple[tuple[BestDepth, ...], tuple[BestDepth, ...]]:
    """The best depth at each number of bits, and within each size of the front."""
    sizes = np.array([row["size_bytes"] for row in rows])
    places: dict[tuple[int | None, int | None], NDArray[np.int64]] = {}
    for n in sorted({row["weight_bits"] for row in rows}):
        places[n, None] = np.flatnonzero([row["weight_bits"] == n for row in rows])
    for size in sorted({row["size_bytes"] for row in rows if row["is_pareto"]}):
        places[None, size] = np.flatnonzero(sizes <= size)
    found = []
    for (n, size), group, shares in zip(
        places, places.values(), win_shares(accuracies, [*places.values()]), strict=True
    ):
        best = rows[group[_find_top([rows[i] for i in group])]]
        depths = np.array([rows[i]["depth"] for i in group])
        # In order of falling accuracy, the first row of each depth is its best.
        ranking = sorted(group, key=lambda i: -rows[i]["val_accuracy"])
        firsts = {rows[i]["depth"]: i for i in reversed(ranking)}
        p = t_test(accuracies[firsts.pop(best["depth"])] - accuracies[list(firsts.values())]).p
        larger = (
            size is None
            and bool(firsts)
            and best["size_bytes"] > (1 + SIZES_APART) * max(sizes[list(firsts.values())])
        )
        probabilities = {int(d): float(shares[depths == d].sum()) for d in np.unique(depths)}
        known = probabilities if best["n_seeds"] > 1 or len(probabilities) == 1 else {}
        found.append(
            BestDepth(
                n,
                size,
                best["depth"],
                best["val_accuracy"],
                known,
                _find_largest(p),
                best["size_bytes"],
                bool(larger),
            )
        )
    return _correct_family(b for b in found if b.budget is None), _correct_family(
        b for b in found if b.budget is not None
    )


def _correct_family(family: Iterable[BestDepth]) -> tuple[BestDepth, ...]:
    """The same with corrected p values, because one of many numbers of bits would be significant by chance."""
    family = tuple(family)
    p = correct_p(np.array([np.nan if one.p is None else one.p for one in family]))
    return tuple(
        replace(one, p=None if one.p is None else float(value)) for one, value in zip(family, p, strict=True)
    )


def _find_top(rows: list[dict[str, Any]]) -> int:
    """The index of the highest mean accuracy; of equal accuracies the first, which is the smallest in bytes."""
    return max(range(len(rows)), key=lambda i: (rows[i]["val_accuracy"], -i))


def _find_largest(p: NDArray[np.float64]) -> float | None:
    return float(p.max()) if len(p) and np.isfinite(p).all() else None


def _as_percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"
