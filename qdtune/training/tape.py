"""A function of tensors as a tape of operations, which is recorded once and then played.

Where a training step is not compiled, Python takes most of its time: vmap, autograd and modules work out anew, at
each step, which operations to run, and these are always the same. So one step is recorded, what it does twice or in
vain is dropped, and the rest is played. Numbers stay the same to the last bit: each kernel gets what it got before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from qdtune.training.tape_passes import (
    change_in_place,
    compute_constants,
    drop_repeated,
    drop_settled,
    drop_unread,
    drop_vain_copies,
    find_lasting_views,
    write_out,
)
from qdtune.training.taped_calls import Layout, Slot, TapedCall, aten, find_slots, map_leaves, rename_slots

CHANGING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)
MASKS = (torch.bool, torch.uint8)
PLAIN_CALLS = 16  # before a recording, which takes about as long as so many calls


class NotTapedError(RuntimeError):
    """A function cannot be played from a tape: what it does may differ from call to call."""


class Taped:
    """A function of tensors that runs as it is at first and is played from a tape later."""

    def __init__(self, function: Callable[..., Any], plain_calls: int, lasting: int = 0) -> None:
        """
        Args:
            function: changes tensors among its arguments in place, or returns new ones. In later calls, each
                argument has the shape and type that it had in the first one.
            plain_calls: how often it runs as it is, at least 0.
            lasting: how many of the first arguments are the same tensors in all later calls, which only the function
                itself changes.
        """
        self._function, self._plain_calls, self._lasting = function, plain_calls, lasting
        self._play: Callable[..., Any] | None = None
        self._earlier: Sequence[Tensor] | None = None  # inputs of the last plain call

    def __call__(self, *inputs: Tensor) -> Any:
        if self._play is None:
            if self._plain_calls > 0:
                self._earlier = _copy(inputs) if self._plain_calls == 1 else None
                self._plain_calls -= 1
                return self._function(*inputs)
            try:
                self._play = record(self._function, inputs, self._earlier, self._lasting)
            except NotTapedError:
                self._play = self._function
            self._earlier = None
        return self._play(*inputs)


def record(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    others: Sequence[Tensor] | None = None,
    lasting: int = 0,
) -> Callable[..., Any]:
    """A faster function that does the same, learned from one call with copies of the inputs.

    Args:
        function: as for `Taped`.
        inputs: those of later calls have their shapes and types.
        others: with which the function and its tape are compared; None: the same inputs. They should be other
            numbers, because a tape takes for a constant what Python computes of them, such as a mean by NumPy.
        lasting: as for `Taped`.

    Raises:
        NotTapedError: the function reads values of tensors in Python, or draws, or its tape does something else; or
            inputs share memory, which their copies would not.
    """
    if _share_memory(inputs):
        raise NotTapedError("its inputs share memory")
    copies, plain, played = _copy(inputs), _copy(others or inputs), _copy(others or inputs)
    tape = Tape(copies)
    try:
        with torch.no_grad(), tape:
            made = function(*copies)
        returned = map_leaves(tape.name, made)
        calls = change_in_place(drop_vain_copies(tape.calls), tape.layouts, find_slots(returned))
        calls, names = drop_repeated(calls, tape.layouts)
        returned = rename_slots(returned, names)
        calls = write_out(drop_unread(calls, find_slots(returned)), tape.layouts)
        unchanged = dict(zip(tape.inputs[:lasting], copies, strict=False))
        calls, tape.kept = compute_constants(calls, tape.kept | unchanged)
        calls, chosen = drop_settled(calls, tape.kept, tape.layouts)
        returned = rename_slots(returned, chosen)
        calls = drop_unread(calls, find_slots(returned))
        make_play = _compose(tape, calls, returned, lasting)
        found = make_play(*played[:lasting])(*played[lasting:])
    except NotTapedError:
        raise
    except Exception as error:  # whatever it is: the function runs as it is then, which costs time only
        raise NotTapedError(f"its tape cannot be played: {error}") from error
    expected = function(*plain)
    if not all(map(_is_equal, tree.tree_leaves((expected, plain)), tree.tree_leaves((found, played)))):
        raise NotTapedError("its tape gives other numbers")
    play = make_play(*inputs[:lasting])
    return lambda *given: play(*given[lasting:])


def _share_memory(tensors: Sequence[Tensor]) -> bool:
    """Whether some tensors overlap in memory, each from its first number to its last."""
    spans = []
    for one in tensors:
        if one.numel():
            last = sum((n - 1) * step for n, step in zip(one.shape, one.stride(), strict=True))
            spans.append((one.data_ptr(), one.data_ptr() + (last + 1) * one.element_size()))
    spans.sort()
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _copy(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _is_equal(one: Any, other: Any) -> bool:
    """Whether all numbers of two tensors are equal; one that is not a number equals another such."""
    if not isinstance(one, Tensor):
        return bool(one == other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


class Tape(TorchDispatchMode):
    """Records all operations on tensors while it is on.

    Attributes:
        calls: in their order.
        inputs: the slots of the tensors that are given at each play.
        kept: the tensors that do not depend on them.
        layouts: of all tensors.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.calls: list[TapedCall] = []
        self.kept: dict[Slot, Tensor] = {}
        self.layouts: dict[Slot, Layout] = {}
        self._slots = WeakTensorKeyDictionary()  # weak, because a step need not hold all its tensors at once
        self.inputs = [self._add(tensor) for tensor in inputs]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if _may_change(function, args):
            raise NotTapedError(f"{function} reads values of a tensor, or draws")
        if function is aten.lift_fresh.default and args[0] not in self._slots:  # of `torch.tensor`, or of x[1] = 5
            self._add_made(args[0])
            return args[0]
        named_args, named_kwargs = map_leaves(self.name, (args, kwargs or {}))
        returned = function(*args, **(kwargs or {}))
        is_tuple = isinstance(returned, (tuple, list))
        is_constant = not find_slots((named_args, named_kwargs))
        results: list[Slot | None] = []
        for one in returned if is_tuple else [returned]:
            slot = (self._slots.get(one) or self._add(one)) if isinstance(one, Tensor) else None
            if slot and is_constant:
                self.kept[slot] = one
            results.append(slot)
        self.calls.append(TapedCall(function, named_args, named_kwargs, tuple(results), is_tuple))
        return returned

    def name(self, leaf: Any) -> Any:
        """The slot of a tensor; anything else as it is."""
        if not isinstance(leaf, Tensor):
            return leaf
        slot = self._slots.get(leaf)
        if slot is None:
            slot = self._add(leaf)
            self.kept[slot] = leaf
        return slot

    def _add_made(self, tensor: Tensor) -> None:
        """Adds a tensor that Python makes anew in each call: as a copy, because later calls may change it."""
        kept = tensor.clone()
        self.calls.append(TapedCall(aten.clone.default, (self.name(kept),), {}, (self._add(tensor),), False))

    def _add(self, tensor: Tensor) -> Slot:
        slot = Slot(len(self.layouts))
        self._slots[tensor] = slot
        self.layouts[slot] = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)
        return slot


def _may_change(function: OpOverload, args: tuple[Any, ...]) -> bool:
    """Whether an operation reads values of a tensor in Python or draws. The tags of two say so of all their calls."""
    if function is aten.index.Tensor:  # only masks decide how many numbers it returns
        return any(isinstance(index, Tensor) and index.dtype in MASKS for index in args[1])
    if function is aten._scaled_dot_product_flash_attention_for_cpu.default:  # draws with a dropout
        return any(args[3:4])
    return any(tag in function.tags for tag in CHANGING)


def _compose(
    tape: Tape, calls: Sequence[TapedCall], returned: Any, lasting: int
) -> Callable[..., Callable[..., Any]]:
    """A Python function of the lasting inputs, which makes a function of the others that makes these calls.

    The second drops each tensor after its last use. Views of lasting tensors are made by the first.
    """
    names: dict[str, Any] = {}  # what the functions refer to

    def write(value: Any, prefix: str = "a") -> str:
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(write, value))}]"
        if isinstance(value, Slot):
            if value in tape.kept:
                names[repr(value)] = tape.kept[value]
            return repr(value)
        name = f"{prefix}{len(names)}"
        names[name] = value
        return name

    def write_call(call: TapedCall) -> str:
        given = [*map(write, call.args), *(f"{key}={write(value)}" for key, value in call.kwargs.items())]
        same = (None, *call.reads())  # a call that changes a tensor returns it
        targets = ["_" if slot in same else repr(slot) for slot in call.results]
        target = f"{', '.join(targets)}{',' * call.is_tuple} = " if targets else ""
        return f"{target}{write(_find_binding(call), 'f')}({', '.join(given)})"

    views, calls = find_lasting_views(calls, {*tape.kept, *tape.inputs[:lasting]})
    kept = {*tape.kept, *tape.inputs, *find_slots(returned), *(slot for call in views for slot in call.makes())}
    last = {slot: place for place, call in enumerate(calls) for slot in (*call.reads(), *call.makes())}
    lines = [f"def make_play({', '.join(map(repr, tape.inputs[:lasting]))}):"]
    lines += [f" {write_call(call)}" for call in views]
    lines.append(f" def play({', '.join(map(repr, tape.inputs[lasting:]))}):")
    for place, call in enumerate(calls):
        lines.append(f"  {write_call(call)}")
        ended = {slot for slot in (*call.reads(), *call.makes()) if last[slot] == place} - kept
        lines += [f"  {slot} = None" for slot in sorted(ended, key=lambda slot: slot.number)]
    leaves, structure = tree.tree_flatten(returned)
    lines += [f"  return {write(leaves)}", " return play"]
    exec("\n".join(lines), names)

    def make_play(*inputs: Tensor) -> Callable[..., Any]:
        with torch.inference_mode():
            play = torch.inference_mode()(names["make_play"](*inputs))
        return (lambda *others: tree.tree_unflatten(play(*others), structure)) if leaves else play

    return make_play


def _find_binding(call: TapedCall) -> Callable[..., Any]:
    """The same operation as torch offers it to Python, if it does: its call costs half of that of `torch.ops`."""
    if any(None in one for one in call.args if isinstance(one, (list, tuple))):  # as of x[:, places]
        return call.function
    name = call.function._schema.name.removeprefix("aten::")
    return getattr(torch, name, None) or getattr(Tensor, name, None) or call.function
