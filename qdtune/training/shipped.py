"""Tests a trained network in the form that is shipped: its packed bytes, run by `reader.py` or by the user's code.

The table and the exported file then agree to the last sample. The network as it was trained computes the same but for
rounding: a folded normalisation, for example, has other last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from qdtune import reader
from qdtune.model.formats.packed import one_seed
from qdtune.model.load_into import load_into
from qdtune.training.step import StepShape, check_logits, normalise

ROWS = 2048  # samples per forward pass


def measure_shipped(
    weights: bytes, seeds: Iterable[int], x: Tensor, y: Tensor, own: StepShape | None = None
) -> Iterator[tuple[int, float]]:
    """Each seed and its accuracy (0..1).

    Args:
        weights: the packed file of a trial.
        seeds: those of its replicas that are in the file.
        x: uint8 inputs (N, I).
        y: labels (N,).
        own: builds the user's own network; None for the mlp, whose forward pass is in the file.
    """
    for seed in seeds:
        alone = one_seed(weights, seed)
        predict = _predict_by_reader(alone) if own is None else _predict_by_module(load_shipped(own, alone), own)
        hits = sum(
            int((predict(rows) == labels).sum()) for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True)
        )
        assert 0 <= hits <= len(y), f"{hits} of {len(y)} rows cannot be right"
        yield seed, hits / len(y)


def load_shipped(own: StepShape, alone: bytes) -> nn.Module:
    """The user's own network with the numbers of a packed file of one seed."""
    return load_into(own.build_undivided(seed=0), alone)


def _predict_by_reader(alone: bytes) -> Callable[[Tensor], Tensor]:
    model = reader.load(alone)
    return lambda rows: torch.from_numpy(model.logits(rows.cpu().numpy()).argmax(-1)).to(rows.device)


def _predict_by_module(module: nn.Module, own: StepShape) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def predict(rows: Tensor) -> Tensor:
        logits = module.to(rows.device)(normalise(rows))
        return check_logits(logits, len(rows), own.classes).argmax(-1)

    return predict
