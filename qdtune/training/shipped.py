"""Tests a trained mlp in the form that is shipped: its packed bytes, run by `reader.py`.

The table and the exported file then agree to the last sample. The network as it was trained computes the same but for
rounding: a folded normalisation, for example, has other last bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor

from qdtune import reader
from qdtune.model.formats.packed import one_seed

ROWS = 2048  # samples per forward pass


def measure_shipped(weights: bytes, seeds: Iterable[int], x: Tensor, y: Tensor) -> Iterator[tuple[int, float]]:
    """Each seed and its accuracy (0..1).

    Args:
        weights: the packed file of a trial.
        seeds: those of its replicas that are in the file.
        x: uint8 inputs (N, I).
        y: labels (N,).
    """
    pixels, labels = x.cpu().numpy(), y.cpu().numpy()
    for seed in seeds:
        model = reader.load(one_seed(weights, seed))
        starts = range(0, len(pixels), ROWS)
        hits = sum(
            int((model.logits(pixels[at : at + ROWS]).argmax(-1) == labels[at : at + ROWS]).sum()) for at in starts
        )
        yield seed, hits / len(labels)
