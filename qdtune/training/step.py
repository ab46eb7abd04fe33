"""One training step of K stacked replicas, as a function of tensors only.

The models describe one replica; `vmap` adds the leading axis. Bits, step sizes, learning rate and batch are tensors,
so one compiled step serves every configuration of the same `StepShape`.

Alphabet: K replicas, B batch, I in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from qdtune.model import networks
from qdtune.model.dropout import replace_dropout
from qdtune.model.factored import decompose
from qdtune.model.quantize import quantize
from qdtune.spec.axes import BIAS, OVERHEAD, SCALE
from qdtune.spec.blocks import CnnLayer
from qdtune.spec.choices import FLOAT_BITS
from qdtune.spec.configuration import Configuration
from qdtune.spec.tasks import CLASSIFICATION, task_of
from qdtune.training.losses import loss_function

Stack = dict[str, Tensor]  # name -> (K, ...)
WHOLE = "whole"  # the name of a stack that is joined
ALIGNED = 16  # numbers: a tensor of its own begins at such places, and matrix products may round otherwise elsewhere


@dataclass(frozen=True)
class StepShape:
    """The settings that decide the graph of a training step, besides K and B. All others are tensors in the graph."""

    inputs: int
    outputs: int
    hidden: tuple[int, ...]
    batch_norm: bool | str
    depth: int
    activation: str
    float_weights: bool | tuple[bool, ...]  # of all layers before the split, or of each
    float_inputs: bool | tuple[bool, ...]  # as float_weights
    optimizer: str  # sgd or adam
    momentum: float  # of sgd, 0 <= m < 1
    granularity: str = "tensor"
    decompose: str = "all"
    own: tuple[str, str] | None = None  # the factory of a user's model, and the sha256 of its source
    head: int | None = None  # see `Structure.head`
    task: str = CLASSIFICATION.name
    cnn: tuple[CnnLayer, ...] | None = None  # the layers of a `cnn` before its hidden ones
    overhead: str = OVERHEAD.default
    bias: str = BIAS.default
    learns_steps: bool = False  # by the rule `lsq`, which does not look at the numbers

    @classmethod
    def of(cls, trial: Configuration, inputs: int, outputs: int, phase: str) -> StepShape:
        """The shape of a trial's step in a phase, `warmup` or `qat`, for a network of I inputs and O outputs."""
        warmup = phase == "warmup"
        settings = trial.warmup if warmup else trial.qat
        float_weights = True if warmup else which_are_float(trial.bits)
        float_inputs = True if warmup else which_are_float(trial.input_bits)
        return cls(
            inputs,
            outputs,
            trial.hidden,
            trial.batch_norm,
            trial.depth,
            trial.activation,
            float_weights=float_weights,
            float_inputs=float_inputs,
            optimizer=settings.optimizer,
            momentum=settings.momentum,
            granularity="tensor" if float_weights is True else trial.granularity,
            decompose=trial.decompose,
            own=trial.own_model and trial.own_model[:2],
            head=trial.structure.head if trial.decompose == "hidden" else None,
            task=trial.task,
            cnn=trial.cnn_layers,
            overhead=OVERHEAD.default if warmup else trial.overhead,
            bias=trial.bias,
            learns_steps=trial.scale == "lsq" and not (float_weights is float_inputs is True),
        )

    def build_undivided(self, seed: int) -> nn.Module:
        """One replica before its layers are split, with the initial weights of a seed."""
        if self.own:
            model = networks.build_own(*self.own, self.inputs, self.hidden, self.outputs, seed=seed)
            return replace_dropout(model)
        rest: Any = {"batch_norm": bool(self.batch_norm), "bias": self.bias, "seed": seed}
        if self.cnn is not None:
            return networks.build_cnn(self.cnn, self.hidden, self.outputs, **rest)
        return networks.build_mlp(self.inputs, self.hidden, self.outputs, **rest)

    def build_template(self) -> nn.Module:
        """One replica of this shape on the meta device, without data."""
        model = self.build_undivided(seed=0)
        model = decompose(
            model,
            self.depth,
            self.activation,
            generator=torch.Generator(),
            decomposed=self.decompose,
            norm=self.batch_norm == "factors",
            head=self.head,
            bias=self.bias,
        )
        weight_bits, act_bits = _some_bits(self.float_weights, FLOAT_BITS), _some_bits(self.float_inputs, None)
        settings = {"granularity": self.granularity, "overhead": self.overhead}
        settings["scale"] = "lsq" if self.learns_steps else SCALE.default
        return quantize(model, weight_bits, act_bits, **settings).to("meta")

    def make_optimiser_state(self, params: Stack) -> dict[str, Stack]:
        """The tensors that the optimiser keeps between steps, at zero."""
        zeros = lambda: {name: torch.zeros_like(p) for name, p in params.items()}  # noqa: E731
        if self.optimizer == "adam":
            count = torch.zeros((), device=next(iter(params.values())).device)
            return {"mean": zeros(), "square": zeros(), "count": {"": count}}
        return {"velocity": zeros()} if self.momentum else {}


class Joined:
    """How the tensors of a stack lie in one, so that an optimiser changes all of them in one call.

    Args:
        like: a stack of float32 with the names and shapes.
    """

    def __init__(self, like: Stack) -> None:
        self.shapes = {name: p.shape for name, p in like.items()}
        self.gaps = [like[name].new_zeros(-shape.numel() % ALIGNED) for name, shape in self.shapes.items()]

    def join(self, stack: Stack) -> Tensor:
        """The one tensor (numbers,), a copy, with zeros in the gaps."""
        tensors = [stack[name].reshape(-1) for name in self.shapes]
        return torch.cat([part for pair in zip(tensors, self.gaps, strict=True) for part in pair])

    def split(self, whole: Tensor) -> Stack:
        """The stack, as views of the one tensor."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        lengths = [n for size, gap in zip(sizes, self.gaps, strict=True) for n in (size, len(gap))]
        parts = whole.split(lengths)[::2]
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}


def which_are_float(bits: Any) -> bool | tuple[bool, ...]:
    """Whether the weights or inputs of all layers are float; a tuple of whether those of each are, if they differ."""
    if not isinstance(bits, tuple):
        return bits in (FLOAT_BITS, None)
    each = tuple(one in (FLOAT_BITS, None) for one in bits)
    return each if len(set(each)) > 1 else each[0]


def _some_bits(are_float: bool | tuple[bool, ...], of_float: Any) -> Any:
    """Bits, of all layers or of each, with which a network has the graph in which these are float."""
    if isinstance(are_float, bool):
        return of_float if are_float else 2
    return tuple(of_float if is_float else 2 for is_float in are_float)


def normalise(x: Tensor) -> Tensor:
    """Inputs as float32: pixels, uint8 in 0..255, as -1..1; others as they are.

    Source: the notebook's ToTensor and Normalize((0.5,), (0.5,)).
    """
    return x.to(torch.float32) / 127.5 - 1 if x.dtype == torch.uint8 else x.to(torch.float32)


def update_params(
    optimizer: str, momentum: float, params: Stack, grads: Stack, state: dict[str, Stack], lr: Tensor
) -> None:
    """Makes one step of SGD (with heavy-ball momentum) or Adam (Kingma and Ba 2015, algorithm 1), in place."""
    weights, slopes = list(params.values()), [grads[name] for name in params]  # one call takes them all
    if optimizer == "adam":
        means, squares = ([state[kind][name] for name in params] for kind in ("mean", "square"))
        count = state["count"][""].add_(1)
        torch._foreach_lerp_(means, slopes, 1 - 0.9)
        torch._foreach_lerp_(squares, torch._foreach_pow(slopes, 2), 1 - 0.999)
        moves = torch._foreach_div(means, 1 - 0.9**count)
        torch._foreach_mul_(moves, lr)
        scales = torch._foreach_div(squares, 1 - 0.999**count)
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, 1e-8)
        torch._foreach_div_(moves, scales)
        torch._foreach_sub_(weights, moves)
        return
    if momentum:
        velocities = [state["velocity"][name] for name in params]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, slopes)
        slopes = velocities
    torch._foreach_sub_(weights, torch._foreach_mul(slopes, lr))


def predict(template: nn.Module, params: Stack, buffers: Stack, x: Tensor, outputs: int) -> Tensor:
    """The outputs (B, O) of one replica.

    Args:
        template: its structure.
        params, buffers: its tensors.
        x: (B, I), normalised.
        outputs: O.

    Raises:
        ValueError: the network, which may be a user's own, returns something else.
    """
    return check_outputs(functional_call(template, (params, buffers), (x,)), len(x), outputs)


def check_outputs(found: object, rows: int, outputs: int) -> Tensor:
    """The outputs, which must be float32 of shape (rows, outputs): others would count as hits of other rows.

    Raises:
        ValueError: they are not.
    """
    if isinstance(found, Tensor) and found.shape == (rows, outputs) and found.dtype == torch.float32:
        return found
    got = type(found).__name__
    if isinstance(found, Tensor):
        got = f"{found.dtype} of shape {tuple(found.shape)}"
    samples = f"{rows} sample{'s' if rows > 1 else ''}"
    raise ValueError(f"{samples} must give float32 outputs of shape {(rows, outputs)}, got {got}")


def make_step(shape: StepShape, template: nn.Module, joined: Joined | None = None) -> Callable[..., None]:
    """A function that trains K stacked replicas on one batch each, in place.

    Args:
        shape: decides the optimiser and the loss.
        template: one replica of that shape; only its structure matters.
        joined: how the parameters lie in one tensor; it alone is then in `params` and in each stack of `state`.
    """
    measure_loss = loss_function(task_of(shape.task))

    def loss_of(params: Stack, buffers: Stack, x: Tensor, y: Tensor) -> tuple[Tensor, Stack]:
        buffers = {
            name: b.clone() for name, b in buffers.items()
        }  # the forward pass updates statistics in place: in these copies
        return measure_loss(predict(template, params, buffers, x, shape.outputs), y, x), buffers

    def step(
        params: Stack,
        buffers: Stack,
        state: dict[str, Stack],
        loss_sum: Tensor,  # (K,)
        x: Tensor,  # (K, B, I), uint8 or normalised
        y: Tensor,  # (K, B), or (K, B, O)
        lr: Tensor,  # ()
    ) -> None:
        each = joined.split(params[WHOLE]) if joined else params
        grads, (loss, new_buffers) = vmap(grad_and_value(loss_of, has_aux=True))(each, buffers, normalise(x), y)
        if joined:
            grads = {WHOLE: joined.join(grads)}
        update_params(shape.optimizer, shape.momentum, params, grads, state, lr)
        for name, b in buffers.items():
            b.copy_(new_buffers[name])
        loss_sum.add_(loss)

    return step
