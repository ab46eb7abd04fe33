"""Trains K replicas of one configuration at once, stacked along a leading axis: warm-up, QAT, evaluation.

Each replica has its own initial weights and its own order of batches, so it ends with the numbers of a replica that
is trained alone. The whole step, with the optimiser, is one call: see `step` and `compiled`.

Alphabet: K replicas, B batch, I in, N samples.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as tree

from qdtune.model.dropout import find_states
from qdtune.model.quantize import read_digits, set_digits
from qdtune.spec.tasks import Metric, task_of
from qdtune.training.compile_watch import COMPILE_WATCH
from qdtune.training.compiled import Call, capture_step, compile_step, make_eager_step
from qdtune.training.fast_forms import with_fast_forms
from qdtune.training.losses import Meter
from qdtune.training.step import WHOLE, Joined, Stack, StepShape, make_step, normalise, predict
from qdtune.training.tape import PLAIN_CALLS, Taped
from qdtune.training.tensors import Tensors

if TYPE_CHECKING:
    from qdtune.spec.groups import Phase


EVAL_ROWS = 2048  # samples per forward pass of an evaluation
EVAL_IMAGES = 256  # the same where layers keep images: 16 channels of 28 x 28 take 50 KB each


@lru_cache(maxsize=256)
def make_template_and_step(shape: StepShape) -> tuple[nn.Module, Callable[..., None]]:
    """The template of a shape and its training step, made once per process."""
    template = shape.build_template()
    return template, make_step(shape, template)


class Cohort:
    """K stacked replicas with their optimiser and their orders of batches, for one phase of training.

    Args:
        replicas: K modules of one structure; their parameters and buffers are copied.
        shape: of the training step.
        phase: epochs, optimiser, learning rate, schedule, augmentation.
        seeds: one per replica; each decides an order of batches.
        purpose: gives each phase its own orders.
        data: on the device that trains.
        batch_size: B; an epoch is floor(N / B) batches of a fresh permutation, which leaves N mod B samples out.
        compile: whether the step is compiled.
    """

    def __init__(
        self,
        replicas: list[nn.Module],
        shape: StepShape,
        phase: Phase,
        seeds: tuple[int, ...],
        purpose: str,
        data: Tensors,
        batch_size: int,
        compile: bool,
    ) -> None:
        self.device = data.train_x.device
        self.params, self.buffers = stack_replicas(replicas, self.device)
        for name in find_states(replicas[0]):
            draws = [torch.randint(2**62, (), generator=make_generator(f"{purpose} {name}", seed)) for seed in seeds]
            self.buffers[name] = torch.stack(draws).to(self.device)
        self.losses = torch.zeros(len(seeds), device=self.device)  # summed over the steps of an epoch
        self.generators = [make_generator(purpose, seed) for seed in seeds]
        self.phase, self.data, self.batch_size, self.purpose = phase, data, batch_size, purpose
        self.inputs = data.train_x if phase.augment == "none" else data.train_x.clone()  # after augmentation, (N, I)
        self.steps = len(data.train_x) // batch_size
        self.shape, self.compile = shape, compile
        self.template, self.function = make_template_and_step(shape)
        self.trained = self.params  # what the step changes
        # Adam makes eleven calls, which takes longer for each of some small tensors than for all of them at once.
        is_adam = shape.optimizer == "adam" and {p.dtype for p in self.params.values()} == {torch.float32}
        can_join = is_adam and self.device.type != "cuda" and not compile
        self.joined = Joined(self.params) if can_join else None
        if self.joined:
            self.trained = {WHOLE: self.joined.join(self.params)}
            self.params = self.joined.split(self.trained[WHOLE])
            self.function = make_step(shape, self.template, self.joined)
        self.digits = read_digits(replicas[0])  # of their bits, which the template does not know
        self.eval_rows = rows_at_once(replicas[0])

    @cached_property
    def _optimiser_state(self) -> dict[str, Stack]:
        return self.shape.make_optimiser_state(self.trained)

    @cached_property
    def moments(self) -> dict[str, Stack]:
        """The tensors that the optimiser keeps between steps; the step changes them in place."""
        joined, state = self.joined, self._optimiser_state
        return {kind: joined.split(kept[WHOLE]) if joined and WHOLE in kept else kept for kind, kept in state.items()}

    @cached_property
    def step(self) -> Call:
        """The step on the tensors of this cohort, in the fastest form of the device; made at its first use."""
        self.template.train()  # another cohort may have left it in evaluation mode, and tracing keeps the mode
        state = (self.trained, self.buffers, self._optimiser_state, self.losses)
        data = (self.inputs, self.data.train_y)
        batch = torch.zeros(len(self.losses), self.batch_size, dtype=torch.int64, device=self.device)
        rate = torch.zeros((), device=self.device)
        if self.device.type != "cuda" and not self.compile:
            return make_eager_step(self.function, state, data, self.steps * self.phase.epochs)
        with COMPILE_WATCH.measure():
            if self.device.type == "cuda":
                return capture_step(self.function, state, data, batch, rate, compile=self.compile)
            return compile_step(self.shape, self.function, state, data, batch, rate)

    def prepare(self) -> None:
        """Makes the step, which takes some seconds if it has to be compiled."""
        assert self.step is not None

    def rates(self, epoch: int) -> Tensor:
        """The learning rates (steps,) of an epoch, which counts from 0."""
        done = torch.arange(epoch * self.steps, (epoch + 1) * self.steps) / (self.phase.epochs * self.steps)
        factor = 0.5 * (1 + torch.cos(math.pi * done)) if self.phase.schedule == "cosine" else torch.ones(self.steps)
        return (self.phase.lr * factor).to(self.device)

    def train(self, epoch: int) -> list[float]:
        """Trains one epoch, which counts from 0; returns the mean loss of each replica, not finite if it diverged."""
        used = self.steps * self.batch_size
        order = torch.stack([torch.randperm(len(self.data.train_x), generator=g)[:used] for g in self.generators])
        batches = order.view(-1, self.steps, self.batch_size).transpose(0, 1).contiguous().to(self.device)
        if self.phase.augment != "none":
            draw = make_generator(f"{self.purpose} moves", epoch)  # of the epoch: the same for every replica
            self.data.distort(self.phase.augment, draw, self.phase.plain_share or 0.0, out=self.inputs)
        self.losses.zero_()
        self.template.train()
        for batch, rate in zip(batches.unbind(), self.rates(epoch).unbind(), strict=True):
            self.step(batch, rate)
        # The last step computes its loss before it changes the weights, so the weights are checked too.
        numbers = torch.cat([p.reshape(len(self.losses), -1) for p in self.params.values()], dim=1)
        return torch.where(numbers.isfinite().all(1), self.losses / self.steps, torch.nan).tolist()

    @torch.no_grad()
    def measure(self, metric: Metric, x: Tensor, y: Tensor) -> list[float]:
        """A metric of each replica on inputs (N, I), uint8 or normalised, and their targets; NaN if undefined."""
        self.template.eval()
        set_digits(self.template, self.digits)
        meter = Meter(task_of(self.shape.task), metric, len(self.generators), self.device)
        for rows, targets in zip(x.split(self.eval_rows), y.split(self.eval_rows), strict=True):
            inputs = normalise(rows)
            meter.add(self._predictors[len(inputs)](*self._weights, inputs), targets, inputs)
        return meter.values()

    @cached_property
    def _weights(self) -> list[Tensor]:
        return tree.tree_leaves((self.params, self.buffers))

    @cached_property
    def _predictors(self) -> defaultdict[int, Callable[..., Tensor]]:
        """For each number of rows: the function of all weights and inputs (B, I) that gives the outputs (K, B, O)."""
        structure = tree.tree_structure((self.params, self.buffers))

        def predict_one(params: Stack, buffers: Stack, x: Tensor) -> Tensor:
            return predict(self.template, params, buffers, x, self.shape.outputs)

        def predict_all(*tensors: Tensor) -> Tensor:
            params, buffers = tree.tree_unflatten(list(tensors[:-1]), structure)
            return vmap(predict_one, in_dims=(0, 0, None))(params, buffers, tensors[-1])

        return defaultdict(lambda: Taped(with_fast_forms(predict_all), PLAIN_CALLS))

    @torch.no_grad()
    def unstack(self, replicas: list[nn.Module]) -> None:
        """Copies the parameters and buffers back into the modules."""
        for k, replica in enumerate(replicas):
            for name, tensor in (*replica.named_parameters(), *replica.named_buffers()):
                tensor.copy_((self.params | self.buffers)[name][k])


def rows_at_once(model: nn.Module) -> int:
    """How many samples a forward pass of an evaluation takes, so that it stays in the memory of a small machine."""
    is_spatial = any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
    return EVAL_IMAGES if is_spatial else EVAL_ROWS


@torch.no_grad()
def stack_replicas(replicas: list[nn.Module], device: torch.device) -> tuple[Stack, Stack]:
    """Copies of what training changes, and of the rest: buffers and frozen parameters; each stacked by name."""
    params: Stack = {}
    buffers: Stack = {}
    states = [dict((*replica.named_parameters(), *replica.named_buffers())) for replica in replicas]
    for name, first in states[0].items():
        stack = params if first.requires_grad else buffers
        stack[name] = torch.stack([state[name].to(device) for state in states])
    return params, buffers


def make_generator(purpose: str, seed: int) -> torch.Generator:
    """A generator for one use of a seed; each use has its own draws."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
