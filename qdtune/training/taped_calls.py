"""The operations of a tape, and the slots of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._ops import OpOverload

Layout = tuple[Any, ...]  # shape, strides, offset and type of a tensor
aten = torch.ops.aten

UNSAID_VIEWS = (aten._unsafe_view, aten.unsafe_split, aten.unsafe_split_with_sizes)  # the schema says no alias
STATISTICS = slice(3, 5)  # arguments that a batch normalisation changes, which its schema does not say


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
        is_view = is_view or self.function.overloadpacket in UNSAID_VIEWS
        return self.args[0] if is_view and self.args and isinstance(self.args[0], Slot) else None

    def renamed(self, names: dict[Slot, Slot]) -> TapedCall:
        args, kwargs, results = rename_slots((self.args, self.kwargs, self.results), names)
        return replace(self, args=args, kwargs=kwargs, results=results)


def find_slots(nested: Any) -> list[Slot]:
    """All slots in nested lists, tuples and dicts."""
    if isinstance(nested, Slot):
        return [nested]
    if isinstance(nested, dict):
        nested = nested.values()
    elif not isinstance(nested, (list, tuple)):
        return []
    return [slot for one in nested for slot in find_slots(one)]


def map_leaves(function: Callable[[Any], Any], nested: Any) -> Any:
    """The same lists, tuples and dicts with what `function` makes of their leaves; much faster than torch's own."""
    if isinstance(nested, dict):
        return {key: map_leaves(function, one) for key, one in nested.items()}
    if isinstance(nested, (list, tuple)):
        return type(nested)([map_leaves(function, one) for one in nested])
    return function(nested)


def rename_slots(nested: Any, names: dict[Slot, Slot]) -> Any:
    """The same with other slots."""
    return map_leaves(lambda leaf: names.get(leaf, leaf) if isinstance(leaf, Slot) else leaf, nested)
