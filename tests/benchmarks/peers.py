"""The pairs of configuration and seed of sweeps/grid.yaml, as the peers of the sweep benchmark train them."""

from __future__ import annotations

from itertools import product
from typing import Any

WARMUP, QAT = 5, 10  # epochs


def pairs() -> list[dict[str, Any]]:
    """All 105, in the order of the file."""
    return [
        {"depth": depth, "weight_bits": bits, "activation": activation, "seed": seed}
        for depth, bits, activation, seed in product((1, 2, 3, 4), (1, 2, 3, 4, 8), ("identity", "relu"), (0, 1, 2))
        if (depth, activation) != (1, "relu")
    ]


def sample(n: int) -> list[dict[str, Any]]:
    """n of them, evenly spread."""
    everything = pairs()
    return [everything[int((k + 0.5) * len(everything) / n)] for k in range(n)]
