"""What the peers of the sweep benchmark share: configurations, and a network that trains.

One seed of each configuration of tests/data/recorded.yaml; the layers are the notebook's, first weights and step
sizes those of that file.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import notebook
import torch
from torch import nn

from qdtune.model.factored import ORTHOGONAL_GAIN

WARMUP, QAT, SEEDS = 5, 10, 3  # epochs, epochs, seeds of each configuration in grid.yaml
TRAIN = 55_000  # samples; the other 5,000 of the training set judge


def configurations() -> list[dict[str, Any]]:
    """All 35, in the order of the file."""
    return [
        {"depth": depth, "weight_bits": bits, "activation": activation}
        for depth, bits, activation in product((1, 2, 3, 4), (1, 2, 3, 4, 8), ("identity", "relu"))
        if (depth, activation) != (1, "relu")
    ]


def network(depth: int, activation: str) -> nn.Module:
    """The notebook's layers with orthogonal first weights, quantised by their mean."""
    model = notebook.network(depth, activation)
    for chain in (model[1], model[3]):
        factors = [layer for layer in chain if isinstance(layer, nn.Linear)]
        for k, factor in enumerate(factors):
            rectified = activation == "relu" and k < depth - 1
            nn.init.orthogonal_(factor.weight, ORTHOGONAL_GAIN ** (1 / depth) * (math.sqrt(2) if rectified else 1))
            factor.absmean = True
    return model


def seeded(seed: int = 0) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
