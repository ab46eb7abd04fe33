"""The questions that every layer kind answers.

Everything the package knows about one kind of layer stands in one class, in a file of its own beside this one.
`decompose`, `quantize`, `count_sizes`, `packed` and the export formats walk the modules of a network and ask the
kinds. To add a kind, write its class, name it in `known.LAYERS`, and add its operation to `reader.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from qdtune.model.chain import Chain
from qdtune.spec.sizes import LayerShape, Sizes

if TYPE_CHECKING:
    from qdtune.model.formats.onnx import Graph

Op = dict[str, Any]  # one operation of a packed program, see `packed`


class LayerKind(ABC):
    """One kind of layer. The defaults describe a layer that is neither split nor quantised and has no numbers.

    Attributes:
        ops: the names of its operations in a packed program.
        has_tensors: whether its operations refer to tensors.
    """

    ops: ClassVar[tuple[str, ...]]
    has_tensors: ClassVar[bool] = True

    @abstractmethod
    def owns(self, module: nn.Module) -> bool:
        """Whether the module is a layer of this kind, float or quantised, but not a chain of factors."""

    def can_split(self, module: nn.Module) -> bool:
        """Whether `decompose` splits the module: a float layer, or the chain that such a layer was split into."""
        return False

    def split(self, layer: nn.Module, depth: int, activation: str, norm: bool) -> Chain:
        """A chain of `depth` factors in place of the layer; `decompose` fills in the weights.

        Args:
            layer: one that `can_split`.
            depth: D >= 1.
            activation: between the factors, a name of `chain.ACTIVATIONS`.
            norm: whether a batch normalisation stands before each of these activations.
        """
        raise AssertionError(f"{type(self).__name__} splits no layer, so it is not asked to")

    def quantize(
        self, layer: nn.Module, weight_bits: int, act_bits: int | None, scale: str, levels: str, granularity: str
    ) -> nn.Module | None:
        """The layer with these bits, as `quantize.quantize` takes them; None: it stays as it is."""
        return None

    def shape(self, layer: nn.Module) -> LayerShape | None:
        """What a dry run needs to count the bytes of the layer at any depth and bits; None: it is never quantised."""
        return None

    def count(self, layer: nn.Module) -> Sizes:
        """The weights and bytes of the layer, from its tensors."""
        return Sizes()

    @abstractmethod
    def pack(self, layer: nn.Module, prefix: str) -> tuple[Op, dict[str, Tensor]]:
        """The operation of a packed program that does what the layer does, and the tensors it refers to, by name.

        Args:
            layer: in evaluation mode.
            prefix: of the names, such as `0.factors.1.`; empty for the root.
        """

    @abstractmethod
    def add_nodes(self, graph: Graph, op: Op, x: str) -> str:
        """Adds one of its operations to an ONNX graph.

        Args:
            graph: what is added to.
            op: as `pack` made it.
            x: the name of the operation's input.

        Returns:
            The name of its output.
        """
