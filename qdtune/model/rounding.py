"""Compares the answers of two programs for one network: what rounding explains, and what it does not.

Two programs sum floats in different orders. Then a value that lies almost halfway between two codes may get the other
code, which moves an answer by more than the last bits. Sums of codes are exact, so this happens only behind layers
that compute in floats.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdtune.model.quantizer import Quantizer

RELATIVE, ABSOLUTE = 1e-3, 1e-4  # of an answer, and of the largest answer: float32 without any code that flips
SHIFT = 1e-5  # of the largest input: more than the rounding of sums of a thousand float32


@torch.no_grad()
def match_rows(found: Tensor, network: nn.Module, x: Tensor) -> Tensor:
    """Whether each row (N,) found by another program is what the network answers, but for rounding.

    The network runs three times: as it is, and with the inputs of its quantised layers moved up and down by `SHIFT`.
    A code that rounding can flip flips in one of these runs. So a row may differ by what it moves in both together.
    In most rows no code flips, and nothing else is allowed there than the last bits.

    Args:
        found: (N, O).
        network: in evaluation mode.
        x: (N, ...), its input.
    """
    expected: Tensor = network(x)
    moved = sum((_answer_shifted(network, x, shift) - expected).abs() for shift in (SHIFT, -SHIFT))
    flips = torch.as_tensor(moved).nan_to_num().flatten(1).amax(1, keepdim=True)
    difference, size = (found - expected).abs().flatten(1), expected.abs().flatten(1)
    largest = max(1.0, float(size.nan_to_num(posinf=0).max()))
    is_close = difference.isfinite() & (difference <= RELATIVE * size + ABSOLUTE * largest + flips)
    is_equal = (found == expected) | (found.isnan() & expected.isnan())
    return (is_close | is_equal.flatten(1)).all(1)


def _answer_shifted(network: nn.Module, x: Tensor, shift: float) -> Tensor:
    """The answer with the inputs of all quantised layers moved. Zeros stay: every program finds them exactly."""

    def move(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = args[0]
        return (torch.where(values == 0, values, values + shift * values.abs().max()), *args[1:])

    layers = [m for m in network.modules() if isinstance(getattr(m, "input_quantizer", None), Quantizer)]
    hooks = [layer.register_forward_pre_hook(move) for layer in layers]
    try:
        answer: Tensor = network(x)
        return answer
    finally:
        for hook in hooks:
            hook.remove()
