"""Does depth help, does an activation between the factors help: pairs that differ in this alone, and a verdict."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

VERDICTS = ("helps", "hurts", "undecided", "refused")


@dataclass(frozen=True)
class Comparison:
    """One comparison of a question, with its verdict; accuracies are fractions of the validation split.

    Attributes:
        axis: `depth` or `activation`: the only axis in which the two sides differ.
        value, baseline: of this axis on the two sides; an effect above zero speaks for `value`.
        weight_bits, depth, activation, scale, factor_init: what both sides share; None where that is the axis itself.
        verdict: one of `VERDICTS`.
        effect: mean over seeds of the paired difference; None where there is no number to give.
        low, high: its interval at `level`; None where there is none.
        level: confidence of the interval, after Holm's correction within the question (Holm 1979).
        n_seeds: seeds that both sides have.
        n_pairs: pairs of configurations, over whose differences each seed's mean is taken.
        size_bytes, baseline_bytes: mean size of the two sides; None where there is no pair.
        seeds_needed: how many would decide it if the effect is what it looks like; None where that makes no sense,
            101 for more than 100.
        flags: what has to be said beside the verdict.
        reason: why it is refused or undecided; empty where the interval says it all.
    """

    axis: str
    value: int | str
    baseline: int | str
    weight_bits: int
    depth: int | None
    activation: str | None
    scale: str
    factor_init: str
    verdict: str
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    n_seeds: int = 0
    n_pairs: int = 0
    size_bytes: float | None = None
    baseline_bytes: float | None = None
    seeds_needed: int | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""

    @property
    def sentence(self) -> str:
        """The verdict, to be read aloud."""
        return f"At {self.weight_bits} bits {self.axis} {self.value} against {self.baseline}: {self.verdict}."


def compare_depths(trials: pa.Table, history: pa.Table) -> tuple[Comparison, ...]:
    """At each number of bits, scale rule and init: each depth against the smallest.

    Args:
        trials: one row per seed, as `tables.TRIALS`.
        history: one row per seed and epoch, as `tables.HISTORY`.
    """
    return ()


def compare_activations(trials: pa.Table, history: pa.Table) -> tuple[Comparison, ...]:
    """At each number of bits and depth from 2 on: each activation against identity; otherwise as `compare_depths`."""
    return ()
