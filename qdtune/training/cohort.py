"""K replicas of one configuration, stacked along a leading axis and trained at once: warm-up, QAT, evaluation.

A replica sees its own initial weights and its own order of batches: it ends with the numbers it would have ended with
alone. The whole step, optimiser included, is one call: see `step` and `compiled`.

Alphabet: K replicas, B batch, I in, N samples.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from qdtune.datasets.load import Samples
from qdtune.training.augment import distorted
from qdtune.training.compiled import Call, captured, compiled, eager
from qdtune.training.step import Shape, Stack, make_step, normalise

if TYPE_CHECKING:
    from qdtune.spec.groups import Phase


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
    def of(cls, data: Samples, device: torch.device) -> Tensors:
        def put(array: np.ndarray) -> Tensor:
            with warnings.catch_warnings():
                # Arrays from Ray's object store are read-only, and so we leave them.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return torch.from_numpy(array).to(device)

        labels = {k: put(getattr(data, k)).long() for k in ("train_y", "val_y", "test_y")}
        images = {k: put(getattr(data, k)) for k in ("train_x", "val_x", "test_x")}
        chance = np.bincount(data.val_y).max() / len(data.val_y)
        return cls(**images, **labels, inputs=data.inputs, classes=data.classes, chance=float(chance))


@lru_cache(maxsize=256)
def prepared(shape: Shape) -> tuple[nn.Module, Callable[..., None]]:
    """The template of a shape and its training step, made once per process."""
    template = shape.template()
    return template, make_step(shape, template)


class Cohort:
    """K replicas, stacked, with their optimiser and their orders of batches, for one phase of training.

    Args:
        replicas: K modules of one structure; their numbers are copied.
        shape: the structure.
        phase: epochs, optimiser, learning rate and its schedule, whether images are moved.
        seeds: one per replica, from which its orders of batches come.
        purpose: keeps the orders of different phases apart.
        data: on the device that shall do the work.
        batch_size: B; an epoch is floor(N / B) batches of a fresh permutation, the odd samples rest.
        compile: whether the step is compiled.
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
        compile: bool,
    ) -> None:
        params, buffers = stack_module_state(replicas)
        self.device = data.train_x.device
        self.params: Stack = {name: p.detach().clone().to(self.device) for name, p in params.items()}
        self.buffers: Stack = {name: b.to(self.device) for name, b in buffers.items()}
        self.losses = torch.zeros(len(seeds), device=self.device)  # summed over the steps of an epoch
        self.generators = [generator(purpose, seed) for seed in seeds]
        self.phase, self.data, self.batch_size, self.purpose = phase, data, batch_size, purpose
        self.inputs = data.train_x if phase.augment == "none" else data.train_x.clone()  # as they are seen, (N, I)
        self.steps = len(data.train_x) // batch_size
        self.shape, self.compile = shape, compile
        self.template, self.function = prepared(shape)

    @cached_property
    def step(self) -> Call:
        """The step on the tensors of this cohort, as fast as the device allows; made when it is first needed."""
        self.template.train()  # an earlier cohort of this shape has left it as it evaluates, which tracing would keep
        moments = self.shape.optimiser_state(self.params)
        state = (self.params, self.buffers, moments, self.losses)
        data = (self.inputs, self.data.train_y)
        batch = torch.zeros(len(self.losses), self.batch_size, dtype=torch.int64, device=self.device)
        rate = torch.zeros((), device=self.device)
        if self.device.type == "cuda":
            return captured(self.function, state, data, batch, rate, compile=self.compile)
        if self.compile:
            return compiled(self.shape, self.function, state, data, batch, rate)
        return eager(self.function, state, data)

    def prepare(self) -> None:
        """Makes the step, which may take a while."""
        assert self.step is not None

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
        if self.phase.augment != "none":
            draw = generator(f"{self.purpose} moves", epoch)  # of the epoch alone: the same for every replica
            self.inputs.copy_(distorted(self.data.train_x, self.phase.augment, draw))
        self.losses.zero_()
        self.template.train()
        for batch, rate in zip(batches.unbind(), self.rates(epoch).unbind(), strict=True):
            self.step(batch, rate)
        # The last step may have spoilt the weights after the last loss was taken.
        numbers = torch.cat([p.reshape(len(self.losses), -1) for p in self.params.values()], dim=1)
        return torch.where(numbers.isfinite().all(1), self.losses / self.steps, torch.nan).tolist()

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

    @torch.no_grad()
    def unstack(self, replicas: list[nn.Module]) -> None:
        """Copies the numbers back into the modules."""
        for k, replica in enumerate(replicas):
            for name, tensor in (*replica.named_parameters(), *replica.named_buffers()):
                tensor.copy_((self.params | self.buffers)[name][k])


def generator(purpose: str, seed: int) -> torch.Generator:
    """A generator of its own for every use of a seed, so that no two uses share their draws."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
