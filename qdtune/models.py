"""Networks for ONE replica: plain functions from sizes to a module. Stacking is `cohort.py`'s business."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


def mlp(inputs: int, hidden: Sequence[int], classes: int, *, batch_norm: bool = False, seed: int) -> nn.Sequential:
    """The notebook's network, of any widths: linear layers with ReLU between them, from (B, I) to (B, classes).

    Args:
        inputs: I, numbers per sample.
        hidden: the widths between input and output, each >= 1; the notebook's is [24].
        classes: O of the last layer.
        batch_norm: a normalisation after each hidden layer, which then has no bias of its own.
        seed: of the initial weights.
    """
    layers: list[nn.Module] = []
    # `nn.Linear` draws from the global generator and takes no other: lend it one, and put the old one back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        width = inputs
        for h in hidden:
            layers.append(nn.Linear(width, h, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(h))
            layers.append(nn.ReLU())
            width = h
        layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)
