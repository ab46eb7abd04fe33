"""Dropout of stacked replicas: each replica draws by itself, the same whether it trains alone or with others.

The draws are a hash of a number that each replica keeps, not those of PyTorch's generator. So they are the same with
and without `vmap`, compiled and not, and on a CPU and a GPU. A checkpoint holds the number with the other buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from qdtune.model.factored import swap_modules

ALPHA = -1.7580993408473766  # the lowest value of SELU (Klambauer et al. 2017, section 2)
WORD = 2**32 - 1  # all bits of a word of 32 bits
FACTOR = 0x45D9F3B  # of Thomas Mueller's integer hash; its product with a word fits into int64
FEATURE_AXES: dict[type[nn.Module], int] = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}  # those of a channel
WHOLE = (nn.Dropout, nn.AlphaDropout)  # each number is drawn by itself
DROPOUTS: tuple[type[nn.Module], ...] = (*WHOLE, nn.FeatureAlphaDropout, *FEATURE_AXES)


class ReplicaDropout(nn.Module):
    """One of PyTorch's dropout layers whose draws belong to one replica.

    Attributes:
        kind: PyTorch's class.
        p: the share of the numbers, or of the channels, that a training step drops.
        state: int64 (), from which the next draws follow; every call in training adds one.
    """

    state: Tensor

    def __init__(self, kind: type[nn.Module], p: float, inplace: bool) -> None:
        super().__init__()
        self.kind, self.p, self.inplace = kind, p, inplace
        self.register_buffer("state", torch.zeros((), dtype=torch.int64), persistent=False)  # not shipped

    def forward(self, x: Tensor) -> Tensor:
        """The input in evaluation; in training, with some of its numbers dropped and the others scaled."""
        if not self.training or not self.p:
            return x
        self.state.add_(1)
        kept = draw_words(self.state, self._drawn_shape(x), x.device) >= round(self.p * (WORD + 1))
        mask = kept.to(x.dtype)
        if self.kind in (nn.AlphaDropout, nn.FeatureAlphaDropout):
            scale = 0.0 if self.p == 1 else ((1 - self.p) * (1 + self.p * ALPHA**2)) ** -0.5
            found = scale * (x * mask + ALPHA * (1 - mask)) - scale * ALPHA * self.p
        else:
            found = x * (mask * (0.0 if self.p == 1 else 1 / (1 - self.p)))
        return x.copy_(found) if self.inplace else found

    def _drawn_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of what is drawn for an input: a number each, or one for all of a channel."""
        if self.kind in WHOLE:
            return tuple(x.shape)
        # As in PyTorch: an input without an axis of samples begins with its channels, except for Dropout2d.
        is_alone = self.kind is not nn.Dropout2d and x.ndim == FEATURE_AXES.get(self.kind, x.ndim) + 1
        leading = 1 if is_alone else 2
        return (*x.shape[:leading], *[1] * (x.ndim - leading))

    def extra_repr(self) -> str:
        return f"{self.kind.__name__}, p={self.p}"


def draw_words(state: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Uniform whole numbers from 0 to `WORD`, int64 of this shape, that follow from a state, int64 ()."""
    count = 1
    for size in shape:
        count *= size
    places = torch.arange(count, device=device).view(shape)
    low, high = state & WORD, (state >> 32) & WORD
    return _mix(_mix(places ^ _mix(low)) ^ _mix(high ^ FACTOR))


def _mix(word: Tensor) -> Tensor:
    """A word of 32 bits, each bit of which depends on all bits of the given one; different ones stay different."""
    for _ in range(2):
        word = ((word ^ (word >> 16)) * FACTOR) & WORD
    return word ^ (word >> 16)


def replace_dropout(model: nn.Module) -> nn.Module:
    """The model with a `ReplicaDropout` in place of each dropout layer of PyTorch; it is changed in place."""
    new: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if is_dropout(module) and not isinstance(module, ReplicaDropout):
            layer: Any = module
            new[module] = ReplicaDropout(type(module), layer.p, layer.inplace).train(module.training)
    return swap_modules(model, new.get) if new else model


def is_dropout(module: nn.Module) -> bool:
    """Whether a module is a dropout layer, of PyTorch or of a replica; in evaluation it changes nothing."""
    return isinstance(module, ReplicaDropout) or type(module) in DROPOUTS


def find_states(model: nn.Module) -> Iterator[str]:
    """The names of the buffers from which the draws of a model follow."""
    for name, module in model.named_modules():
        if isinstance(module, ReplicaDropout):
            yield f"{name}.state" if name else "state"
