"""The answers of a sweep, in numbers and in sentences to be read aloud: what is decided, and what is not.

Everything is judged on the validation split; test accuracies are only reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from qdtune.comparisons import Comparison, compare_activations, compare_depths


@dataclass(frozen=True)
class Best:
    """The best configuration of at most `budget` bytes; accuracies are fractions, `low` and `high` a 95 % interval.

    Attributes:
        budget: bytes; None: no limit.
        row: of the Pareto table; None where nothing that small has finished.
        p_best: bootstrap probability of being the best of those within the budget; None below two seeds.
        rivals: rows of the Pareto table, within the budget and not told apart from the best, by falling accuracy.
    """

    budget: int | None
    row: dict[str, object] | None
    p_best: float | None = None
    rivals: tuple[dict[str, object], ...] = ()

    @property
    def sentence(self) -> str:
        """The answer, to be read aloud."""
        return "" if self.row is None else f"Best: depth {self.row['depth']} at {self.row['weight_bits']} bits."


@dataclass(frozen=True)
class BestDepth:
    """The best depth at a number of bits, or within a number of bytes: the one of the two that is not None.

    Attributes:
        weight_bits, budget: where it is the best.
        depth: that of the highest mean validation accuracy.
        probability: bootstrap probability, 0..1, of this depth; None below two seeds.
        probabilities: of every depth that occurs, by depth; empty below two seeds.
        decided: whether `probability` is 0.95 or more.
        accuracy: mean validation accuracy of its best configuration.
    """

    weight_bits: int | None
    budget: int | None
    depth: int
    probability: float | None
    probabilities: dict[int, float]
    decided: bool
    accuracy: float

    @property
    def sentence(self) -> str:
        """The answer, to be read aloud."""
        where = f"At {self.weight_bits} bits" if self.budget is None else f"Within {self.budget:,} bytes"
        return f"{where} depth {self.depth} is best."


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


def answer(trials: pa.Table, history: pa.Table, pareto: pa.Table, budget: int | None = None) -> Answers:
    """The answers in the tables of one sweep.

    Args:
        trials: one row per seed, as `tables.TRIALS`.
        history: one row per seed and epoch, as `tables.HISTORY`.
        pareto: one row per configuration, as `tables.aggregate` gives it.
        budget: bytes; None: no limit.
    """
    return Answers(
        compare_depths(trials, history),
        compare_activations(trials, history),
        best_within(trials, pareto, budget),
        (),
        (),
    )


def best_within(trials: pa.Table, pareto: pa.Table, budget: int | None) -> Best:
    """The configuration of the highest mean validation accuracy among those finished, of at most `budget` bytes."""
    rows = [row for row in pareto.to_pylist() if row["pareto_rank"] and (not budget or row["size_bytes"] <= budget)]
    return Best(budget, max(rows, key=lambda row: row["val_accuracy"], default=None))
