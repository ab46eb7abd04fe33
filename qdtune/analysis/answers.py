"""The answers of a sweep, in numbers and in sentences to be read aloud: what is decided, and what is not.

Everything is judged on the validation split; test accuracies are only reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdtune.analysis.comparisons import Comparison, at_bits, compare_activations, compare_depths
from qdtune.analysis.pairs import SIZES_APART, sides
from qdtune.analysis.seed_tests import ALPHA, corrected, holm, paired, win_shares
from qdtune.spec.axes import AXIS_NAMES, axis_of, idle_at_depth
from qdtune.store.pareto_table import by_seed
from qdtune.store.tables import Table, rows_equal, rows_known, rows_where

NAMED = 3  # rivals of the best that are named
SURE = 0.95  # probability from which a best depth is called decided


@dataclass(frozen=True)
class Best:
    """The best configuration of at most `budget` bytes.

    Attributes:
        budget: bytes; None: no limit.
        row: of the Pareto table, the one of the highest mean validation accuracy; None where nothing that small has
            finished.
        p_best: the share of bootstrap draws over seeds in which it is the best within the budget; None below two
            seeds.
        rivals: rows of the Pareto table within the budget that are not told apart from it (paired t test over shared
            seeds, Holm's correction), by falling accuracy. That it was chosen for its accuracy flatters it a little.
        varying: the axes that tell configurations of this sweep apart.
    """

    budget: int | None
    row: dict[str, Any] | None
    p_best: float | None = None
    rivals: tuple[dict[str, Any], ...] = ()
    varying: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The answer, to be read aloud."""
        within = "Of any size" if self.budget is None else f"Within {self.budget:,} bytes"
        row = self.row
        if row is None:
            return f"{within} nothing has finished."
        n = f"{row['n_seeds']} seed{'s' if row['n_seeds'] > 1 else ''}"
        low, high = row["val_accuracy_low"], row["val_accuracy_high"]
        spread = f"95 % interval {100 * low:.1f} to {100 * high:.1f}, {n}" if low is not None else n
        text = f"{within} the best is {self.label(row)}: {_percent(row['val_accuracy'])} on the validation split"
        text += f" ({spread})"
        if row["test_accuracy"] is not None:
            text += f", {_percent(row['test_accuracy'])} on the test set"
        if self.p_best is not None:
            text += f"; the best in {_percent(self.p_best, 0)} of the draws over seeds"
        return f"{text}. {self._rivals(n)}"

    def _rivals(self, seeds: str) -> str:
        if not self.rivals:
            return "It is told apart from all others."
        named = "; ".join(self.label(rival) for rival in self.rivals[:NAMED])
        more = f"; and {len(self.rivals) - NAMED} more" if len(self.rivals) > NAMED else ""
        return f"A t test over {seeds} does not tell it apart from {named}{more}."

    def label(self, row: Mapping[str, Any]) -> str:
        """A row of the Pareto table in words: `depth 2, 4 bits, relu (9,563 bytes)`."""
        told = ["depth", "weight_bits", *(["activation"] if row["depth"] > 1 else [])]
        idle = idle_at_depth(row["depth"])
        told += [name for name in self.varying if name not in (*told, *idle)]
        words = [axis_of(name).said(row[name]) for name in told]
        return f"{', '.join(words)} ({row['size_bytes']:,} bytes)"


@dataclass(frozen=True)
class BestDepth:
    """The best depth at a number of bits, or within a number of bytes: the one of the two that is not None.

    Attributes:
        weight_bits, budget: where it is the best, whatever the other axes.
        depth: that of the highest mean validation accuracy.
        accuracy: that mean, a fraction.
        size_bytes: of that configuration.
        larger: whether it is more than 5 % larger than the best configuration of each other depth, which alone may
            be why it is ahead; within a budget sizes are the question, and it is False.
        probabilities: of each depth that occurs, 0..1: the share of bootstrap draws over seeds in which it has the
            best configuration; empty where the best one has less than two seeds.
        p: the largest of a paired t test against the best configuration of each other depth, after Holm's correction
            over all numbers of bits, or all budgets; None where there is no other, or no two seeds are shared.
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
        """Of `depth`; None where it is not known."""
        return self.probabilities.get(self.depth)

    @property
    def decided(self) -> bool:
        """Whether the probability is `SURE` or more and a t test agrees: a bootstrap of few seeds is sure too soon.

        Where all of three favour one side, as chance alone makes them one time in four, no draw speaks against it.
        """
        return self.p is not None and self.p <= ALPHA and (self.probability or 0) >= SURE

    @property
    def sentence(self) -> str:
        """The answer, to be read aloud."""
        where = f"Within {self.budget:,} bytes" if self.weight_bits is None else at_bits(self.weight_bits)
        if len(self.probabilities) == 1:
            return f"{where} depth {self.depth} alone has finished, with {_percent(self.accuracy)}."
        if self.probability is None:
            return f"{where} depth {self.depth} has {_percent(self.accuracy)}, the highest: one seed decides nothing."
        others = {depth: p for depth, p in self.probabilities.items() if p >= 0.005 and depth != self.depth}
        rest = [f"depth {d} in {_percent(p, 0)}" for d, p in sorted(others.items(), key=lambda item: -item[1])]
        draws = ", ".join([f"best in {_percent(self.probability, 0)} of the draws over seeds", *rest])
        test = "no two seeds are shared" if self.p is None else f"corrected p = {self.p:.3g} in a t test over seeds"
        mean = _percent(self.accuracy) + (f" at {self.size_bytes:,} bytes" if self.budget is None else "")
        verdict = f"is best, with {mean}" if self.decided else f"has the highest mean, {mean}: not decided"
        why = " It is larger than the best of any other depth." if self.larger else ""
        return f"{where} depth {self.depth} {verdict} ({draws}; {test}).{why}"


@dataclass(frozen=True)
class Answers:
    """All answers of a sweep; `sentences` says them.

    Attributes:
        depth: does depth help?
        activation: does an activation between the factors help?
        best: what is best within the budget?
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
        """The sentences of each question, by the name of the attribute."""
        return {
            name: tuple(one.sentence for one in getattr(self, name))
            for name in ("depth", "activation", "by_bits", "by_size")
        } | {"best": (self.best.sentence,)}


def answer(trials: Table, history: Table, pareto: Table, budget: int | None = None) -> Answers:
    """The answers in the tables of one sweep.

    Args:
        trials: one row per seed, as `columns.TRIALS`.
        history: one row per seed and epoch, as `columns.HISTORY`.
        pareto: one row per configuration, as `pareto_table.aggregate` gives it.
        budget: bytes; None: no limit.
    """
    rows, accuracies = _finished(trials, pareto)
    everything = sides(trials)
    return Answers(
        compare_depths(everything, history),
        compare_activations(everything, history),
        _best(rows, accuracies, budget),
        *_best_depths(rows, accuracies),
    )


def _finished(trials: Table, pareto: Table) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
    """The ranked rows of the Pareto table by size, and their accuracies by seed (n, S), NaN where there is none."""
    keys = [*AXIS_NAMES, "dataset"]
    rows = sorted(rows_known(pareto, "pareto_rank").to_pylist(), key=_by_size)
    place = {tuple(row[name] for name in keys): i for i, row in enumerate(rows)}
    ok = rows_equal(trials, "state", "ok")
    owner = [place.get(key, -1) for key in zip(*(ok[name].to_pylist() for name in keys), strict=True)]
    ok, places = rows_where(ok, [i >= 0 for i in owner]), np.array([i for i in owner if i >= 0], dtype=np.int64)
    return rows, by_seed(places, ok["seed"], ok["val_accuracy"])


def _by_size(row: Mapping[str, Any]) -> tuple[int, str]:
    return row["size_bytes"], row["trial_id"]


def _best(rows: list[dict[str, Any]], accuracies: NDArray[np.float64], budget: int | None) -> Best:
    count = len(rows) if budget is None else sum(row["size_bytes"] <= budget for row in rows)
    if not count:
        return Best(budget, None)
    varying = tuple(axis for axis in AXIS_NAMES if len({row[axis] for row in rows}) > 1)
    best = _top(rows[:count])
    rejected, _ = holm(paired(accuracies[best] - np.delete(accuracies[:count], best, axis=0)).p)
    others = [row for i, row in enumerate(rows[:count]) if i != best]
    rivals = [row for row, apart in zip(others, rejected, strict=True) if not apart]
    p_best = None
    if rows[best]["n_seeds"] > 1:
        p_best = float(win_shares(accuracies[:count], [np.arange(count)])[0][best])
    rivals.sort(key=lambda row: (-row["val_accuracy"], _by_size(row)))
    return Best(budget, rows[best], p_best, tuple(rivals), varying)


def _best_depths(
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
        best = rows[group[_top([rows[i] for i in group])]]
        depths = np.array([rows[i]["depth"] for i in group])
        # By falling accuracy the first row of each depth is its best one.
        ranking = sorted(group, key=lambda i: -rows[i]["val_accuracy"])
        firsts = {rows[i]["depth"]: i for i in reversed(ranking)}
        p = paired(accuracies[firsts.pop(best["depth"])] - accuracies[list(firsts.values())]).p
        larger = (
            size is None
            and bool(firsts)
            and best["size_bytes"] > (1 + SIZES_APART) * max(sizes[list(firsts.values())])
        )
        probabilities = {int(d): float(shares[depths == d].sum()) for d in np.unique(depths)}
        known = probabilities if best["n_seeds"] > 1 or len(probabilities) == 1 else {}
        found.append(
            BestDepth(
                n, size, best["depth"], best["val_accuracy"], known, _largest(p), best["size_bytes"], bool(larger)
            )
        )
    return _corrected(b for b in found if b.budget is None), _corrected(b for b in found if b.budget is not None)


def _corrected(family: Iterable[BestDepth]) -> tuple[BestDepth, ...]:
    """The same with their p corrected: else one of many numbers of bits is decided by chance alone."""
    family = tuple(family)
    p = corrected(np.array([np.nan if one.p is None else one.p for one in family]))
    return tuple(
        replace(one, p=None if one.p is None else float(value)) for one, value in zip(family, p, strict=True)
    )


def _top(rows: list[dict[str, Any]]) -> int:
    """The place of the highest mean accuracy; of equal ones the first, which is the smallest."""
    return max(range(len(rows)), key=lambda i: (rows[i]["val_accuracy"], -i))


def _largest(p: NDArray[np.float64]) -> float | None:
    return float(p.max()) if len(p) and np.isfinite(p).all() else None


def _percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"
