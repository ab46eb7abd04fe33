"""How often are verdicts of `same_within` wrong, how many are given, with how many trainings?

    python tests/benchmarks/decide_same.py [--families 2000] [--noise normal t3]

As in `decide.py`, sweeps are invented, and the code of a launch decides. The true effects are 0, half the margin, the
margin exactly, or one and a half margins: the first two are the same, the others are not. Further families have the
worst effects for the rule: all are the margin, or only one is and the others are zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from tests.benchmarks.decide import (
    IS_SAME,
    NOISES,
    ONE_SD,
    SIZES,
    Values,
    decide,
    draw_values,
    find_pairs,
    keys_of,
    sweep_of,
)

WORST_SIZES = (2, 6)  # of the families with the worst effects; larger ones have fewer wrong verdicts
MARGINS = (1.0, 1.5, 2.0)  # standard deviations of a difference
IN_MARGINS = (0.0, 0.5, 1.0, 1.5)  # the true effects of a mixed family
MIXES: dict[str, Callable[[np.random.Generator, int], Values]] = {  # comparisons -> their effects, in margins
    "mixed": lambda noise, m: noise.choice(IN_MARGINS, size=m),
    "all the margin": lambda noise, m: np.ones(m),
    "one the margin, others 0": lambda noise, m: (np.arange(m) == 0).astype(float),
    "half the margin, half 0": lambda noise, m: (np.arange(m) < (m + 1) // 2).astype(float),
}


@dataclass
class SameCount:
    """What came out with a margin, over families.

    Attributes:
        families: how many there were.
        wrong_same, wrong_different, wrong: in how many a difference of the margin or more was called the same, an
            effect was decided that is none or has the other sign, and either.
        same, called_same: comparisons with less than the margin, and how many of them were called the same.
        effects, decided: comparisons with an effect, and how many of them were decided.
        trainings: of all families.
    """

    families: int = 0
    wrong_same: int = 0
    wrong_different: int = 0
    wrong: int = 0
    same: int = 0
    called_same: int = 0
    effects: int = 0
    decided: int = 0
    trainings: int = 0

    def add(self, truth: Values, verdicts: Values, margin: float, trainings: int) -> None:
        """Counts a family: its true effects and its verdicts, 0 for none."""
        is_same, is_decided, within = verdicts == IS_SAME, np.abs(verdicts) == 1, np.abs(truth) < margin
        wrong_same = bool((is_same & ~within).any())
        wrong_different = bool((is_decided & (np.sign(truth) != verdicts)).any())
        self.families += 1
        self.wrong_same += wrong_same
        self.wrong_different += wrong_different
        self.wrong += wrong_same or wrong_different
        self.same += int(within.sum())
        self.called_same += int((is_same & within).sum())
        self.effects += int((truth != 0).sum())
        self.decided += int((is_decided & (truth != 0)).sum())
        self.trainings += trainings


def simulate_same(
    noise_name: str, families: int, margin: float, mix: str = "mixed", sizes: Sequence[int] = tuple(SIZES)
) -> SameCount:
    """The counts over families of all sizes with a margin.

    Args:
        noise_name: a key of `NOISES`.
        families: how many.
        margin: in standard deviations of a difference.
        mix: a key of `MIXES`.
        sizes: keys of `SIZES`.
    """
    noise, found = np.random.default_rng([1, *map(ord, noise_name + mix)]), SameCount()
    for family in range(families):
        comparisons = sizes[family % len(sizes)]
        spec, keys = sweep_of(comparisons, margin * ONE_SD), keys_of(comparisons)
        pairs = find_pairs(keys)
        truth = margin * MIXES[mix](noise, len(pairs)) * noise.choice([-1, 1], size=len(pairs))
        values = draw_values(pairs, truth, noise, NOISES[noise_name])
        verdicts, trainings = decide(spec, keys, values)
        # The margin of a spec and the effects are rounded in different ways.
        found.add(truth, np.array([verdicts.get(i, 0.0) for i, _ in pairs]), margin * (1 - 1e-9), trainings)
    return found


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--families", type=int, default=2000, help="invented sweeps of each row")
    parser.add_argument("--noise", nargs="+", default=["normal", "t3"], choices=list(NOISES))
    given = parser.parse_args()
    heads = (
        "noise | effects | margin | wrong same | wrong different | either | same found | effects found | trainings"
    )
    print(f"\n| {heads} |\n{'|---' * 9}|")
    worst = [("normal", mix, 1.0) for mix in MIXES if mix != "mixed"]
    for noise, mix, margin in [*product(given.noise, ("mixed",), MARGINS), *worst]:
        found = simulate_same(noise, given.families, margin, mix, tuple(SIZES) if mix == "mixed" else WORST_SIZES)
        wrong = [n / found.families for n in (found.wrong_same, found.wrong_different, found.wrong)]
        shares = [found.called_same / found.same if found.same else None, found.decided / found.effects]
        cells = [*(f"{x:.1%}" for x in wrong), *("-" if x is None else f"{x:.0%}" for x in shares)]
        each = found.trainings / found.families
        print(
            f"| {noise} | {mix} | {margin:g} sd | {' | '.join(cells)} | {each:.0f} |".replace("%", " %"), flush=True
        )


if __name__ == "__main__":
    main()
