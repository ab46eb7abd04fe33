"""Published accuracies of small networks, to be drawn beside ours.

Each was read in the source that is named, or where others quote it, which is then said. Most were trained once and
chosen by their test accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

from qdtune.spec.tasks import ACCURACY, Metric


class Published(NamedTuple):
    """One network from the literature.

    Attributes:
        system, dataset: what it is called, what it was tested on.
        kind, pixels: what it computes, and the pixels of a side of its images.
        weight_bytes: as its source counts: of its weights at their bits, or of their compressed form.
        norm_bytes: of a batch normalisation, a float32 scale and shift per feature, as they are counted here; FINN
            turns its own into thresholds, which are not counted.
        act_bits: of its layers' inputs; None: float, or its source does not say.
        test_accuracy: 0..1.
        source: where the figures are from.
    """

    system: str
    dataset: str
    kind: str
    pixels: int
    weight_bytes: int
    norm_bytes: int
    act_bits: int | None
    test_accuracy: float
    source: str

    @property
    def size_bytes(self) -> int:
        """Bytes as counted here."""
        return self.weight_bytes + self.norm_bytes


LINEAR, WINDOW, DEPTHWISE, CONVOLUTIONS, OTHER = "linear", "window", "depthwise", "convolutions", "other"
_BREVITAS = "Brevitas, bnn_pynq/README.md"
_FINN = "FINN, arXiv 1612.07119"
_FASHION = "zalandoresearch/fashion-mnist, README"
_PDK = "cpldcpu/BitNetPDK, docs/sizeexploration.txt"
_MCU = "cpldcpu/BitNetMCU, docs"
_QUOTED = "as quoted by others"
_MIRACLE = f"LeNet-5: arXiv 1810.00440, table 1, {_QUOTED}"


def _quantised(
    system: str, weight_bytes: int, norm_bytes: int, act_bits: int, accuracy: float, source: str
) -> Published:
    return Published(system, "mnist", LINEAR, 28, weight_bytes, norm_bytes, act_bits, accuracy, source)


def _mnist(
    system: str, kind: str, pixels: int, source: str, *points: tuple[int, float], act_bits: int | None = None
) -> tuple[Published, ...]:
    """Networks of one kind, each with its bytes and its test accuracy in per cent."""
    return tuple(
        Published(system, "mnist", kind, pixels, size, 0, act_bits, round(per_cent / 100, 4), source)
        for size, per_cent in points
    )


def _bitnet(system: str, kind: str, *points: tuple[int, float]) -> tuple[Published, ...]:
    """Networks of BitNetMCU: 16 x 16 pixels and activations of 8 bits."""
    return _mnist(system, kind, 16, _MCU, *points, act_bits=8)


PUBLISHED = (
    _quantised("Brevitas TFC 1W1A", 7_376, 1_536, 1, 0.9317, _BREVITAS),
    _quantised("Brevitas TFC 1W2A", 7_376, 1_536, 2, 0.9479, _BREVITAS),
    _quantised("Brevitas TFC 2W2A", 14_752, 1_536, 2, 0.9660, _BREVITAS),
    _quantised("Brevitas SFC 1W1A", 41_792, 6_144, 1, 0.9781, _BREVITAS),
    _quantised("Brevitas SFC 1W2A", 41_792, 6_144, 2, 0.9831, _BREVITAS),
    _quantised("Brevitas SFC 2W2A", 83_584, 6_144, 2, 0.9866, _BREVITAS),
    _quantised("Brevitas LFC 1W1A", 363_776, 24_576, 1, 0.9888, _BREVITAS),
    _quantised("Brevitas LFC 1W2A", 363_776, 24_576, 2, 0.9899, _BREVITAS),
    _quantised("FINN SFC", 41_792, 0, 1, 0.9583, _FINN),
    _quantised("FINN LFC", 363_776, 0, 1, 0.9840, _FINN),
    *_mnist("BitNetPDK 1 bit", LINEAR, 8, _PDK, (424, 91.38), (552, 92.16)),
    *_mnist("BitNetPDK 2 bits", LINEAR, 8, _PDK, (424, 91.7), (570, 93.4), (731, 94.54), (1_104, 95.64)),
    *_mnist("BitNetPDK 4 bits", LINEAR, 8, _PDK, (848, 94.92), (1_696, 96.6), (2_212, 96.96), (4_076, 97.91)),
    *_mnist("BitNetPDK 4 bits", LINEAR, 8, _PDK, (4_416, 98.04), (9_360, 98.47)),
    *_bitnet("BitNetMCU", LINEAR, (1_128, 94.22), (1_507, 95.06), (1_884, 95.86), (5_043, 97.66)),
    *_bitnet("BitNetMCU moved", LINEAR, (3_060, 96.79), (6_120, 98.13), (7_536, 98.52), (12_608, 99.01)),
    # Published as 7.8, 8.1 and 9.7 KiB.
    *_bitnet("BitNetMCU window", WINDOW, (7_987, 99.00), (8_294, 99.25), (9_933, 99.37)),
    *_bitnet("BitNetMCU depthwise", DEPTHWISE, (3_232, 98.92), (5_360, 99.06), (7_328, 99.28)),
    *_bitnet("BitNetMCU depthwise", DEPTHWISE, (9_296, 99.44), (11_264, 99.55), (13_357, 99.58)),
    *_mnist("Parameter-Efficient", CONVOLUTIONS, 28, "JoshWarn, Parameter-Efficient-MNIST", (2_788, 99.03)),
    *_mnist("minimal-model", CONVOLUTIONS, 28, "ruslangrimov, mnist-minimal-model", (7_744, 99.1)),
    *_mnist("MIRACLE", CONVOLUTIONS, 28, _MIRACLE, (1_520, 99.04), (3_030, 99.31)),
    *_mnist("entropy-penalised", LINEAR, 28, f"MLP 300-100: Oktay et al. 2020, {_QUOTED}", (8_560, 98.1)),
    *_mnist("entropy-penalised", CONVOLUTIONS, 28, f"LeNet-5: Oktay et al. 2020, {_QUOTED}", (2_840, 99.0)),
    *_mnist("Deep Compression", LINEAR, 28, f"MLP: arXiv 1510.00149, table 1, {_QUOTED}", (27_000, 98.42)),
    *_mnist(
        "Deep Compression",
        CONVOLUTIONS,
        28,
        f"LeNet-5: arXiv 1510.00149, table 1, {_QUOTED}",
        (44_000, 99.26),
    ),
    *_mnist("SpArSe", CONVOLUTIONS, 28, f"Fedorov et al. 2019, non-zero weights only, {_QUOTED}", (2_800, 98.64)),
    *_mnist("larq", CONVOLUTIONS, 28, "larq, README", (14_100, 97.51)),
    *_mnist("FastGRNN", OTHER, 28, "EdgeML, pixels in sequence", (6_000, 98.20)),
    *_mnist("Bonsai", OTHER, 28, "EdgeML", (84_000, 97.01)),
    *_mnist("ProtoNN", OTHER, 28, "EdgeML", (63_000, 95.88)),
    *_mnist("ULEEN", OTHER, 28, f"ULEEN, {_QUOTED}", (17_306, 96.20), (268_288, 98.46)),
    Published("MLP 256-128-64, float", "fashion_mnist", LINEAR, 28, 971_048, 0, None, 0.9000, _FASHION),
)
CAVEAT = (
    "Published networks and ours are compared by test accuracy. Most published ones were trained once and chosen by "
    "their test accuracy, so their figures are optimistic. Ours are from the last epoch."
)


def published(dataset: str, metric: Metric) -> list[Published]:
    """What is known of a data set, by ascending size; empty where that is nothing. All are judged by accuracy."""
    known = PUBLISHED if metric is ACCURACY else ()
    return sorted((one for one in known if one.dataset == dataset), key=lambda one: one.size_bytes)
