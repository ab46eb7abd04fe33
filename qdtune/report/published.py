"""Published accuracies of small quantised MLPs, to be drawn beside ours."""

from __future__ import annotations

from typing import NamedTuple

from qdtune.spec.tasks import ACCURACY, Metric


class Published(NamedTuple):
    """One network from the literature.

    Attributes:
        system, dataset: what it is called, what it was tested on.
        weight_bytes: of its weights at their bits.
        norm_bytes: of a batch normalisation, a float32 scale and shift per feature, as they are counted here; FINN
            turns its own into thresholds, which are not counted.
        act_bits: of its layers' inputs; None: float.
        test_accuracy: 0..1.
        source: where the figures are from.
    """

    system: str
    dataset: str
    weight_bytes: int
    norm_bytes: int
    act_bits: int | None
    test_accuracy: float
    source: str

    @property
    def size_bytes(self) -> int:
        """Bytes as counted here."""
        return self.weight_bytes + self.norm_bytes


_BREVITAS = "Brevitas, bnn_pynq/README.md"
_FINN = "FINN, arXiv 1612.07119"
_FASHION = "zalandoresearch/fashion-mnist, README"
PUBLISHED = (
    Published("Brevitas TFC 1W1A", "mnist", 7_376, 1_536, 1, 0.9317, _BREVITAS),
    Published("Brevitas TFC 1W2A", "mnist", 7_376, 1_536, 2, 0.9479, _BREVITAS),
    Published("Brevitas TFC 2W2A", "mnist", 14_752, 1_536, 2, 0.9660, _BREVITAS),
    Published("Brevitas SFC 1W1A", "mnist", 41_792, 6_144, 1, 0.9781, _BREVITAS),
    Published("Brevitas SFC 1W2A", "mnist", 41_792, 6_144, 2, 0.9831, _BREVITAS),
    Published("Brevitas SFC 2W2A", "mnist", 83_584, 6_144, 2, 0.9866, _BREVITAS),
    Published("Brevitas LFC 1W1A", "mnist", 363_776, 24_576, 1, 0.9888, _BREVITAS),
    Published("Brevitas LFC 1W2A", "mnist", 363_776, 24_576, 2, 0.9899, _BREVITAS),
    Published("FINN SFC", "mnist", 41_792, 0, 1, 0.9583, _FINN),
    Published("FINN LFC", "mnist", 363_776, 0, 1, 0.9840, _FINN),
    Published("MLP 256-128-64, float", "fashion_mnist", 971_048, 0, None, 0.9000, _FASHION),
)
CAVEAT = (
    "Published networks and ours are compared by test accuracy. Brevitas kept the epoch that was best on the test "
    "set, so its figures are optimistic. Ours are from the last epoch."
)


def published(dataset: str, metric: Metric) -> list[Published]:
    """What is known of a data set, by ascending size; empty where that is nothing. All are judged by accuracy."""
    known = PUBLISHED if metric is ACCURACY else ()
    return sorted((one for one in known if one.dataset == dataset), key=lambda one: one.size_bytes)
