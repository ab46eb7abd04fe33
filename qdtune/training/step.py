"""One training step of K stacked replicas, as a function of tensors alone.

The models know one replica; `vmap` adds the axis. Bits, step sizes, learning rate and batch enter as tensors, so that
one compiled step serves every configuration of the same `Shape`.

Alphabet: K replicas, B batch, I in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from qdtune.model import networks
from qdtune.model.factored import decompose
from qdtune.model.quantize import quantize
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.configuration import Configuration

Stack = dict[str, Tensor]  # name -> (K, ...)


@dataclass(frozen=True)
class Shape:
    """What decides the graph of a training step, beside K and B; all else enters it as tensors."""

    inputs: int
    classes: int
    hidden: tuple[int, ...]
    batch_norm: bool | str
    depth: int
    activation: str
    float_weights: bool
    float_inputs: bool
    optimizer: str  # sgd or adam
    momentum: float  # of sgd, 0 <= m < 1
    granularity: str = "tensor"
    decompose: str = "all"
    own: tuple[str, str] | None = None  # the factory of a model of the user's, and the sha256 of its source

    @classmethod
    def of(cls, trial: Configuration, inputs: int, classes: int, phase: str) -> Shape:
        """The shape of a trial's step in a phase, `warmup` or `qat`, on data of I inputs and so many classes."""
        warmup = phase == "warmup"
        settings = trial.warmup if warmup else trial.qat
        return cls(
            inputs,
            classes,
            trial.hidden,
            trial.batch_norm,
            trial.depth,
            trial.activation,
            float_weights=warmup or trial.weight_bits == FLOAT_BITS,
            float_inputs=warmup or trial.act_bits is None,
            optimizer=settings.optimizer,
            momentum=settings.momentum,
            granularity="tensor" if warmup or trial.weight_bits == FLOAT_BITS else trial.granularity,
            decompose=trial.decompose,
            own=trial.own_model and trial.own_model[:2],
        )

    def undivided(self, seed: int) -> nn.Module:
        """One replica before its layers are split, with the first weights of a seed."""
        if self.own:
            return networks.build_own(*self.own, self.inputs, self.hidden, self.classes, seed=seed)
        return networks.build_mlp(self.inputs, self.hidden, self.classes, batch_norm=bool(self.batch_norm), seed=seed)

    def template(self) -> nn.Module:
        """One replica of this shape without numbers."""
        model = self.undivided(seed=0)
        model = decompose(
            model,
            self.depth,
            self.activation,
            generator=torch.Generator(),
            decomposed=self.decompose,
            norm=self.batch_norm == "factors",
        )
        weight_bits, act_bits = FLOAT_BITS if self.float_weights else 2, None if self.float_inputs else 2
        return quantize(model, weight_bits, act_bits, granularity=self.granularity).to("meta")

    def optimiser_state(self, params: Stack) -> dict[str, Stack]:
        """The tensors that the optimiser keeps between steps, all zero."""
        zeros = lambda: {name: torch.zeros_like(p) for name, p in params.items()}  # noqa: E731
        if self.optimizer == "adam":
            count = torch.zeros((), device=next(iter(params.values())).device)
            return {"mean": zeros(), "square": zeros(), "count": {"": count}}
        return {"velocity": zeros()} if self.momentum else {}


def normalise(x: Tensor) -> Tensor:
    """uint8 in 0..255 to float in -1..1, as the notebook's Normalize((0.5,), (0.5,)) of ToTensor."""
    return x.to(torch.float32) / 127.5 - 1


def update(optimizer: str, momentum: float, params: Stack, grads: Stack, state: dict[str, Stack], lr: Tensor) -> None:
    """One step of SGD (with heavy-ball momentum) or Adam (Kingma and Ba 2015, algorithm 1), in place."""
    if optimizer == "adam":
        count = state["count"][""].add_(1)
        for name, p in params.items():
            mean = state["mean"][name].lerp_(grads[name], 1 - 0.9)
            square = state["square"][name].lerp_(grads[name] ** 2, 1 - 0.999)
            p.sub_(lr * (mean / (1 - 0.9**count)) / ((square / (1 - 0.999**count)).sqrt() + 1e-8))
        return
    for name, p in params.items():
        g = grads[name]
        if momentum:
            g = state["velocity"][name].mul_(momentum).add_(g)
        p.sub_(lr * g)


def make_step(shape: Shape, template: nn.Module) -> Callable[..., None]:
    """A function that trains K stacked replicas on one batch each, in place.

    Args:
        shape: for its optimiser.
        template: one replica of that shape, for its structure only.
    """

    def loss_of(params: Stack, buffers: Stack, x: Tensor, y: Tensor) -> tuple[Tensor, Stack]:
        buffers = {name: b.clone() for name, b in buffers.items()}  # statistics are updated in place, here
        return F.cross_entropy(functional_call(template, (params, buffers), (x,)), y), buffers

    def step(
        params: Stack,
        buffers: Stack,
        state: dict[str, Stack],
        loss_sum: Tensor,  # (K,)
        x: Tensor,  # (K, B, I) uint8
        y: Tensor,  # (K, B)
        lr: Tensor,  # ()
    ) -> None:
        grads, (loss, new_buffers) = vmap(grad_and_value(loss_of, has_aux=True))(params, buffers, normalise(x), y)
        update(shape.optimizer, shape.momentum, params, grads, state, lr)
        for name, b in buffers.items():
            b.copy_(new_buffers[name])
        loss_sum.add_(loss)

    return step
