"""Layers split into factors at constant parameter count: one `nn.Linear` becomes D of them in a row.

Source: the notebook's `DecomposedLinear` and `replace_linear_with_decomposedlinear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from qdtune.spec.axes import DECOMPOSE, FACTOR_INIT
from qdtune.spec.sizes import factor_dims

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "hardtanh": nn.Hardtanh,
}
# Gain of a whole chain of orthogonal factors. With 1 (orthonormal) or 0.58 (the variance of `nn.Linear`) chains of
# three and four factors diverge or die in the notebook's warm-up at rate 0.1; with 0.3 depths 1 to 4 train, with and
# without ReLU between (measured, MNIST, 784-24-10, 3 seeds).
ORTHOGONAL_GAIN = 0.3
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.GELU)  # pass half of the variance on (He et al. 2015, section 2.2)


class FactoredLinear(nn.Module):
    """A linear map written as D factors with an activation between them.

    The factors have no bias but the last one, which holds the bias of the layer they replace.

    Args:
        in_features: I, >= 1.
        out_features: O, >= 1.
        depth: D, the number of factors, >= 1; one factor is the layer itself.
        bias: whether the last factor has one.
        activation: a name of `ACTIVATIONS`, applied after every factor but the last.
        norm: whether a batch normalisation stands before each of these activations (inputs are then (B, I)).

    Raises:
        ValueError: depth below 1 or an unknown activation.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        depth: int,
        bias: bool = True,
        activation: str = "identity",
        norm: bool = False,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be >= 1, got {depth}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        self.in_features, self.out_features = in_features, out_features
        dims = factor_dims(in_features, out_features, depth)
        self.factors = nn.ModuleList(
            nn.Linear(dims[k], dims[k + 1], bias=bias and k == depth - 1) for k in range(depth)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in dims[1:-1] if norm)
        self.activation = ACTIVATIONS[activation]()

    @property
    def inner_dims(self) -> list[int]:
        """The widths between the factors, D - 1 of them."""
        return [int(factor.out_features) for factor in list(self.factors)[:-1]]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:  # (..., I) -> (..., O)
        for k, factor in enumerate(self.factors[:-1]):
            x = factor(x)
            x = self.activation(self.norms[k](x) if self.norms else x)
        return self.factors[-1](x)


def decompose(
    model: nn.Module,
    depth: int,
    activation: str = "identity",
    factor_init: str = "default",
    generator: torch.Generator | None = None,
    decomposed: str = "all",
    norm: bool = False,
) -> nn.Module:
    """The model with every `nn.Linear`, at any level, split into `depth` factors; changed in place.

    A `FactoredLinear` met on the way is split anew. Subclasses of `nn.Linear` are left alone: their owners may
    use them in other ways than by calling them, as `nn.MultiheadAttention` does. A layer used in two places
    stays one layer.

    Args:
        model: any module; where it is a linear layer itself, the returned one replaces it.
        depth: D >= 1.
        activation: between the factors, a name of `ACTIVATIONS`.
        factor_init: `default` draws each factor as `nn.Linear` does (the notebook); `orthogonal` gives each
            factor orthogonal rows or columns and the whole chain the gain `ORTHOGONAL_GAIN`, at every depth;
            `isometry` makes the first and the last factor orthogonal and those between them the identity, which a
            rectifier lets pass as it is: the chain starts as two factors do, at every depth (orthogonal chains:
            Saxe et al. 2014, section 3.2; identities between rectifiers: Le et al. 2015, section 2);
            `svd` starts from the layer's own weights: the singular values above the inner width are cut, the
            rest is shared evenly by the factors.
        generator: where the draws come from.
        decomposed: `all`, or `hidden`: the head, the last linear layer in the order of modules, stays one factor. The
            logits then have the same rank at every depth: split in two, a head 24 -> 10 has rank 7, in eight 4.
        norm: whether there is a batch normalisation (Ioffe and Szegedy 2015, section 3.2) after every factor but the
            last, before the activation. Factors of one bit between rectifiers train with it alone.

    Raises:
        ValueError: an unknown name, depth below 1, or `svd` of factors with an activation between them.
    """
    FACTOR_INIT.check(factor_init)
    DECOMPOSE.check(decomposed)
    layers = dict.fromkeys(_splittable(model))  # each once, where it comes first
    head = [*layers][-1] if layers and decomposed == "hidden" else None

    def split(layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear and not isinstance(layer, FactoredLinear):
            return None
        last: nn.Linear = layer if isinstance(layer, nn.Linear) else layer.factors[-1]  # type: ignore[assignment]
        matrix = _matrix(layer) if factor_init == "svd" else None
        shape = (layer.in_features, layer.out_features, 1 if layer is head else depth)
        factored = FactoredLinear(*shape, last.bias is not None, activation, norm).to(last.weight)
        weights: list[Tensor] = [factor.weight for factor in factored.factors]  # type: ignore[misc]
        if matrix is not None:
            _split_svd(weights, matrix)
        else:
            _draw(weights, factor_init, isinstance(factored.activation, RECTIFIERS), generator)
        if last.bias is not None:
            with torch.no_grad():
                factored.factors[-1].bias.copy_(last.bias)  # type: ignore[operator]
        return factored

    # Modules draw their first weights from the global generator; where another is given, that one stays as it was.
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        return swap(model, split)


def _splittable(module: nn.Module) -> Iterator[nn.Module]:
    """The linear layers that are split, in the order of modules."""
    if type(module) is nn.Linear or isinstance(module, FactoredLinear):
        yield module
    else:
        for child in module.children():
            yield from _splittable(child)


def swap(model: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The model with every module for which `replace` gives another one exchanged, from the root down, in place."""
    done: dict[nn.Module, nn.Module] = {}

    def visit(module: nn.Module) -> nn.Module:
        if module not in done:
            new = replace(module)
            done[module] = module if new is None else new
            if new is None:
                for name, child in list(module._modules.items()):
                    if child is not None:
                        module._modules[name] = visit(child)
        return done[module]

    return visit(model)


@torch.no_grad()
def _matrix(layer: nn.Linear | FactoredLinear) -> Tensor:
    """The one matrix (O, I) that a layer amounts to."""
    if isinstance(layer, nn.Linear):
        return layer.weight
    if len(layer.factors) > 1 and (layer.norms or not isinstance(layer.activation, nn.Identity)):
        what = "a normalisation" if layer.norms else "an activation"
        raise ValueError(f"svd needs layers that are one matrix: there is {what} between these factors")
    first, *others = [factor.weight for factor in layer.factors]
    matrix: Tensor = first  # type: ignore[assignment]
    for weight in others:
        matrix = weight @ matrix  # type: ignore[operator]
    return matrix


@torch.no_grad()
def _split_svd(weights: list[Tensor], matrix: Tensor) -> None:
    """Fills the factors so that their product is the best approximation of the matrix, shared evenly."""
    if len(weights) == 1:
        weights[0].copy_(matrix)
        return
    width = len(weights[0])
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    share = s[:width] ** (1 / len(weights))  # (H,)
    weights[0].copy_(share[:, None] * vh[:width])
    for inner in weights[1:-1]:
        inner.copy_(torch.diag(share))
    weights[-1].copy_(u[:, :width] * share)


@torch.no_grad()
def _draw(weights: list[Tensor], factor_init: str, rectified: bool, generator: torch.Generator | None) -> None:
    last = len(weights) - 1
    for k, weight in enumerate(weights):
        if factor_init == "orthogonal":
            gain = ORTHOGONAL_GAIN ** (1 / len(weights))
            if rectified and k < last:
                gain *= math.sqrt(2)
            nn.init.orthogonal_(weight, gain, generator=generator)
        elif factor_init == "isometry" and 0 < k < last:
            nn.init.eye_(weight)
        elif factor_init == "isometry":
            # The first rectifier takes half of the variance, the others nothing from what is no longer negative.
            gain = math.sqrt(2) if rectified and k < last else 1.0
            nn.init.orthogonal_(weight, gain, generator=generator)
        else:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
