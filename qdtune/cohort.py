"""K replicas of one configuration, stacked along a leading axis and trained at once: warm-up, QAT, evaluation.

The models know one replica; `vmap` adds the axis here, and `torch.compile` makes one piece of a whole training
step, the gather of its batch and the optimiser included. Bits, step sizes, learning rate and batches enter as
tensors, so one compiled step serves every configuration of the same shape. A replica sees its own initial weights
and its own order of batches: it ends with the numbers it would have ended with alone.

Alphabet: K replicas, B batch, I in, N samples.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from qdtune import models
from qdtune.configuration import Trial
from qdtune.data import Data
from qdtune.decompose import decompose
from qdtune.ledger import FLOAT_BITS
from qdtune.quantize import quantize
from qdtune.schema import Phase

Stack = dict[str, Tensor]  # name -> (K, ...)

EVAL_ROWS = 2048  # samples per forward pass of an evaluation


@dataclass(frozen=True)
class Tensors:
    """A data set on the device: uint8 inputs (N, I), int64 labels (N,), and the share of the largest class."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    inputs: int
    classes: int
    chance: float

    @classmethod
    def of(cls, data: Data, device: torch.device) -> Tensors:
        def put(array: np.ndarray) -> Tensor:
            with warnings.catch_warnings():
                # Arrays from Ray's object store are read-only, and so we leave them.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return torch.from_numpy(array).to(device)

        labels = {k: put(getattr(data, k)).long() for k in ("train_y", "val_y", "test_y")}
        images = {k: put(getattr(data, k)) for k in ("train_x", "val_x", "test_x")}
        chance = np.bincount(data.val_y).max() / len(data.val_y)
        return cls(**images, **labels, inputs=data.inputs, classes=data.classes, chance=float(chance))


def normalise(x: Tensor) -> Tensor:
    """uint8 in 0..255 to float in -1..1, as the notebook's Normalize((0.5,), (0.5,)) of ToTensor."""
    return x.to(torch.float32) / 127.5 - 1


# --- one training step -------------------------------------------------------------------------------------


def optimiser_state(optimizer: str, momentum: float, params: Stack) -> dict[str, Stack]:
    """The tensors an optimiser keeps between steps, all zero."""
    zeros = lambda: {name: torch.zeros_like(p) for name, p in params.items()}  # noqa: E731
    if optimizer == "adam":
        count = torch.zeros((), device=next(iter(params.values())).device)
        return {"mean": zeros(), "square": zeros(), "count": {"": count}}
    return {"velocity": zeros()} if momentum else {}


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


def make_step(template: nn.Module, optimizer: str, momentum: float) -> Callable[..., None]:
    """A function that trains K stacked replicas on one batch each, in place.

    Args:
        template: one replica, for its structure only.
        optimizer: `sgd` or `adam`.
        momentum: of sgd, 0 <= m < 1.
    """

    def loss_of(params: Stack, buffers: Stack, x: Tensor, y: Tensor) -> tuple[Tensor, Stack]:
        buffers = {name: b.clone() for name, b in buffers.items()}  # statistics are updated in place, here
        return F.cross_entropy(functional_call(template, (params, buffers), (x,)), y), buffers

    def step(
        params: Stack,
        buffers: Stack,
        state: dict[str, Stack],
        loss_sum: Tensor,  # (K,)
        inputs: Tensor,  # (N, I)
        labels: Tensor,  # (N,)
        batch: Tensor,  # (K, B)
        lr: Tensor,  # ()
    ) -> None:
        x, y = normalise(inputs[batch]), labels[batch]
        grads, (loss, new_buffers) = vmap(grad_and_value(loss_of, has_aux=True))(params, buffers, x, y)
        update(optimizer, momentum, params, grads, state, lr)
        for name, b in buffers.items():
            b.copy_(new_buffers[name])
        loss_sum.add_(loss)

    return step


# --- shapes, and the compiled step of each -----------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What decides the graph of a training step; all else enters it as tensors."""

    inputs: int
    classes: int
    hidden: tuple[int, ...]
    batch_norm: bool
    depth: int
    activation: str
    float_weights: bool
    float_inputs: bool

    @classmethod
    def of(cls, trial: Trial, data: Tensors, phase: str) -> Shape:
        warmup = phase == "warmup"
        return cls(
            data.inputs,
            data.classes,
            trial.hidden,
            trial.batch_norm,
            trial.depth,
            trial.activation,
            float_weights=warmup or trial.weight_bits == FLOAT_BITS,
            float_inputs=warmup or trial.act_bits is None,
        )

    def template(self) -> nn.Module:
        """One replica of this shape without numbers."""
        model = models.mlp(self.inputs, self.hidden, self.classes, batch_norm=self.batch_norm, seed=0)
        decompose(model, self.depth, self.activation, generator=torch.Generator())
        weight_bits, act_bits = FLOAT_BITS if self.float_weights else 2, None if self.float_inputs else 2
        return quantize(model, weight_bits, act_bits, "absmean").to("meta")


@lru_cache(maxsize=256)
def prepared(shape: Shape, optimizer: str, momentum: float, compiled: bool) -> tuple[nn.Module, Callable[..., None]]:
    """The template of a shape and its training step, made once per process."""
    template = shape.template()
    step = make_step(template, optimizer, momentum)
    if compiled:
        # Every shape is a graph of one and the same function, which dynamo would give up on after eight.
        torch._dynamo.config.recompile_limit = 256
        step = torch.compile(step, dynamic=False, fullgraph=True)
    return template, step


# --- a cohort ----------------------------------------------------------------------------------------------


class Cohort:
    """K replicas, stacked, with their optimiser and their orders of batches, for one phase of training.

    Args:
        replicas: K modules of one structure; their numbers are copied.
        shape: the structure.
        phase: epochs, optimiser, learning rate and its schedule.
        seeds: one per replica, from which its orders of batches come.
        purpose: keeps the orders of different phases apart.
        data: on the device that shall do the work.
        batch_size: B; an epoch is floor(N / B) batches of a fresh permutation, the odd samples rest.
        compiled: whether the step is compiled.
    """

    def __init__(
        self,
        replicas: list[nn.Module],
        shape: Shape,
        phase: Phase,
        seeds: tuple[int, ...],
        purpose: str,
        data: Tensors,
        batch_size: int,
        compiled: bool,
    ) -> None:
        params, buffers = stack_module_state(replicas)
        self.device = data.train_x.device
        self.params: Stack = {name: p.detach().clone().to(self.device) for name, p in params.items()}
        self.buffers: Stack = {name: b.to(self.device) for name, b in buffers.items()}
        self.template, self.step = prepared(shape, phase.optimizer, phase.momentum, compiled)
        self.state = optimiser_state(phase.optimizer, phase.momentum, self.params)
        self.generators = [generator(purpose, seed) for seed in seeds]
        self.phase, self.data, self.batch_size = phase, data, batch_size
        self.steps = len(data.train_x) // batch_size

    def rates(self, epoch: int) -> Tensor:
        """The learning rates of the steps of an epoch (from 0), (steps,)."""
        done = torch.arange(epoch * self.steps, (epoch + 1) * self.steps) / (self.phase.epochs * self.steps)
        factor = 0.5 * (1 + torch.cos(math.pi * done)) if self.phase.schedule == "cosine" else torch.ones(self.steps)
        return (self.phase.lr * factor).to(self.device)

    def train(self, epoch: int) -> list[float]:
        """Trains one epoch (from 0); the mean loss of each replica, not finite where it diverged."""
        used = self.steps * self.batch_size
        order = torch.stack([torch.randperm(len(self.data.train_x), generator=g)[:used] for g in self.generators])
        batches = order.view(-1, self.steps, self.batch_size).transpose(0, 1).contiguous().to(self.device)
        rates, losses = self.rates(epoch), torch.zeros(len(self.generators), device=self.device)
        self.template.train()
        for batch, rate in zip(batches.unbind(), rates.unbind(), strict=True):
            self.step(
                self.params, self.buffers, self.state, losses, self.data.train_x, self.data.train_y, batch, rate
            )
        # The last step may have spoilt the weights after the last loss was taken.
        numbers = torch.cat([p.reshape(len(losses), -1) for p in self.params.values()], dim=1)
        return torch.where(numbers.isfinite().all(1), losses / self.steps, torch.nan).tolist()

    @torch.no_grad()
    def accuracy(self, x: Tensor, y: Tensor) -> list[float]:
        """The share of right answers of each replica on uint8 inputs (N, I) and labels (N,), 0..1."""
        self.template.eval()

        def predict(params: Stack, buffers: Stack, x: Tensor) -> Tensor:
            return functional_call(self.template, (params, buffers), (x,)).argmax(-1)

        hits = torch.zeros(len(self.generators), dtype=torch.int64, device=self.device)
        for rows, labels in zip(x.split(EVAL_ROWS), y.split(EVAL_ROWS), strict=True):
            answers = vmap(predict, in_dims=(0, 0, None))(self.params, self.buffers, normalise(rows))
            hits += (answers == labels).sum(-1)
        return [count / len(y) for count in hits.tolist()]  # as doubles: equal counts give equal means

    def unstack(self, replicas: list[nn.Module]) -> None:
        """Copies the numbers back into the modules."""
        for k, replica in enumerate(replicas):
            replica.load_state_dict({name: t[k] for name, t in (self.params | self.buffers).items()})


def generator(purpose: str, seed: int) -> torch.Generator:
    """A generator of its own for every use of a seed, so that no two uses share their draws."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
