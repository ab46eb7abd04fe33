"""The blocks of the model `cnn`, as a sweep file writes them: `conv 8`, `dw`, `pool`; and the layers that they make.

The default, a convolution and then depthwise ones with pooling between, is that of the small networks of the field
(BitNetMCU; MobileNets, Howard et al. 2017, section 3.1). It imports no torch: a dry run counts bytes from these
layers, and `networks.build_cnn` builds them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, NamedTuple

from qdtune.spec.checks import matching
from qdtune.spec.structure import LayerShape, Structure, mlp_structure

DEFAULT_BLOCKS = ("conv 8", "dw", "pool", "dw", "pool")
PADDINGS = ("none", "same")
BLOCK_WORDS = "conv CHANNELS, pw CHANNELS, dw, pool or mean; conv and dw with KxK and /STRIDE, pool with K"
CONV, POOL, MEAN = "conv", "pool", "mean"
_NUMBER, _WINDOW = r"[1-9]\d{0,3}", r"(?: +(?P<kernel>[1-9]\d?)x(?P=kernel))?(?: +/(?P<stride>[1-9]))?"
_BLOCK = re.compile(
    rf"pw +(?P<wide>{_NUMBER})|(?:conv +(?P<channels>{_NUMBER})|(?P<dw>dw)){_WINDOW}"
    r"|(?P<pool>pool)(?: +(?P<size>[1-9]))?|mean"
)


class CnnLayer(NamedTuple):
    """One layer of the model `cnn`.

    Attributes:
        kind: `CONV`, which a normalisation and a ReLU follow, `POOL` (the largest of each window) or `MEAN` (of each
            channel).
        image: the channels, height and width of its input.
        channels: of its output.
        kernel, stride, padding: of its window, the same for both axes.
        groups: 1, or as many as channels in a depthwise convolution.
    """

    kind: str
    image: tuple[int, int, int]
    channels: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1

    @property
    def output(self) -> tuple[int, int, int]:
        """The channels, height and width of its output."""
        if self.kind == MEAN:
            return (self.channels, 1, 1)
        height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.image[1:])
        return (self.channels, height, width)


def read_block(text: str) -> str | None:
    """The block in canonical form; None if it is none."""
    words = " ".join(text.split())
    return words if _BLOCK.fullmatch(words) else None


def outline_block(block: str) -> tuple[str | int, ...]:
    """A block in canonical form without its channels: its kind, kernel and stride."""
    layer = _read_layer(block, Fraction(1), PADDINGS[0], (1, 99, 99))
    return ("dw" if block.startswith("dw") else layer.kind, layer.kernel, layer.stride)


Block = Annotated[str, matching(BLOCK_WORDS, read_block)]


def has_channels(blocks: Sequence[str]) -> bool:
    """Whether a block names a number of channels, which the axis `channels` then scales."""
    return any(block.startswith(("conv", "pw")) for block in blocks)


@lru_cache(maxsize=4096)  # a grid asks again and again
def list_cnn_layers(
    blocks: tuple[str, ...], channels: int | None, padding: str, image: tuple[int, int, int]
) -> tuple[CnnLayer, ...]:
    """The layers that blocks make for images of a size.

    Args:
        blocks: in canonical form.
        channels: those of the first block that names a number; those of all others scale with it, and are rounded,
            halves up. None: as the blocks say.
        padding: one of `PADDINGS`; `same` keeps the sides of an image where the stride is 1.
        image: channels, height and width.

    Raises:
        ValueError: a block does not fit the image that it gets.
    """
    named = [int(block.split()[1]) for block in blocks if has_channels([block])]
    scale = Fraction(1) if channels is None else Fraction(channels, named[0])
    layers: list[CnnLayer] = []
    for block in blocks:
        layer = _read_layer(block, scale, padding, image)
        if layer.padding and layer.kernel % 2 == 0:
            raise ValueError(f"{block!r} has an even kernel, which `padding: same` cannot keep in the middle")
        if min(layer.output) < 1:
            raise ValueError(f"{block!r} is larger than the {image[1]} x {image[2]} pixels that are left there")
        layers.append(layer)
        image = layer.output
    return tuple(layers)


def _read_layer(block: str, scale: Fraction, padding: str, image: tuple[int, int, int]) -> CnnLayer:
    """The layer of one block, given the images that it gets."""
    found = _BLOCK.fullmatch(block)
    assert found is not None, "blocks are checked when they are read"
    part = found.groupdict()
    if block == MEAN:
        return CnnLayer(MEAN, image, image[0])
    if part["pool"]:
        size = int(part["size"] or 2)
        return CnnLayer(POOL, image, image[0], size, size)
    wide = part["channels"] or part["wide"]
    channels = image[0] if wide is None else max(1, math.floor(int(wide) * scale + Fraction(1, 2)))
    kernel = 1 if part["wide"] else int(part["kernel"] or 3)
    pad = kernel // 2 if padding == "same" else 0
    return CnnLayer(CONV, image, channels, kernel, int(part["stride"] or 1), pad, image[0] if part["dw"] else 1)


def cnn_structure(
    layers: Sequence[CnnLayer],
    hidden: Sequence[int],
    outputs: int,
    batch_norm: bool | str = False,
    normalised: int = 0,
    bias: str = "all",
) -> Structure:
    """The parts of `networks.build_cnn`; the last arguments are those of `structure.mlp_structure`."""
    convs = [layer for layer in layers if layer.kind == CONV]
    shapes = tuple(
        LayerShape(
            layer.image[0] // layer.groups * layer.kernel**2,
            layer.channels,
            bias == "all" and not batch_norm,
            "conv2d",
            is_split=layer.groups == 1,
            positions=math.prod(layer.output[1:]),
            reads=math.prod(layer.image),
            writes=math.prod(layer.output),
        )
        for layer in convs
    )
    head = mlp_structure(math.prod(layers[-1].output), hidden, outputs, batch_norm, normalised, bias)
    normed = convs if batch_norm else []
    return head._replace(
        layers=shapes + head.layers,
        norms=head.norms + sum(layer.channels for layer in normed),
        norm_layers=head.norm_layers + len(normed),
    )
