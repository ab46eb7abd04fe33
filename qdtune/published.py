"""Published accuracies of small quantised MLPs, to be drawn beside ours."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One network from the literature: test accuracy (0..1), bytes as counted here, and where the figure is from."""

    system: str
    dataset: str
    size_bytes: int
    test_accuracy: float
    source: str


# Bytes: the weights at their bits, and where there is batch normalisation a float32 scale and shift per feature; FINN
# turns its normalisation into thresholds, which are not counted.
_BREVITAS = "Brevitas, bnn_pynq/README.md"
_FINN = "FINN, arXiv 1612.07119"
PUBLISHED = (
    Published("Brevitas TFC 1W1A", "mnist", 8_912, 0.9317, _BREVITAS),
    Published("Brevitas TFC 1W2A", "mnist", 8_912, 0.9479, _BREVITAS),
    Published("Brevitas TFC 2W2A", "mnist", 16_288, 0.9660, _BREVITAS),
    Published("Brevitas SFC 1W1A", "mnist", 47_936, 0.9781, _BREVITAS),
    Published("Brevitas SFC 1W2A", "mnist", 47_936, 0.9831, _BREVITAS),
    Published("Brevitas SFC 2W2A", "mnist", 89_728, 0.9866, _BREVITAS),
    Published("Brevitas LFC 1W1A", "mnist", 388_352, 0.9888, _BREVITAS),
    Published("Brevitas LFC 1W2A", "mnist", 388_352, 0.9899, _BREVITAS),
    Published("FINN SFC", "mnist", 41_792, 0.9583, _FINN),
    Published("FINN LFC", "mnist", 363_776, 0.9840, _FINN),
    Published("MLP 256-128-64, float", "fashion_mnist", 971_048, 0.9000, "zalandoresearch/fashion-mnist, README"),
)
CAVEAT = (
    "Published networks: test accuracy, as ours here. Brevitas kept the epoch that was best on the test set, so its "
    "figures are optimistic; ours are those of the last epoch."
)


def published(dataset: str) -> list[Published]:
    """What is known of a data set, by ascending size; empty where that is nothing."""
    return sorted((one for one in PUBLISHED if one.dataset == dataset), key=lambda one: one.size_bytes)
