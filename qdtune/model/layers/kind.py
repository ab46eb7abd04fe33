"""The interface of a layer kind.

One class holds everything that the package knows about one kind of layer, in a file of its own beside this one.
`decompose`, `quantize`, `count_sizes`, `packed` and the export formats walk the modules of a network and ask the
kinds. To add a kind, follow the recipe in `docs/architecture.md`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from qdtune.messages import user_error
from qdtune.model.chain import Chain
from qdtune.reader import VERSION
from qdtune.spec.sizes import Sizes
from qdtune.spec.structure import LayerShape

if TYPE_CHECKING:
    from qdtune.model.c.stages import StageList
    from qdtune.model.formats.onnx_graph import Graph

Op = dict[str, Any]  # one operation of a packed program, see `packed`


class LayerKind(ABC):
    """One kind of layer. The defaults describe a layer that is neither split nor quantised and has no tensors.

    Attributes:
        ops: the names of its operations in a packed program.
        has_tensors: whether its operations refer to tensors.
        version: the first version of the packed format that has its operations.
    """

    ops: ClassVar[tuple[str, ...]]
    has_tensors: ClassVar[bool] = True
    version: ClassVar[str] = VERSION

    @abstractmethod
    def owns(self, module: nn.Module) -> bool:
        """Whether the module is one layer of this kind, float or quantised. A chain belongs to no kind."""

    def can_split(self, module: nn.Module) -> bool:
        """Whether `decompose` splits the module: a float layer of this kind, or a chain of such layers."""
        return False

    def split(self, layer: nn.Module, depth: int, activation: str, norm: bool) -> Chain:
        """A chain of `depth` factors that replaces the layer; `decompose` fills in its weights.

        Args:
            layer: `can_split` is true of it.
            depth: D >= 1.
            activation: between the factors, a name of `chain.ACTIVATIONS`.
            norm: whether a batch normalisation precedes each of these activations.
        """
        raise AssertionError(f"{type(self).__name__} splits no layer, so it is not asked to")

    def quantize(
        self, layer: nn.Module, weight_bits: int, act_bits: int | None, scale: str, levels: str, granularity: str
    ) -> nn.Module | None:
        """The layer with these bits; None if it is never quantised. The arguments are as in `quantize.quantize`."""
        return None

    def set_overhead(self, layer: nn.Module, overhead: str) -> nn.Module:
        """The layer with its numbers that are no weights as they are stored; it may be the given one, changed.

        Args:
            layer: of this kind, as `quantize` leaves it.
            overhead: a name of `axes.OVERHEAD`.
        """
        return layer

    def shape(self, layer: nn.Module) -> LayerShape | None:
        """The shape from which a dry run counts bytes at any depth and bits; None if the layer is never quantised."""
        return None

    def count(self, layer: nn.Module) -> Sizes:
        """The parameters and bytes of the layer, counted from its tensors."""
        return Sizes()

    def axes_after(self, layer: nn.Module, axes: int) -> int | None:
        """How many axes follow that of the channels in the output, if `axes` do in the input: 0 in rows, 2 in images.

        None if the operation does not take such an input, so that a packed program cannot run.
        """
        return axes

    @abstractmethod
    def pack(self, layer: nn.Module, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        """The operation of a packed program that computes the layer, and its tensors by name.

        Args:
            layer: in evaluation mode.
            prefix: of the tensor names, such as `0.factors.1.`; empty if the layer is the root.
        """

    def unpack(self, layer: nn.Module, op: Op, tensors: dict[str, Tensor]) -> nn.Module:
        """The layer that computes an operation in evaluation, for `load_into`; it may be the given one, changed.

        Args:
            layer: of the user's module, float and not split.
            op: made by `pack`.
            tensors: those of the file, by name.

        Raises:
            ValueError: the layer does not have the shape of the operation.
        """
        raise ValueError(f"{type(self).__name__} reads no layer back")

    @abstractmethod
    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        """Adds one operation of this kind to an ONNX graph.

        Args:
            graph: gets the nodes.
            op: made by `pack`.
            x: the name of the input.

        Returns:
            The name of the output.
        """

    def add_stage(self, stages: StageList, op: Op) -> None:
        """Adds one operation of this kind to the stages of a C program.

        Args:
            stages: get it.
            op: made by `pack`.

        Raises:
            SpecError: the kind has no C.
        """
        raise user_error(f"--format c has no code for the operation {op['op']!r}: export the model as packed or onnx")
