"""Splits layers into factors at a constant parameter count: one layer becomes a chain of D layers of its kind.

Source: the notebook's `replace_linear_with_decomposedlinear`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qdtune.model.chain import Chain, last_factor
from qdtune.model.layers.batch_norm import drop_shifts
from qdtune.model.layers.known import splitter_of
from qdtune.model.layers.matrix import as_matrix
from qdtune.spec.axes import DECOMPOSE, FACTOR_INIT

# The gain of a whole chain of orthogonal factors. With 1 (orthonormal) or 0.58 (the variance of `nn.Linear`), chains
# of three and four factors diverge or die in the notebook's warm-up at learning rate 0.1. With 0.3, depths 1 to 4
# train, with and without ReLU between the factors (measured, MNIST, 784-24-10, 3 seeds).
ORTHOGONAL_GAIN = 0.3
RECTIFIERS = (nn.ReLU, nn.LeakyReLU, nn.GELU)  # they pass on half of the variance (He et al. 2015, section 2.2)


def decompose(
    model: nn.Module,
    depth: int,
    activation: str = "identity",
    factor_init: str = "default",
    generator: torch.Generator | None = None,
    decomposed: str = "all",
    norm: bool = False,
    head: int | None = None,
    keeps_whole: bool = False,
    bias: str = "all",
) -> nn.Module:
    """The model with every layer split into `depth` factors, at any level, if its kind can split it; in place.

    A chain is split again: its product is one matrix, which gets new factors. A layer used in two places stays one
    layer. A frozen layer, whose weight requires no gradient, is not split: new factors would never be trained.
    Over 50 lines because of this docstring.

    Args:
        model: any module; if it is a layer that is split, the returned module replaces it.
        depth: D >= 1.
        activation: between the factors, a name of `chain.ACTIVATIONS`.
        factor_init: `default` draws each factor as `nn.Linear` does (the notebook). `orthogonal` gives each
            factor orthogonal rows or columns and the whole chain the gain `ORTHOGONAL_GAIN`, at every depth.
            `isometry` makes the first and the last factor orthogonal and the others the identity. A rectifier
            does not change the output of an identity after a rectifier, so a chain starts as two factors do, at
            every depth (orthogonal chains: Saxe et al. 2014, section 3.2; identities between rectifiers: Le et al.
            2015, section 2). `svd` starts from the layer's own weights: it drops the singular values above the
            inner width, and the factors share the others evenly.
        generator: the source of the draws.
        decomposed: `all`, or `hidden`: the head, which is the last of these layers, stays one factor. The logits
            then have the same rank at every depth. A head 24 -> 10 split in two has rank 7, split in eight rank 4.
        norm: whether a batch normalisation (Ioffe and Szegedy 2015, section 3.2) follows every factor but the
            last, before the activation. One-bit factors between rectifiers train only with it.
        head: the place of the head among the layers that are split; None: the last in the order of modules.
        keeps_whole: whether a layer that gets one factor keeps its own weights, whatever `factor_init` says.
        bias: a name of `axes.BIAS`: with `none`, the normalisations between factors have no shifts.

    Raises:
        ValueError: an unknown name, depth below 1, or `svd` of factors with an activation between them.
    """
    FACTOR_INIT.check(factor_init)
    DECOMPOSE.check(decomposed)
    layers = dict.fromkeys(_find_splittable(model))  # a shared layer counts once, at its first place
    spared = [*layers][-1 if head is None else head] if layers and decomposed == "hidden" else None

    def split(layer: nn.Module) -> nn.Module | None:
        kind = splitter_of(layer)
        if kind is None or is_frozen(layer):
            return None
        last: Any = last_factor(layer)
        own_depth = 1 if layer is spared else depth
        keeps_weights = factor_init == "svd" or (keeps_whole and own_depth == 1)
        matrix = _multiply_factors(layer) if keeps_weights else None
        chain = kind.split(layer, own_depth, activation, norm).to(last.weight)
        if bias == "none":
            drop_shifts(chain.norms)
        weights = [_weight_matrix(factor) for factor in chain.factors]
        if matrix is not None:
            _fill_by_svd(weights, matrix)
        else:
            _draw_weights(weights, factor_init, isinstance(chain.activation, RECTIFIERS), generator)
        if last.bias is not None:
            with torch.no_grad():
                own: Any = last_factor(chain).bias
                own.copy_(last.bias).requires_grad_(last.bias.requires_grad)
        return chain

    # Modules draw their first weights from the global generator. If another one is given, the global one is restored.
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        return swap_modules(model, split)


def _find_splittable(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that `decompose` splits, in the order of modules."""
    if splitter_of(module) is not None:
        if not is_frozen(module):
            yield module
    else:
        for child in module.children():
            yield from _find_splittable(child)


def is_frozen(layer: nn.Module) -> bool:
    """Whether a layer, or a chain of factors, keeps its weight in training."""
    last: Any = last_factor(layer)
    return not last.weight.requires_grad


def swap_modules(model: nn.Module, replace: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The model with each module exchanged for what `replace` returns, root first, in place; None keeps it."""
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


def _weight_matrix(layer: Any) -> Tensor:
    """The weight (O, ...) of a layer as a matrix (O, I) that shares its memory."""
    return as_matrix(layer.weight.detach())


def _multiply_factors(layer: nn.Module) -> Tensor:
    """The one matrix (O, I) that a layer or a chain computes.

    Raises:
        ValueError: the chain is not linear.
    """
    if not isinstance(layer, Chain):
        return _weight_matrix(layer)
    if len(layer.factors) > 1 and (layer.norms or not isinstance(layer.activation, nn.Identity)):
        what = "a normalisation" if layer.norms else "an activation"
        raise ValueError(f"svd needs layers that are one matrix: there is {what} between these factors")
    first, *others = layer.factors
    matrix = _weight_matrix(first)
    for factor in others:
        matrix = _weight_matrix(factor) @ matrix
    return matrix


@torch.no_grad()
def _fill_by_svd(weights: list[Tensor], matrix: Tensor) -> None:
    """Fills the factors so that their product approximates the matrix best; they share the singular values evenly."""
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
def _draw_weights(
    weights: list[Tensor], factor_init: str, rectified: bool, generator: torch.Generator | None
) -> None:
    """Fills the factors with the draws of a rule other than `svd`; see `decompose`."""
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
            # The first rectifier halves the variance. The others change nothing: their inputs are never negative.
            gain = math.sqrt(2) if rectified and k < last else 1.0
            nn.init.orthogonal_(weight, gain, generator=generator)
        else:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
