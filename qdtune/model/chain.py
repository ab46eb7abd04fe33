"""A chain of factors, of any layer kind. A layer that is split becomes a chain.

Source: the notebook's `DecomposedLinear`.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
}


class Chain(nn.Module):
    """Applies factors in turn, with a normalisation and an activation after every factor but the last.

    Args:
        factors: at least one; each has a `weight`, whose rows are its outputs, and only the last may have a `bias`.
        norms: one for each factor but the last; or empty.
        activation: a name of `ACTIVATIONS`.

    Raises:
        ValueError: an unknown activation.
    """

    def __init__(self, factors: Iterable[nn.Module], norms: Iterable[nn.Module], activation: str) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:  # checked before the factors draw their first weights
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.factors = nn.ModuleList(factors)
        self.norms = nn.ModuleList(norms)
        self.activation = ACTIVATIONS[activation]()

    @property
    def inner_dims(self) -> list[int]:
        """The widths between the factors, D - 1 of them."""
        return [len(factor.weight) for factor in list(self.factors)[:-1]]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        for k, factor in enumerate(self.factors[:-1]):
            x = factor(x)
            x = self.activation(self.norms[k](x) if self.norms else x)
        return self.factors[-1](x)


def last_factor(layer: nn.Module) -> nn.Module:
    """The factor that holds the bias: the last one of a chain; a layer that is not split is its own last factor."""
    return layer.factors[-1] if isinstance(layer, Chain) else layer
