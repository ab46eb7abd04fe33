"""A function of tensors as a tape of operations, which is recorded once and then played.

Where a training step is not compiled, Python takes most of its time: vmap, autograd and modules work out anew, at
each step, which operations to run, and these are always the same. So one step is recorded, what it does twice or in
vain is dropped, and the rest is played. Numbers stay the same to the last bit: each kernel gets what it got before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

Layout = tuple[Any, ...]  # shape, strides, offset and type of a tensor
aten = torch.ops.aten

# The result of each has the elements of its first argument, in their order, if it has its layout too.
SAME_ELEMENTS = (aten.alias, aten.clone, aten.detach, aten.expand, aten.permute, aten.view, aten._unsafe_view)
VALUE_TAGS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
PLAIN_CALLS = 8  # before a recording, which takes as long as some ten calls
STATISTICS = slice(3, 5)  # arguments that a batch normalisation changes, which its schema does not say


class NotTapedError(RuntimeError):
    """A function reads values of tensors in Python, so that its operations may differ from call to call."""


@dataclass(frozen=True)
class Slot:
    """The place of one tensor on a tape."""

    number: int

    def __repr__(self) -> str:
        return f"t{self.number}"


@dataclass(frozen=True)
class TapedCall:
    """One call of an operation of torch.

    Attributes:
        function: the operation.
        args, kwargs: with slots in the place of tensors.
        results: the slots of the returned tensors; None in the place of what is no tensor.
        is_tuple: whether it returned several things.
    """

    function: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Slot | None, ...]
    is_tuple: bool

    def reads(self) -> list[Slot]:
        return find_slots((self.args, self.kwargs))

    def makes(self) -> list[Slot]:
        return find_slots(self.results)

    def writes(self) -> list[Slot]:
        """The slots whose tensors it changes."""
        declared = self.function._schema.arguments
        given = dict(zip((a.name for a in declared), self.args, strict=False)) | self.kwargs
        changed = [given.get(a.name) for a in declared if a.alias_info is not None and a.alias_info.is_write]
        if self.function is aten.native_batch_norm.default:
            changed += self.args[STATISTICS]
        return find_slots(changed)

    def viewed(self) -> Slot | None:
        """The slot of the tensor in whose memory the result lies; None if the result has its own."""
        returned = self.function._schema.returns
        is_view = bool(returned) and returned[0].alias_info is not None
        return self.args[0] if is_view and self.args and isinstance(self.args[0], Slot) else None

    def is_drawn(self) -> bool:
        return torch.Tag.nondeterministic_seeded in self.function.tags

    def renamed(self, names: dict[Slot, Slot]) -> TapedCall:
        args, kwargs, results = rename_slots((self.args, self.kwargs, self.results), names)
        return replace(self, args=args, kwargs=kwargs, results=results)


def find_slots(nested: Any) -> list[Slot]:
    """All slots in nested lists, tuples and dicts."""
    return [leaf for leaf in tree.tree_leaves(nested) if isinstance(leaf, Slot)]


def rename_slots(nested: Any, names: dict[Slot, Slot]) -> Any:
    """The same with other slots."""
    return tree.tree_map(lambda leaf: names.get(leaf, leaf) if isinstance(leaf, Slot) else leaf, nested)


class Taped:
    """A function of tensors that runs as it is at first and is played from a tape later."""

    def __init__(self, function: Callable[..., Any], plain_calls: int) -> None:
        """
        Args:
            function: changes tensors among its arguments in place, or returns new ones. In later calls, each
                argument has the shape and type that it had in the first one.
            plain_calls: how often it runs as it is, at least 0.
        """
        self._function, self._plain_calls = function, plain_calls
        self._play: Callable[..., Any] | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        if self._play is None:
            self._play = self._function if self._plain_calls < 0 else None
            if self._plain_calls == 0:
                try:
                    self._play = record(self._function, inputs)
                except NotTapedError:
                    self._play = self._function
            self._plain_calls -= 1
        return (self._play or self._function)(*inputs)


def record(function: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """A faster function that does the same, learned from one call with copies of the inputs.

    Args:
        function: as for `Taped`.
        inputs: those of later calls have their shapes and types.

    Raises:
        NotTapedError: the function reads values of tensors in Python.
    """
    copies = [tensor.clone() for tensor in inputs]
    tape = Tape(copies)
    with torch.no_grad(), tape:
        returned = function(*copies)
    returned = tree.tree_map(tape.name, returned)
    calls, names = _drop_repeated(_drop_vain_copies(tape.calls), tape.layouts)
    returned = rename_slots(returned, names)
    return _compose(tape, _drop_unread(calls, find_slots(returned)), returned)


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
        if any(tag in function.tags for tag in VALUE_TAGS):
            raise NotTapedError(f"{function} reads values of a tensor")
        named_args, named_kwargs = tree.tree_map(self.name, (args, kwargs or {}))
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

    def _add(self, tensor: Tensor) -> Slot:
        slot = Slot(len(self.layouts))
        self._slots[tensor] = slot
        self.layouts[slot] = (tuple(tensor.shape), tensor.stride(), tensor.storage_offset(), tensor.dtype)
        return slot


def _find_owners(calls: Sequence[TapedCall]) -> dict[Slot, Slot]:
    """For each view: the tensor that owns its memory."""
    owners: dict[Slot, Slot] = {}
    for call in calls:
        if (base := call.viewed()) is not None:
            owners |= {view: owners.get(base, base) for view in call.makes() if view != base}
    return owners


def _drop_vain_copies(calls: Sequence[TapedCall]) -> list[TapedCall]:
    """The calls without copies that nothing changes before they are written back.

    A forward pass gets copies of all buffers, because it may change some, but it changes few.
    """
    owners = _find_owners(calls)
    sources = {call.makes()[0]: call.reads()[0] for call in calls if call.function is aten.clone.default}

    def is_written_back(call: TapedCall) -> bool:
        return call.function is aten.copy_.default and sources.get(call.args[1]) == call.args[0]

    changed = {owners.get(slot, slot) for call in calls if not is_written_back(call) for slot in call.writes()}
    back = [call.args[1] for call in calls if is_written_back(call)]
    vain = {copy: sources[copy] for copy in back if not changed & {copy, owners.get(sources[copy], sources[copy])}}
    left = [call for call in calls if not (is_written_back(call) and call.args[1] in vain)]
    return [call.renamed(vain) for call in left if not vain.keys() & set(call.makes())]


def _drop_repeated(
    calls: Sequence[TapedCall], layouts: dict[Slot, Layout]
) -> tuple[list[TapedCall], dict[Slot, Slot]]:
    """The calls without those that only repeat what is there; and the slots of the same numbers for their results.

    Calls without arguments go, too, because the tape has kept what they returned.
    """
    owners = _find_owners(calls)

    def owner(slot: Slot) -> Slot:
        return owners.get(slot, slot)

    changed = {owner(slot) for call in calls for slot in call.writes()}
    changes: dict[Slot, int] = {}  # how often the memory of a tensor was changed so far
    names: dict[Slot, Slot] = {}
    found: dict[str, tuple[Slot | None, ...]] = {}
    left = []
    for recorded in calls:
        call = recorded.renamed(names)
        for slot in recorded.writes():
            changes[owner(slot)] = changes.get(owner(slot), 0) + 1
        if recorded.writes() or call.is_drawn() or changed.intersection(call.results):
            left.append(call)
        elif call.reads():
            if (source := _find_same(call, layouts)) and (call.viewed() or owner(source) not in changed):
                names[call.makes()[0]] = source
                continue
            read = [(slot, changes.get(owner(slot), 0)) for slot in call.reads()]
            first = found.setdefault(repr((call.function, call.args, call.kwargs, read)), call.results)
            if first is call.results:
                left.append(call)
            names |= {one: other for one, other in zip(call.results, first, strict=True) if one and other}
    return left, names


def _find_same(call: TapedCall, layouts: dict[Slot, Layout]) -> Slot | None:
    """The slot of the first argument, if the result has its elements and its layout."""
    if call.function.overloadpacket not in SAME_ELEMENTS or len(call.reads()) != 1:
        return None
    (source,) = call.reads()
    return source if layouts[source] == layouts[call.makes()[0]] else None


def _drop_unread(calls: Sequence[TapedCall], returned: Sequence[Slot]) -> list[TapedCall]:
    """The calls without those on which nothing depends."""
    read = set(returned)
    left = []
    for call in reversed(calls):
        if call.writes() or call.is_drawn() or read.intersection(call.makes()):
            read.update(call.reads())
            left.append(call)
    return left[::-1]


def _compose(tape: Tape, calls: Sequence[TapedCall], returned: Any) -> Callable[..., Any]:
    """A Python function of the inputs that makes these calls, and drops each tensor after its last use."""
    names: dict[str, Any] = {}  # what the function refers to

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

    lasting = {*tape.kept, *tape.inputs, *find_slots(returned)}
    last = {slot: place for place, call in enumerate(calls) for slot in (*call.reads(), *call.makes())}
    lines = [f"def play({', '.join(map(repr, tape.inputs))}):"]
    for place, call in enumerate(calls):
        given = [*map(write, call.args), *(f"{key}={write(value)}" for key, value in call.kwargs.items())]
        targets = ["_" if slot is None else repr(slot) for slot in call.results]
        target = f"{', '.join(targets)}{',' * call.is_tuple} = " if targets else ""
        lines.append(f" {target}{write(call.function, 'f')}({', '.join(given)})")
        ended = {slot for slot in (*call.reads(), *call.makes()) if last[slot] == place} - lasting
        lines += [f" {slot} = None" for slot in sorted(ended, key=lambda slot: slot.number)]
    leaves, structure = tree.tree_flatten(returned)
    lines.append(f" return {write(leaves)}")
    exec("\n".join(lines), names)
    play = torch.no_grad()(names["play"])
    return lambda *inputs: tree.tree_unflatten(play(*inputs), structure)
