"""Convolutions over signals and images: `nn.Conv1d` and `nn.Conv2d`, their chains of factors, their quantised forms.

A convolution multiplies each window of its input, `in_channels / groups` times the area of the kernel, by a matrix of
`out_channels` rows. It is split as a linear layer of that matrix is: the first factor is the convolution, to H
channels; the others have a kernel of 1 (Jaderberg et al. 2014, section 2, have two factors, of a column and a row). A
convolution in groups is quantised but not split: each of its groups has a small matrix of its own.

Codes are padded after the quantiser, with zeros that add nothing to a sum. At one bit, where inputs are -1 or 1 times
the step, such a zero is no code.

K replicas are trained as one convolution in K groups: see `training/gradients.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from qdtune.model.c.stages import window_sides
from qdtune.model.chain import Chain, last_factor
from qdtune.model.layers.kind import Op
from qdtune.model.layers.matrix import MatrixKind, Quantized
from qdtune.reader import LATEST_VERSION
from qdtune.spec.sizes import factor_dims
from qdtune.spec.structure import LayerShape

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph


class FactoredConv(Chain):
    """A convolution split into D factors with an activation between them.

    Only the last factor has a bias, which is the bias of the convolution that the chain replaces. Subclasses say over
    how many axes it slides.

    Args:
        conv: the convolution or chain that this one replaces; only its sizes matter.
        depth: D >= 1; one factor is the convolution itself.
        activation: a name of `chain.ACTIVATIONS`, applied after every factor but the last.
        norm: whether a batch normalisation precedes each of these activations.

    Raises:
        ValueError: depth below 1 or an unknown activation.
    """

    conv_class: ClassVar[Any]
    norm_class: ClassVar[Any]

    def __init__(self, conv: Any, depth: int, activation: str = "identity", norm: bool = False) -> None:
        first: Any = conv.factors[0] if isinstance(conv, Chain) else conv
        last: Any = last_factor(conv)
        inputs, outputs, has_bias = first.weight[0].numel(), len(last.weight), last.bias is not None
        dims = factor_dims(inputs, outputs, depth)
        settings = {key: getattr(first, key) for key in ("kernel_size", "stride", "padding", "dilation")}
        factors = [self.conv_class(first.in_channels, dims[1], bias=has_bias and depth == 1, **settings)]
        for k in range(1, depth):
            factors.append(self.conv_class(dims[k], dims[k + 1], 1, bias=has_bias and k == depth - 1))
        super().__init__(factors, (self.norm_class(width) for width in dims[1:-1] if norm), activation)


class FactoredConv1d(FactoredConv):
    conv_class, norm_class = nn.Conv1d, nn.BatchNorm1d


class FactoredConv2d(FactoredConv):
    conv_class, norm_class = nn.Conv2d, nn.BatchNorm2d


class QuantConv(Quantized):
    """A convolution that fake-quantises its weights, and its inputs if it has `act_bits`; see `QuantLinear`."""

    axes: ClassVar[int]
    _conv_forward: Any  # of torch's class: F.conv1d or F.conv2d, with the settings of the layer

    def __init__(self, conv: Any, *settings: Any) -> None:
        super().__init__(**_read_settings(conv), bias=False, device="meta")
        self.take_over(conv, *settings)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, ...) -> (B, O, ...)
        of_input: Any = self.input_quantizer
        learns = self.training and of_input is not None and of_input.scale == "lsq"
        if learns and not x.requires_grad:
            return self._convolve_data(*of_input.linearise(x))
        return self.multiply(self._conv_forward, x, channel_axis=-1 - self.axes)

    def _convolve_data(self, values: Tensor, slopes: Tensor, change: Tensor) -> Tensor:
        """The convolution of quantised data, which themselves need no gradient; their step size does.

        The second convolution adds 0, because the change is 0. Its weights pass the gradient on to the step size. A
        gradient of the data would take up to a fifth of a training step of a small network.
        """
        weight = self.quantized_weight()
        made: Tensor = self._conv_forward(values, weight, self.stored_bias())
        return made + self._conv_forward(slopes, weight * change, None)


class QuantConv1d(QuantConv, nn.Conv1d):
    axes = 1


class QuantConv2d(QuantConv, nn.Conv2d):
    axes = 2


class Conv(MatrixKind):
    """A convolution whose padding, if any, is zeros. One with another `padding_mode` belongs to no kind."""

    version = LATEST_VERSION

    def owns(self, module: Any) -> bool:
        return super().owns(module) and module.padding_mode == "zeros"

    def can_split(self, module: Any) -> bool:
        is_chain = isinstance(module, Chain)
        return super().can_split(module) and (is_chain or (self.owns(module) and module.groups == 1))

    def split(self, layer: Any, depth: int, activation: str, norm: bool) -> Chain:
        assert self.chain is not None
        chain: Any = self.chain
        made: Chain = chain(layer, depth, activation, norm)
        return made

    def plain_copy(self, layer: Any) -> nn.Module:
        return self.plain(**_read_settings(layer), bias=False, device="meta")

    def shape(self, layer: Any) -> LayerShape:
        return super().shape(layer)._replace(is_split=layer.groups == 1)

    def settings(self, layer: Any) -> Op:
        """The stride, the padding before each axis and then after each axis, the dilation and the groups."""
        before, after = pad_sides(layer)
        window = {"stride": list(layer.stride), "padding": [*before, *after], "dilation": list(layer.dilation)}
        return window | {"groups": layer.groups}

    def axes_after(self, layer: Any, axes: int) -> int | None:
        return axes if len(layer.kernel_size) == axes else None

    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        window = {"strides": op["stride"], "pads": op["padding"], "dilations": op["dilation"], "group": op["groups"]}
        product = graph.product(op, x, "Conv", kernel_shape=op["shape"][2:], **window)
        if op["bias"] is None:
            return product
        return graph.add("Add", [product, graph.channels(op["bias"])])

    def add_stage(self, stages: StageList, op: Op) -> None:
        axes = len(op["stride"])
        padding = zip(op["padding"][:axes], op["padding"][axes:], strict=True)
        sides = [side + sum(both) for side, both in zip(stages.shape[1:], padding, strict=True)]
        kernel = [d * (k - 1) + 1 for k, d in zip(op["shape"][2:], op["dilation"], strict=True)]
        stages.add_product(op, (op["shape"][0], *window_sides(sides, kernel, op["stride"])))


class Conv1d(Conv):
    """`nn.Conv1d`: signals (B, C, L)."""

    name = "conv1d"
    plain = nn.Conv1d
    chain = FactoredConv1d
    quantized = QuantConv1d


class Conv2d(Conv):
    """`nn.Conv2d`: images (B, C, H, W)."""

    name = "conv2d"
    plain = nn.Conv2d
    chain = FactoredConv2d
    quantized = QuantConv2d


def pad_sides(conv: Any) -> tuple[list[int], list[int]]:
    """The zeros before each axis of the input of a convolution, and those after each."""
    if conv.padding == "valid":
        return [0] * len(conv.stride), [0] * len(conv.stride)
    if conv.padding == "same":
        both = [step * (size - 1) for step, size in zip(conv.dilation, conv.kernel_size, strict=True)]
        return [n // 2 for n in both], [n - n // 2 for n in both]
    return list(conv.padding), list(conv.padding)


def _read_settings(conv: Any) -> dict[str, Any]:
    """The arguments, without the bias, that make a convolution of the same shape."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {name: getattr(conv, name) for name in names}
